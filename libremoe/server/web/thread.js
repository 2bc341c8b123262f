// Turns on the screen. Everything here reads values and makes elements; what buttons do comes in as `act`.

import { $, $$, h, icon, iconButton, logo, morph, trusted } from "./dom.js";
import { evidence, explain } from "./evidence.js";
import { note } from "./dialogs.js";
import { textOf } from "./tree.js";
import { number, percent, t } from "./words.js";

/** The whole thread. view: {tree, live: Map of turn id to what is on its way, state, act} */
export function paintThread(view) {
  const thread = $("#thread");
  const path = view.tree?.path() ?? [];
  thread.replaceChildren(...(path.length ? path.filter((turn) => turn.role === "user" || turn.role === "assistant")
    .map((turn) => turnElement(turn, view)) : [greeting(view)]));
}

/** One turn again, where it is shown. */
export function paintTurn(turn, view) {
  const old = articleOf(turn.id);
  if (!old) return;
  const held = old.contains(document.activeElement) ? document.activeElement.dataset.do : null;
  const made = turnElement(turn, view);
  old.replaceWith(made);
  if (held) $(`[data-do="${held}"]`, made)?.focus();
}

/** Only its words and figures, while they are written. */
export function paintBody(turn, view) {
  const article = articleOf(turn.id);
  if (!article) return;
  const fragment = trusted(turn.html);
  finish(fragment, article);
  morph($(".body", article), fragment);
  $(".readout", article)?.replaceWith(readout(turn, view.live.get(turn.id), view));
}

/** Only what stands around the words of an answer on its way: calls, sources, read-out. */
export function paintAround(turn, view) {
  const article = articleOf(turn.id);
  if (!article) return;
  const live = view.live.get(turn.id);
  $(".before", article).replaceChildren(...before(turn, live, view));
  const open = $("details.sources", article)?.open ?? false;
  $(".after", article).replaceChildren(...[evidence(detailsOf(turn, live), textOf(turn), open)].filter(Boolean));
  const line = $(".readout", article);
  if (line) line.replaceWith(readout(turn, live, view));
}

export const articleOf = (id) => $$("#thread > article").find((one) => one.dataset.id === id) ?? null;

function turnElement(turn, view) {
  const mine = turn.role === "user";
  const live = view.live.get(turn.id);
  const body = h("div", { class: "body prose" });
  const article = h("article", { class: `turn ${turn.role} ${turn.state}`, dataset: { id: turn.id } },
    h("h2", { class: "unseen" }, mine ? t("you_said") : t("answer_of", { model: turn.details.model || view.state.model })));
  if (turn.html) body.append(trusted(turn.html));
  finish(body, article);
  if (mine) {
    article.append(body, h("footer", {}, actions(turn, view)));
    return article;
  }
  article.append(h("div", { class: "before" }, before(turn, live, view)), body, h("div", { class: "after" },
    evidence(detailsOf(turn, live), textOf(turn), Boolean(turn.details.sentences?.length))), ending(turn) ?? "",
    h("footer", {}, turn.state === "writing" ? null : actions(turn, view), readout(turn, live, view)));
  return article;
}

const detailsOf = (turn, live) => (live?.sources ? { ...turn.details, sources: live.sources } : turn.details);

/** What the renderer leaves to the page: copy buttons, the words of marks. */
function finish(root, article) {
  for (const pre of $$("pre.code", root)) {
    const code = pre.textContent;
    const name = pre.dataset.language || t("code");
    pre.setAttribute("aria-label", name);
    pre.setAttribute("role", "region");
    const box = h("div", { class: "code-box" }, h("div", { class: "code-head" }, h("span", {}, name),
      h("button", { type: "button", class: "quiet", "aria-label": t("copy_code"), onclick: () => copy(code) }, icon("copy"), t("copy"))));
    pre.replaceWith(box);
    box.append(pre);
  }
  for (const box of $$("div.table, div.formula, span.formula, pre.plain", root)) { box.setAttribute("role", "region"); box.setAttribute("aria-label", t(box.className === "table" ? "table" : box.className === "formula" ? "formula" : "message")); }
  explain(root, article);
}

function before(turn, live, view) {
  const found = [];
  if (live?.searching && !live.sources) found.push(h("p", { class: "doing" }, icon("globe"), t("searching", { query: live.searching })));
  const results = new Map(turn.parts.filter((part) => part.type === "tool_result").map((part) => [part.call_id, part]));
  const calls = live ? [...live.calls.values()] : turn.parts.filter((part) => part.type === "tool_call")
    .map((call) => ({ call, state: results.has(call.id) ? "done" : "failed", text: results.get(call.id)?.text ?? "" }));
  for (const one of calls) found.push(callElement(one, turn, view));
  if (turn.state === "writing" && !turn.html && !(live?.searching && !live.sources) && ![...(live?.calls.values() ?? [])].some((one) => one.state === "waiting")) {
    found.push(h("p", { class: "doing dots", "aria-hidden": "true" }, h("span"), h("span"), h("span")));
  }
  return found;
}

function callElement({ call, state, text, always }, turn, view) {
  const asks = state === "waiting";
  const decide = (allow, forever) => view.act.approve(turn, call, allow, forever);
  return h("details", { class: `call ${state}`, open: asks },
    h("summary", {}, icon("tool"), h("code", {}, call.name), h("span", { class: "where" }, t(`call_${state}`))),
    asks ? h("p", {}, t("call_asks")) : null,
    h("p", { class: "where" }, t("call_input")), h("pre", { tabindex: "0" }, pretty(call.arguments)),
    text ? [h("p", { class: "where" }, t("call_output")), h("pre", { tabindex: "0" }, text)] : null,
    asks ? h("div", { class: "buttons" },
      h("button", { type: "button", onclick: () => decide(false, false) }, t("refuse")),
      always === false ? null : h("button", { type: "button", onclick: () => decide(true, true) }, t("always")),
      h("button", { type: "button", class: "primary", onclick: () => decide(true, false) }, t("allow"))) : null);
}

function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

function ending(turn) {
  if (turn.state === "failed") return h("p", { class: "ending bad" }, icon("warn"), turn.details.error ? t("failed_why", { why: turn.details.error }) : t("failed"));
  if (turn.state === "stopped") return h("p", { class: "ending" }, t("stopped_here"));
  if (turn.state === "done" && turn.details.finish_reason === "length") return h("p", { class: "ending" }, t("cut_here"));
  return null;
}

function actions(turn, view) {
  const { act } = view;
  const button = (name, label, todo, key) => iconButton(name, label, todo, { dataset: { do: key } });
  const text = textOf(turn).trim();
  const made = [versions(turn, view), button("copy", t("copy"), () => copy(text), "copy")];
  if (turn.role === "user") made.push(button("edit", t("edit"), () => edit(turn, view), "edit"));
  else {
    made.push(button("again", t("regenerate"), () => act.regenerate(turn), "again"));
    const cut = turn.state === "stopped" || turn.state === "failed" || turn.details.finish_reason === "length";
    if (cut) made.push(h("button", { type: "button", class: "quiet", dataset: { do: "continue" }, onclick: () => act.goOn(turn) }, icon("play"), t("go_on")));
    if (view.state.n_experts) made.push(button("grid", t("experts"), () => act.atlas(turn), "atlas"));
  }
  return h("div", { class: "actions" }, made);
}

/** ‹ 2/3 › */
function versions(turn, view) {
  const all = view.tree.versions(turn);
  if (all.length < 2) return null;
  const at = all.indexOf(turn);
  const go = (to) => view.act.select(all[to]);
  return h("span", { class: "versions", role: "group", "aria-label": t("version", { i: at + 1, n: all.length }) },
    iconButton("left", t("previous_version"), () => go(at - 1), { disabled: at === 0, dataset: { do: "left" } }),
    h("span", { "aria-hidden": "true" }, `${number(at + 1)}/${number(all.length)}`),
    iconButton("right", t("next_version"), () => go(at + 1), { disabled: at === all.length - 1, dataset: { do: "right" } }));
}

/** Figures of an answer: while it is written from what came so far, then the server's own. */
function readout(turn, live, view) {
  const stats = turn.details.stats;
  const parts = [];
  if (stats) {
    if (stats.tokens_s) parts.push(t("per_second", { n: number(stats.tokens_s, stats.tokens_s < 10 ? 1 : 0) }));
    if (stats.first_token_s !== undefined) parts.push(t("first_token", { n: number(stats.first_token_s, 2) }));
    if (stats.tokens !== undefined) parts.push(t("n_tokens", { n: stats.tokens }));
    const asked = (stats.expert_hits ?? 0) + (stats.expert_misses ?? 0);
    if (asked) parts.push(t("cache", { n: percent(stats.expert_hits / asked) }));
  } else if (live?.first) {
    const seconds = (performance.now() - live.first) / 1000;
    const n = live.tokens.length || live.deltas;
    if (seconds > 0.5) parts.push(t("per_second", { n: number(n / seconds, n / seconds < 10 ? 1 : 0) }));
    parts.push(t("first_token", { n: number((live.first - live.began) / 1000, 2) }), t("n_tokens", { n }));
  }
  const line = h("p", { class: "readout" }, parts.join(" · "));
  const hash = turn.details.prompt_sha256;
  if (hash && turn.state !== "writing") {
    line.append(parts.length ? " · " : "", h("button", { type: "button", class: "link", title: t("prompt_title", { hash }), onclick: () => view.act.prompts(hash) },
      t("prompt", { hash: String(hash).slice(0, 8) })));
  } else if (stats && turn.state !== "writing") {
    line.append(" · ", h("span", { title: t("no_prompt_title") }, t("no_prompt")));
  }
  return line;
}

/** Edit a message where it stands: sending makes a new branch, the old one stays. */
export function edit(turn, view) {
  const article = articleOf(turn.id);
  if (!article || $("form.edit", article)) return;
  const field = h("textarea", { "aria-label": t("edit_message"), rows: 3, maxlength: 1000000, value: textOf(turn) });
  const close = () => { paintTurn(turn, view); $('[data-do="edit"]', articleOf(turn.id))?.focus(); };
  const send = () => { if (field.value.trim()) view.act.edit(turn, field.value); };
  const form = h("form", { class: "edit", onsubmit: (event) => { event.preventDefault(); send(); } }, field,
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: close }, t("cancel")), h("button", { type: "submit", class: "primary" }, t("send_edit"))));
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); close(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  article.classList.add("editing");
  $(".body", article).replaceWith(form);
  $("footer", article).remove();
  field.style.height = `${Math.min(field.scrollHeight + 4, 320)}px`;
  field.focus();
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    note(t("copied"));
  } catch {
    note(t("copy_failed"), "bad");
  }
}

function greeting(view) {
  const { state, act } = view;
  const ideas = ["idea_moe", "idea_code", "idea_trip", ...(state.live.configured ? ["idea_news"] : [])];
  return h("section", { class: "greeting" }, logo(88), h("h2", {}, t("greeting")),
    h("p", {}, t(state.live.configured && !state.offline ? "greeting_live" : "greeting_text", { model: state.model })),
    state.random_weights ? h("p", { class: "random" }, icon("warn"), h("span", {}, t("random"))) : null,
    h("ul", { class: "ideas" }, ideas.map((key) => h("li", {}, h("button", { type: "button", onclick: () => act.suggest(t(key), key === "idea_news") }, t(key))))));
}
