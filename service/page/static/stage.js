// The picture and, on a canvas above it, its boxes. What moves with the pointer redraws the boxes alone.

import { drawBoxes, hit } from "./boxes.js";

const ENLARGED_TO = 480; // a tiny picture is shown this large at most,
const ENLARGED_BY = 2; // and any other one twice as large
const MOST_PIXELS_EVERYWHERE = 4096 * 4096; // what every browser lets a canvas have
const narrow = matchMedia("(max-width: 860px)");

export class Stage {
  /**
   * @param {object} elements
   * @param {(detection: object|null) => void} onHover
   * @param {(detection: object|null) => void} onPick
   */
  constructor({ view, canvases, picture, boxes }, onHover, onPick) {
    Object.assign(this, { view, canvases, pictureCanvas: picture, boxesCanvas: boxes });
    this.bitmap = null;
    this.detections = [];
    this.active = null;
    new ResizeObserver(() => this.layout()).observe(view);
    window.addEventListener("resize", () => this.layout());
    boxes.addEventListener("pointermove", (event) => onHover(this.under(event)));
    boxes.addEventListener("pointerleave", () => onHover(null));
    boxes.addEventListener("click", (event) => onPick(this.under(event)));
  }

  show(bitmap) {
    if (this.bitmap !== bitmap) this.bitmap?.close();
    this.bitmap = bitmap;
    this.detections = [];
    this.active = null;
    this.drawnSize = null;
    this.layout();
  }

  /** The detections to draw, best first, and the one to bring out. */
  draw(detections, active) {
    Object.assign(this, { detections, active });
    if (!this.bitmap) return;
    const context = this.boxesCanvas.getContext("2d");
    context.clearRect(0, 0, this.boxesCanvas.width, this.boxesCanvas.height);
    const scale = this.boxesCanvas.width / this.bitmap.width;
    drawBoxes(context, { detections, scale, unit: this.density, active });
    this.boxesCanvas.classList.toggle("over", active !== null);
  }

  layout() {
    if (!this.bitmap || this.view.clientWidth === 0) return;
    const { width, height } = this.bitmap;
    const top = this.topUnscrolled();
    const room = narrow.matches ? window.innerHeight * 0.5 : Math.max(320, window.innerHeight - top - 24);
    const largest = Math.max(ENLARGED_BY, ENLARGED_TO / Math.max(width, height));
    const scale = Math.min(this.view.clientWidth / width, room / height, largest);
    const [shownWidth, shownHeight] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    this.density = window.devicePixelRatio || 1;
    const key = `${shownWidth} ${shownHeight} ${this.density}`;
    if (this.drawnSize === key) return;
    this.drawnSize = key;
    this.canvases.style.width = `${shownWidth}px`;
    this.canvases.style.height = `${shownHeight}px`;
    for (const canvas of [this.pictureCanvas, this.boxesCanvas]) {
      canvas.width = Math.round(shownWidth * this.density);
      canvas.height = Math.round(shownHeight * this.density);
    }
    const context = this.pictureCanvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.bitmap, 0, 0, this.pictureCanvas.width, this.pictureCanvas.height);
    this.draw(this.detections, this.active);
  }

  /** Where the picture is on a page that is not scrolled; its section is sticky, and moves with the scrolling. */
  topUnscrolled() {
    const section = this.view.parentElement;
    const main = section.parentElement;
    const within = this.view.getBoundingClientRect().top - section.getBoundingClientRect().top;
    const start = main.getBoundingClientRect().top + parseFloat(getComputedStyle(main).paddingTop);
    return start + window.scrollY + within;
  }

  under(event) {
    if (!this.bitmap) return null;
    const scale = this.bitmap.width / this.boxesCanvas.clientWidth;
    return hit(this.detections, event.offsetX * scale, event.offsetY * scale);
  }

  /** The picture in its own size with its boxes, as a file. */
  async annotated(type) {
    const { width, height } = this.bitmap;
    const smaller = Math.min(1, Math.sqrt(MOST_PIXELS_EVERYWHERE / (width * height)));
    return (await this.render(1, type)) ?? this.render(smaller, type);
  }

  render(scale, type) {
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(this.bitmap.width * scale);
    canvas.height = Math.round(this.bitmap.height * scale);
    const context = canvas.getContext("2d");
    context.drawImage(this.bitmap, 0, 0, canvas.width, canvas.height);
    const unit = Math.max(1, Math.max(canvas.width, canvas.height) / 1000);
    drawBoxes(context, { detections: this.detections, scale, unit });
    return new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
  }
}
