// The service over HTTP: detections, health, and what went wrong in words for people.

const KEY = "frcnn-api-key";
const HEADLINES = {
  400: "This file cannot be read as a picture",
  401: "An API key is needed",
  403: "This key may not do that",
  404: "Not found",
  408: "It took too long",
  413: "Too large",
  415: "This kind of file is not taken",
  422: "The request was not understood",
  429: "The service is busy",
  500: "The service failed on this picture",
  502: "The service cannot be reached",
  503: "The service is not ready",
  504: "It took too long",
};

let memory = null; // where storage is forbidden

export const apiKey = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? memory;
    } catch {
      return memory;
    }
  },
  set(value) {
    memory = value;
    try {
      sessionStorage.setItem(KEY, value);
    } catch {
      // It is kept until the page is left.
    }
  },
  forget() {
    memory = null;
    try {
      sessionStorage.removeItem(KEY);
    } catch {
      // There was nothing in it.
    }
  },
};

/** What the service, or the way to it, refused. `retryAfter` is in seconds, or null. */
export class Problem extends Error {
  constructor({ status, detail, requestId = null, retryAfter = null }) {
    super(detail);
    this.status = status;
    this.headline = status ? (HEADLINES[status] ?? "Something went wrong") : "The service cannot be reached";
    this.detail = sentence(detail);
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

/**
 * Detect in one picture file.
 *
 * @param {Blob} file
 * @param {{query: [string, string|number][], timeoutMs: number|null}} options null: as long as the service gives by itself
 * @param {AbortSignal} signal
 * @returns {Promise<{answer: object, stages: {name: string, ms: number}[], batch: string|null, tiles: string|null, totalMs: number}>}
 * @throws {Problem}
 */
export async function detect(file, { query, timeoutMs }, signal) {
  const started = performance.now();
  const path = query.length > 0 ? `detect?${new URLSearchParams(query)}` : "detect";
  const response = await post(path, file, "application/json", signal, timeoutMs);
  const answer = await response.json();
  const totalMs = performance.now() - started;
  return { answer, totalMs, ...timings(response.headers.get("Server-Timing") ?? "") };
}

/** The upright picture itself, as the service sees it: for files that the browser cannot show. */
export async function picture(file, signal) {
  const response = await post("detect?score_threshold=1", file, "image/png", signal);
  return response.blob();
}

/** The document of /healthz, or `{status: "unreachable"}`. */
export async function health() {
  try {
    const response = await fetch("healthz", { headers: authorization(), cache: "no-store" });
    return await response.json();
  } catch {
    return { status: "unreachable", detail: "no answer from the service" };
  }
}

async function post(path, file, accept, signal, timeoutMs = null) {
  // The service looks at the content: a type that the system guessed from the name only confuses.
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const headers = { "Content-Type": type, Accept: accept, ...authorization() };
  if (timeoutMs !== null) headers["X-Request-Timeout-Ms"] = timeoutMs;
  let response;
  try {
    response = await fetch(path, { method: "POST", body: file, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ status: 0, detail: "no answer came; it may have stopped, or the connection is broken" });
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  const body = await response.json().catch(() => ({})); // a proxy's error is a page, not a problem document
  const detail = typeof body.detail === "string" ? body.detail : `the answer was ${response.status} ${response.statusText}`;
  return new Problem({
    status: response.status,
    detail,
    requestId: typeof body.request_id === "string" ? body.request_id : response.headers.get("X-Request-ID"),
    retryAfter: seconds(response.headers.get("Retry-After")),
  });
}

function authorization() {
  const key = apiKey.get();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Retry-After is a number of seconds or a date (RFC 9110, section 10.2.3). */
function seconds(text) {
  if (!text) return null;
  const value = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isFinite(value) ? Math.max(1, Math.ceil(value)) : null;
}

function timings(header) {
  const stages = [];
  let [batch, tiles] = [null, null];
  for (const entry of header.split(",")) {
    const [name, ...parameters] = entry.split(";").map((part) => part.trim());
    const fields = Object.fromEntries(parameters.map((part) => part.split("=").map((side) => side.replaceAll('"', ""))));
    if (name === "batch") batch = fields.desc ?? null;
    else if (name === "tiles") tiles = fields.desc ?? null;
    else if (name && "dur" in fields) stages.push({ name, ms: Number(fields.dur) || 0 });
  }
  return { stages, batch, tiles };
}

export function sentence(text) {
  const trimmed = text.trim();
  const ended = /[.!?]$/.test(trimmed) ? trimmed : `${trimmed}.`;
  return ended.charAt(0).toUpperCase() + ended.slice(1);
}
