// The same request for a terminal or a program. No file name can break out of its quotes.

/**
 * @param {object} request
 * @param {string} request.url of /detect
 * @param {string} request.name of the file
 * @param {string} request.type of the file, "" if unknown
 * @param {string|null} request.source where the file can be fetched, if it is no file of the user's own
 * @param {[string, string|number][]} request.query
 * @param {number|null} request.timeoutMs that the answer may take, if not as long as usual
 * @param {boolean} request.withKey whether the service wants an API key
 */
export function asCurl({ url, name, type, source, query, timeoutMs, withKey }) {
  const lines = [`curl ${shell(url + search(query))}`, `  -H ${shell(`Content-Type: ${contentType(type)}`)}`];
  if (timeoutMs) lines.push(`  -H 'X-Request-Timeout-Ms: ${timeoutMs}'`);
  if (withKey) lines.push('  -H "Authorization: Bearer $FRCNN_KEY"');
  lines.push(`  --data-binary ${shell(`@${name}`)}`);
  const fetching = source ? `curl -o ${shell(name)} ${shell(source)}\n` : "";
  return fetching + lines.join(" \\\n");
}

/** For Node 18 and newer, as a module; a browser takes a File in place of `readFile`. */
export function asJavaScript({ url, name, type, source, query, timeoutMs, withKey }) {
  const headers = [`"Content-Type": ${quoted(contentType(type))}`];
  if (timeoutMs) headers.push(`"X-Request-Timeout-Ms": "${timeoutMs}"`);
  if (withKey) headers.push('"Authorization": `Bearer ${process.env.FRCNN_KEY}`');
  const body = source ? `await (await fetch(${quoted(source)})).blob()` : `await readFile(${quoted(name)})`;
  return [
    ...(source ? [] : ['import { readFile } from "node:fs/promises";', ""]),
    `const response = await fetch(${quoted(url + search(query))}, {`,
    '  method: "POST",',
    `  headers: { ${headers.join(", ")} },`,
    `  body: ${body},`,
    "});",
    "if (!response.ok) throw new Error(await response.text());",
    "const found = await response.json();",
    "for (const [index, box] of found.boxes.entries()) {",
    "  console.log(found.label_names[index], found.scores[index], box);",
    "}",
  ].join("\n");
}

export function asPython({ url, name, type, source, query, timeoutMs, withKey }) {
  const headers = [`"Content-Type": ${quoted(contentType(type))}`];
  if (timeoutMs) headers.push(`"X-Request-Timeout-Ms": "${timeoutMs}"`);
  if (withKey) headers.push('"Authorization": f"Bearer {os.environ[\'FRCNN_KEY\']}"');
  const content = source ? `httpx.get(${quoted(source)}).content` : `Path(${quoted(name)}).read_bytes()`;
  return [
    ...(withKey ? ["import os"] : []),
    ...(source ? [] : ["from pathlib import Path"]),
    ...(withKey || !source ? [""] : []),
    "import httpx",
    "",
    "response = httpx.post(",
    `    ${quoted(url)},`,
    `    params={${query.map(([key, value]) => `${quoted(key)}: ${typeof value === "number" ? value : quoted(value)}`).join(", ")}},`,
    `    content=${content},`,
    `    headers={${headers.join(", ")}},`,
    `    timeout=${timeoutMs ? timeoutMs / 1000 : 60},`,
    ")",
    "response.raise_for_status()",
    "found = response.json()",
    'for box, name, score in zip(found["boxes"], found["label_names"], found["scores"]):',
    "    print(name, score, box)",
  ].join("\n");
}

/** The answer that this query would get: the one that came, with what is not shown left out. */
export function asJson(answer, visible) {
  const chosen = {
    ...answer,
    boxes: visible.map((one) => one.box),
    labels: visible.map((one) => one.label),
    scores: visible.map((one) => one.score),
    label_names: visible.map((one) => one.name),
  };
  // A box on one line is easier to read than on six.
  return JSON.stringify(chosen, null, 2).replace(/\[\s+(-?[\d.e-]+(?:,\s+-?[\d.e-]+){3})\s+\]/g, (_, numbers) => `[${numbers.replace(/\s+/g, " ")}]`);
}

function search(query) {
  const text = new URLSearchParams(query).toString().replaceAll("%2C", ",").replaceAll("%3A", ":"); // allowed, and easier to read
  return text ? `?${text}` : "";
}

function contentType(type) {
  return /^image\/[\w.+-]+$/.test(type) ? type : "application/octet-stream";
}

function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A string of JSON is one of Python and of JavaScript, too. */
function quoted(text) {
  return JSON.stringify(text);
}
