// One picture from the camera. Without a secure context browsers give no live camera: a phone's own app stands in.

export class CameraError extends Error {}

const REASONS = {
  NotAllowedError: "The browser was not allowed to use the camera. Allow it in the site's settings, and try again.",
  NotFoundError: "There is no camera on this device.",
  NotReadableError: "The camera is in use by another program.",
};

export function cameraIsLive() {
  return Boolean(navigator.mediaDevices?.getUserMedia);
}

/**
 * Let the user take a picture.
 *
 * @returns {Promise<File|null>} null if they would rather not
 * @throws {CameraError} with a message for them
 */
export async function takePicture({ dialog, video, take, cancel, turn }) {
  const controller = new AbortController();
  const { signal } = controller;
  let facingMode = "environment";
  let stream = await open(facingMode);
  const stop = () => stream.getTracks().forEach((track) => track.stop());
  try {
    await play(video, stream);
    const devices = await navigator.mediaDevices.enumerateDevices();
    turn.hidden = devices.filter((device) => device.kind === "videoinput").length < 2;
    turn.addEventListener(
      "click",
      async () => {
        stop();
        const other = facingMode === "environment" ? "user" : "environment";
        // Where there is no other one after all, the first goes on.
        [stream, facingMode] = await open(other).then(
          (opened) => [opened, other],
          async () => [await open(facingMode), facingMode],
        );
        await play(video, stream);
      },
      { signal },
    );
    dialog.showModal();
    take.focus();
    const taken = await new Promise((resolve) => {
      take.addEventListener("click", () => resolve(true), { signal });
      cancel.addEventListener("click", () => resolve(false), { signal });
      dialog.addEventListener("close", () => resolve(false), { signal });
    });
    return taken ? await still(video) : null;
  } finally {
    controller.abort();
    stop();
    video.srcObject = null;
    dialog.close();
  }
}

async function open(facingMode) {
  try {
    return await navigator.mediaDevices.getUserMedia({
      video: { facingMode: { ideal: facingMode }, width: { ideal: 1920 }, height: { ideal: 1080 } },
      audio: false,
    });
  } catch (error) {
    throw new CameraError(REASONS[error.name] ?? "The camera cannot be used.");
  }
}

async function play(video, stream) {
  video.srcObject = stream;
  await video.play();
}

async function still(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}
