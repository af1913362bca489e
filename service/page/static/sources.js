// The ways a picture comes in: a file that is chosen, dropped or pasted, the camera, the sample.

import { CameraError, cameraIsLive, takePicture } from "./camera.js";

const SAMPLE = new URL("page/sample.jpg", document.baseURI).href;
let asking = false; // the browser asks whether it may use the camera, or its picture is being taken
const $ = (id) => document.getElementById(id);

/**
 * @param {object} reactions
 * @param {(file: File, source?: string) => void} reactions.open a picture is there, perhaps one that can be fetched
 * @param {(headline: string, detail: string) => void} reactions.say why there is none
 */
export function connectSources({ open, say }) {
  $("choose").addEventListener("click", () => $("file").click());
  for (const input of [$("file"), $("capture")]) {
    input.addEventListener("change", () => {
      const [file] = input.files;
      input.value = ""; // the same file can then be chosen again
      if (file) open(file);
    });
  }
  $("sample").addEventListener("click", () => openSample(open, say));
  $("camera").addEventListener("click", () => openCamera(open, say));
  document.addEventListener("paste", (event) => {
    if (take(event.clipboardData, open)) event.preventDefault();
  });
  connectDropping((transfer) => {
    if (take(transfer, open)) return;
    say("That was no file", "Drop the picture itself, from a folder: a link to one is not enough.");
  });
}

async function openSample(open, say) {
  try {
    const response = await fetch(SAMPLE);
    open(new File([await response.blob()], "sample.jpg", { type: "image/jpeg" }), SAMPLE);
  } catch {
    say("The service cannot be reached", "It did not give its sample. Try again in a moment.");
  }
}

async function openCamera(open, say) {
  if (!cameraIsLive()) {
    $("capture").click();
    return;
  }
  if (asking) return;
  asking = true;
  try {
    const file = await takePicture({
      dialog: $("camera-dialog"),
      video: $("camera-video"),
      take: $("camera-take"),
      cancel: $("camera-cancel"),
      turn: $("camera-turn"),
    });
    if (file) open(file);
  } catch (error) {
    if (!(error instanceof CameraError)) throw error;
    say("No picture from the camera", error.message);
  } finally {
    asking = false;
  }
}

/** Open the file that was dropped or pasted, if there is one. */
function take(transfer, open) {
  const [file] = transfer.files;
  if (file) {
    const pasted = file.name === "image.png"; // what browsers call a picture without a name
    open(pasted ? new File([file], "pasted.png", { type: file.type }) : file);
  }
  return Boolean(file);
}

function connectDropping(onDrop) {
  let depth = 0; // dragging over a child leaves its parent
  const settle = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => {
    event.preventDefault();
    settle(1);
  });
  document.addEventListener("dragleave", () => settle(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    settle(0);
    onDrop(event.dataTransfer);
  });
}
