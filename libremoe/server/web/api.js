// The server's API (docs/chat.md): JSON, and answers as server-sent events.

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

/** What the server refuses is said in the language of the page. */
const spoken = () => ({ accept: "application/json", "accept-language": document.documentElement.lang });

async function refusal(response) {
  let message = `${response.status}`;
  try { message = (await response.json()).error.message; } catch { /* no JSON: the status has to do */ }
  if (response.status === 401) location.assign("/login");
  return new Refused(response.status, String(message));
}

async function call(method, path, body, signal) {
  const headers = spoken();
  if (body !== undefined) headers["content-type"] = "application/json";
  return fetch(path, { method, headers, signal, credentials: "same-origin", cache: "no-store",
    body: body === undefined ? undefined : JSON.stringify(body) });
}

async function json(method, path, body) {
  const response = await call(method, path, body);
  if (!response.ok) throw await refusal(response);
  return response.json();
}

export const get = (path) => json("GET", path);
export const post = (path, body = {}) => json("POST", path, body);
export const patch = (path, body) => json("PATCH", path, body);
export const erase = (path) => json("DELETE", path);

export async function upload(path, file) {
  const zip = /\.zip$/i.test(file.name);
  const response = await fetch(path, { method: "POST", body: file, credentials: "same-origin",
    headers: { ...spoken(), "content-type": zip ? "application/zip" : "application/json" } });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** Events of a stream, one object each. method GET follows an answer, POST begins one. */
export async function* events(method, path, body, signal) {
  const response = await call(method, path, body, signal);
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
