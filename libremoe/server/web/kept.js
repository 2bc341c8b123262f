// What is remembered in this browser: choices, never words of a conversation.

const NAME = "libremoe";
const DEFAULTS = { theme: "system", language: null, persona: "regular", live: false, tools: false, temperature: null,
  max_tokens: null, sidebar: true, send: "enter" };

function read() {
  try { return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(NAME) || "{}") }; } catch { return { ...DEFAULTS }; }
}

export const kept = read();

export function keep(changes) {
  Object.assign(kept, changes);
  try { localStorage.setItem(NAME, JSON.stringify(kept)); } catch { /* storage is off: it lasts as long as the page */ }
}
