// The expert atlas: which experts of which layer worked on an answer, and on each token of it.

import { $, h, iconButton } from "./dom.js";
import { percent, t } from "./words.js";

const LEVELS = 8; // shades of a cell
let shown = null; // {turn, tokens, cells, token}
let waiting = false;

export const isOpen = () => !$("#side").hidden;

/** Show the atlas of an answer. tokens: [{layers: [[e, ...], ...], text}] where they were seen; else details.atlas counts. */
export function openAtlas(turn, tokens, state) {
  shown = { turn, tokens, state, token: null };
  const side = $("#side");
  side.hidden = false;
  side.setAttribute("aria-label", t("atlas"));
  document.documentElement.dataset.side = "open";
  draw();
}

export function closeAtlas() {
  $("#side").hidden = true;
  delete document.documentElement.dataset.side;
  shown = null;
}

/** More tokens came, or another answer is the newest. */
export function updateAtlas(turn, tokens) {
  if (!shown || !isOpen()) return;
  if (turn) Object.assign(shown, { turn, tokens });
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; if (shown) draw(); });
}

function counts() {
  const rows = [];
  for (const { layers } of shown.tokens ?? []) {
    layers.forEach((chosen, l) => { rows[l] ??= []; for (const e of chosen) rows[l][e] = (rows[l][e] ?? 0) + 1; });
  }
  const found = rows.length ? rows : shown.turn?.details?.atlas ?? [];
  const experts = Math.max(shown.state.n_experts || 0, ...found.map((row) => row.length));
  return { rows: found.map((row) => Array.from({ length: experts }, (_, e) => row[e] ?? 0)), experts };
}

function draw() {
  const side = $("#side");
  const kept = side.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
  const { rows, experts } = counts();
  const tokens = shown.tokens ?? [];
  side.replaceChildren(
    h("header", {}, h("h2", {}, t("atlas")), iconButton("close", t("close"), closeAtlas, { dataset: { keep: "close" } })),
    h("p", { class: "where" }, t(shown.state.n_experts ? "atlas_text" : "atlas_none")),
    ...(rows.length ? [grid(rows, experts, tokens), scale(), ...(tokens.length ? strip(tokens) : [])]
      : shown.state.n_experts ? [h("p", { class: "empty" }, t("atlas_empty"))] : []));
  if (kept) $(`[data-keep="${kept}"]`, side)?.focus();
  if (shown.token !== null) light(shown.token);
}

function grid(rows, experts, tokens) {
  const total = Math.max(1, tokens.length || Math.max(...rows.map((row) => row.reduce((a, b) => a + b, 0))) / 2);
  const most = Math.max(1, ...rows.flat());
  const l = rows.findIndex((row) => row.includes(most));
  const label = t("atlas_label", { layers: rows.length, experts, e: (l < 0 ? 0 : rows[l].indexOf(most)) + 1, l: Math.max(0, l) + 1, share: percent(Math.min(1, most / total)) });
  const el = h("div", { class: rows.length > 24 ? "atlas dense" : "atlas", role: "img", "aria-label": label });
  el.style.setProperty("--experts", experts);
  el.append(h("span", { class: "corner" }), ...Array.from({ length: experts }, (_, e) => h("span", { class: "head" }, e + 1)));
  shown.cells = rows.map((row, layer) => {
    el.append(h("span", { class: "head" }, rows.length <= 24 || layer % 4 === 0 ? layer + 1 : ""));
    return row.map((count, e) => {
      const cell = h("span", { class: "cell", dataset: { level: count ? Math.max(1, Math.ceil((count / most) * LEVELS)) : 0 },
        title: `${t("atlas_layer")} ${layer + 1}, ${t("atlas_expert")} ${e + 1}: ${percent(Math.min(1, count / total))}` });
      el.append(cell);
      return cell;
    });
  });
  return h("div", { class: "atlas-box" }, el);
}

function scale() {
  return h("p", { class: "scale", "aria-hidden": "true" }, t("atlas_less"),
    Array.from({ length: LEVELS + 1 }, (_, level) => h("span", { class: "cell", dataset: { level } })), t("atlas_more"));
}

function strip(tokens) {
  const slider = h("input", { type: "range", min: 0, max: tokens.length - 1, value: shown.token ?? tokens.length - 1, "aria-label": t("atlas_token"),
    dataset: { keep: "slider" }, oninput: () => light(Number(slider.value)) });
  const words = h("p", { class: "tokens", "aria-hidden": "true", dataset: { keep: "tokens" } }, tokens.map((token, i) =>
    h("span", { dataset: { i } }, token.text || "·")));
  const at = (event) => { const span = event.target.closest("[data-i]"); if (span) light(Number(span.dataset.i)); };
  words.addEventListener("pointerover", at);
  words.addEventListener("click", at);
  words.addEventListener("pointerleave", () => light(null));
  return [h("p", { class: "where", id: "atlas-at" }, t("atlas_hover")), slider, words];
}

/** Show the experts of one token alone; null: all again. */
function light(i) {
  shown.token = i;
  const token = i === null ? null : shown.tokens?.[i];
  const side = $("#side");
  $(".atlas", side)?.classList.toggle("one", Boolean(token));
  shown.cells?.forEach((row, l) => row.forEach((cell, e) => cell.classList.toggle("on", Boolean(token?.layers[l]?.includes(e)))));
  for (const span of side.querySelectorAll(".tokens [data-i]")) span.classList.toggle("on", Number(span.dataset.i) === i);
  const words = token ? t("atlas_at", { i: i + 1, n: shown.tokens.length, text: token.text.trim() || "␣" }) : t("atlas_hover");
  const line = $("#atlas-at");
  if (line) line.textContent = words;
  const slider = $("input[type=range]", side);
  if (slider && token) { slider.value = i; slider.setAttribute("aria-valuetext", words); }
}
