// Boxes on a canvas, and the one under the pointer. Colours and captions are those of service/images/drawing.py and schemas.py.

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const [SIZE, PADDING] = [11.5, 4]; // of captions, in units

const [SATURATION, VALUE, GOLDEN] = [0.85, 0.95, 0.618034]; // neighbouring classes differ by a golden section of the hues

/** The colour of a class, and the ink that is legible on it: CSS colours, equal to those of pictures that the service draws. */
export function classColors(label) {
  const hue = ((label * GOLDEN) % 1) * 6;
  const channel = (offset) => {
    const distance = (offset + hue) % 6;
    return VALUE * (1 - SATURATION * Math.max(0, Math.min(distance, 4 - distance, 1)));
  };
  const [red, green, blue] = [5, 3, 1].map((offset) => Math.round(channel(offset) * 255));
  const isLight = 0.299 * red + 0.587 * green + 0.114 * blue > 128;
  return { color: `rgb(${red} ${green} ${blue})`, ink: isLight ? "#000" : "#fff" };
}

/** A score with two digits, rounded down: 0.9995 is not certain, and a score below a threshold never reads as equal to it. */
export function scoreText(score) {
  return (Math.floor(Math.round(score * 1e6) / 1e4) / 100).toFixed(2);
}

/**
 * Draw detections, the best on top. Where one is active, the others fade and lose their captions.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {object} options
 * @param {{box: number[], name: string, score: number, color: string, ink: string}[]} options.detections best first
 * @param {number} options.scale from the picture's pixels to the canvas's
 * @param {number} options.unit what one pixel of a line is on this canvas
 * @param {object|null} options.active the detection to bring out
 */
export function drawBoxes(context, { detections, scale, unit, active = null }) {
  context.save();
  context.font = `600 ${SIZE * unit}px ${FONT}`;
  context.textBaseline = "middle";
  context.globalAlpha = active ? 0.3 : 1;
  for (const one of detections.toReversed()) if (one !== active) outline(context, one, scale, unit, 2);
  context.globalAlpha = 1;
  if (active) outline(context, active, scale, unit, 3);
  for (const plate of plates(context, active ? [active] : detections, scale, unit).reverse()) caption(context, plate, unit);
  context.restore();
}

/** The smallest of the detections whose box holds the point, in the picture's pixels; null if none does. */
export function hit(detections, x, y) {
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  let best = null;
  for (const one of detections) {
    const [x1, y1, x2, y2] = one.box;
    if (x >= x1 && x <= x2 && y >= y1 && y <= y2 && (best === null || area(one) < area(best))) best = one;
  }
  return best;
}

function outline(context, { box, color }, scale, unit, width) {
  const [x1, y1, x2, y2] = box.map((value) => value * scale);
  context.beginPath();
  context.roundRect(x1, y1, Math.max(x2 - x1, unit), Math.max(y2 - y1, unit), 2 * unit);
  // A dark rim keeps a bright line visible on a bright picture.
  context.lineWidth = (width + 1.5) * unit;
  context.strokeStyle = "rgb(0 0 0 / 0.45)";
  context.stroke();
  context.lineWidth = width * unit;
  context.strokeStyle = color;
  context.stroke();
}

/** Where each caption goes, best first: above its box, or inside, or below, where no better one's is; else above. */
function plates(context, detections, scale, unit) {
  const height = (SIZE + 5) * unit;
  const { width: right, height: bottom } = context.canvas;
  const placed = [];
  for (const { box, name, score, color, ink } of detections) {
    const text = `${name.length > 24 ? `${name.slice(0, 23)}…` : name} ${scoreText(score)}`;
    const width = context.measureText(text).width + 2 * PADDING * unit;
    const x = Math.max(0, Math.min(box[0] * scale - unit, right - width));
    const [top, end] = [box[1] * scale, box[3] * scale];
    const candidates = [top - height, top, end]
      .map((y) => ({ x, y: Math.max(0, Math.min(y, bottom - height)), width, height, text, color, ink }))
      .filter((one) => one.height < end - top || one.y !== top); // inside only where there is an inside
    placed.push(candidates.find((one) => !placed.some((other) => overlap(one, other))) ?? candidates[0]);
  }
  return placed;
}

function overlap(one, other) {
  return (
    one.x < other.x + other.width &&
    other.x < one.x + one.width &&
    one.y < other.y + other.height &&
    other.y < one.y + one.height
  );
}

function caption(context, { x, y, width, height, text, color, ink }, unit) {
  context.beginPath();
  context.roundRect(x, y, width, height, 2 * unit);
  context.fillStyle = color;
  context.fill();
  context.fillStyle = ink;
  context.fillText(text, x + PADDING * unit, y + height / 2 + 0.5 * unit);
}
