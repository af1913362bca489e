// The page: a picture comes in, is detected in once, and everything after that happens here.

import { classColors } from "./boxes.js";
import { asCurl, asJavaScript, asJson, asPython } from "./code.js";
import { Kept } from "./kept.js";
import { Notice } from "./notice.js";
import { List, fillClasses, fillTimings, summary, updateClasses } from "./results.js";
import { Problem, apiKey, detect, picture } from "./service.js";
import { connectSources } from "./sources.js";
import { Stage } from "./stage.js";
import { Status } from "./status.js";

const $ = (id) => document.getElementById(id);

const MOST = 100; // detections in an answer,
const MOST_IN_TILES = 10_000; // and in one of tiles
const TIME_FOR_TILES_MS = 600_000;

const state = {
  file: null,
  tile: null, // side of the tiles that the answer comes from, as a text; null for none
  source: null, // where the file can be fetched, if it is the sample
  answer: null,
  all: [],
  hovered: null,
  focused: null,
  request: null, // AbortController of the newest
};

const notice = new Notice($("notice"), () => run());
const stage = new Stage(
  { view: $("view"), canvases: $("canvases"), picture: $("picture"), boxes: $("boxes") },
  (one) => hover(one),
  (one) => (one ? list.focus(one) : list.blur()),
);
const list = new List($("list"), $("list-more"), {
  onHover: (one) => hover(one),
  onFocus: (one) => {
    state.focused = one;
    highlight();
  },
});
const kept = new Kept(
  {
    threshold: $("threshold"),
    thresholdValue: $("threshold-value"),
    overlap: $("overlap"),
    overlapValue: $("overlap-value"),
    agnostic: $("agnostic"),
    list: $("class-thresholds"),
    same: $("same-thresholds"),
  },
  () => render(),
);
new Status(
  {
    root: $("status"),
    word: $("status-word"),
    weights: $("status-weights"),
    detail: $("status-detail"),
    facts: $("status-facts"),
    forgetKey: $("forget-key"),
    caveat: $("caveat"),
    sample: $("sample"),
  },
  {
    onHealth: (health) => health.iou_threshold && kept.setOwnOverlap(health.iou_threshold), // a reload may change it
    onChange: (status) => status === "ok" && notice.waits && notice.retryNow(),
  },
);

/** Start with another file. */
function open(file, source = null) {
  Object.assign(state, { file, source });
  run();
}

async function run() {
  state.request?.abort();
  const request = new AbortController();
  state.request = request;
  const { file } = state;
  state.tile = $("tile").value || null;
  notice.clear();
  forgetAnswer();
  $("main").dataset.state = "busy";
  $("view").hidden = false;
  $("progress").hidden = false;
  $("file-name").textContent = state.source ? `${file.name}, a drawing of blood cells` : file.name;
  announce(`Detecting in ${file.name}`);
  try {
    const [own, result] = await Promise.all([shown(file, request), detect(file, tiling(), request.signal)]);
    const { width, height } = result.answer.image;
    let bitmap = own;
    if (!bitmap || bitmap.width !== width || bitmap.height !== height) {
      // The browser cannot show this kind of file, or decodes it to another size: show what the service decodes.
      bitmap = await createImageBitmap(await picture(file, request.signal));
      if (request === state.request) stage.show(bitmap);
    }
    if (request === state.request) show(result);
  } catch (error) {
    if (request !== state.request || error.name === "AbortError") return;
    fail(error);
  } finally {
    if (request === state.request) $("progress").hidden = true;
  }
}

/** The file as the browser shows it, upright, at once; null if it cannot. */
async function shown(file, request) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  if (request !== state.request) return bitmap;
  $("canvases").hidden = bitmap === null;
  if (bitmap) stage.show(bitmap);
  return bitmap;
}

/** How to divide the picture, and how long that may take: a processor needs about a second for each tile. */
function tiling() {
  return state.tile ? { query: [["tile", Number(state.tile)]], timeoutMs: TIME_FOR_TILES_MS } : { query: [], timeoutMs: null };
}

function forgetAnswer() {
  Object.assign(state, { answer: null, all: [], hovered: null, focused: null });
  stage.draw([], null);
  $("panel").hidden = true;
}

function fail(error) {
  $("main").dataset.state = "failed";
  if (error instanceof Problem) notice.show(error);
  else notice.say("Something went wrong in this page", String(error));
}

function show(result) {
  const { answer } = result;
  state.answer = answer;
  state.all = answer.boxes.map((box, index) => ({
    box,
    label: answer.labels[index],
    name: answer.label_names[index],
    score: answer.scores[index],
    ...classColors(answer.labels[index]),
  }));
  const found = new Set(answer.labels);
  $("canvases").hidden = false;
  $("panel").hidden = false;
  $("main").dataset.state = "shown";
  list.fill(state.all);
  kept.fill(state.all);
  fillClasses($("classes"), state.all, (label) => kept.toggle(label));
  $("classes-line").hidden = found.size < 2;
  fillTimings({ total: $("time-total"), track: $("time-track"), legend: $("time-stages") }, result);
  stage.layout();
  render();
  announce(`${$("count").textContent}, ${$("count-note").textContent}`);
}

function visible() {
  return kept.choose(state.all).visible;
}

/** Everything that depends on which detections are kept. */
function render() {
  if (!state.answer) return;
  const { passing, shown, visible: chosen } = kept.choose(state.all);
  const words = summary({ all: state.all, passing, shown, visible: chosen, kept, image: state.answer.image, most: state.tile ? MOST_IN_TILES : MOST });
  $("count").textContent = words.headline;
  $("count-note").textContent = words.note;
  $("found").hidden = chosen.length === 0;
  $("picture").setAttribute("aria-label", `The picture, with ${words.headline.toLowerCase()} marked`);
  updateClasses($("classes"), passing, kept.hidden);
  highlight();
  $("code").textContent = code();
}

function highlight() {
  const chosen = visible();
  const active = [state.hovered, state.focused].find((one) => one && chosen.includes(one)) ?? null;
  stage.draw(chosen, active);
  list.update(chosen, active);
}

function hover(one) {
  if (one === state.hovered) return;
  state.hovered = one;
  highlight();
}

function code() {
  const language = document.querySelector("input[name=language]:checked").value;
  if (language === "json") return asJson(state.answer, visible());
  const request = {
    url: new URL("detect", document.baseURI).href,
    name: state.file.name,
    type: state.file.type,
    source: state.source,
    query: [...kept.query(), ...tiling().query],
    timeoutMs: tiling().timeoutMs,
    withKey: apiKey.get() !== null,
  };
  return { curl: asCurl, python: asPython, javascript: asJavaScript }[language](request);
}

async function copy() {
  const text = $("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyTheOldWay(text);
  }
  $("copy").textContent = "Copied";
  announce("Copied");
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
}

/** Without a secure context there is no clipboard to write to. */
function copyTheOldWay(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden-text";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  $("copy").focus();
}

async function download() {
  const type = state.file.type === "image/png" ? "image/png" : "image/jpeg";
  const blob = await stage.annotated(type);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${state.file.name.replace(/\.[^.]*$/, "")}-detections.${type === "image/png" ? "png" : "jpg"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function announce(text) {
  $("announcement").textContent = text;
}

$("all-classes").addEventListener("click", () => kept.hide([]));
$("no-classes").addEventListener("click", () => kept.hide(state.all.map((one) => one.label)));
$("tile").addEventListener("change", () => state.file && run());
$("language").addEventListener("change", render);
$("copy").addEventListener("click", copy);
$("download").addEventListener("click", download);
connectSources({ open, say: (headline, detail) => notice.say(headline, detail) });
