// The page: what is open, what is on its way, and what buttons and keys do.

import { $, $$, h, icon, iconButton, logo } from "./dom.js";
import * as api from "./api.js";
import { closeAtlas, isOpen, openAtlas } from "./atlas.js";
import { failed, note } from "./dialogs.js";
import { follower, seen } from "./follow.js";
import { keep, kept } from "./kept.js";
import { openSettings } from "./settings.js";
import * as sidebar from "./sidebar.js";
import { articleOf, copy, edit, paintAround, paintThread } from "./thread.js";
import { textOf, Tree } from "./tree.js";
import { t } from "./words.js";

const NARROW = matchMedia("(max-width: 52rem)");
const view = { state: null, tree: null, live: new Map(), act: {} };
const { act } = view;

// Answers on their way

const follow = follower(view, { buttons, reopen, stick, toEnd });

const options = () => ({
  live: kept.live && view.state.live.configured, tools: kept.tools, persona: kept.persona, language: document.documentElement.lang,
  ...(kept.temperature === null ? {} : { temperature: kept.temperature }), ...(kept.max_tokens === null ? {} : { max_tokens: kept.max_tokens }),
});

const writing = (tree = view.tree) => (tree ? [...view.live].filter(([, live]) => live.tree === tree).map(([id]) => id) : []);

async function send(text, parentId) {
  const begun = view.tree;
  const tree = begun ?? await begin();
  await follow(tree, api.events("POST", `/api/conversations/${tree.id}/turns`, { text, parent_id: parentId, ...options() }));
}

async function begin() {
  const conversation = await api.post("/api/conversations", { persona: kept.persona, language: document.documentElement.lang });
  view.tree = new Tree({ conversation, turns: [], leaf_id: null });
  history.replaceState(null, "", `#/c/${conversation.id}`);
  sidebar.mark(conversation.id);
  return view.tree;
}

Object.assign(act, {
  regenerate: (turn) => run(() => follow(view.tree, api.events("POST", `/api/conversations/${view.tree.id}/regenerate`, { turn_id: turn.id, ...options() }))),
  goOn: (turn) => run(() => follow(view.tree, api.events("POST", `/api/conversations/${view.tree.id}/continue`, { turn_id: turn.id, ...options() }))),
  edit: (turn, text) => run(() => send(text, turn.parent_id)),
  approve: async (turn, call, allow, always) => {
    const one = view.live.get(turn.id)?.calls.get(call.id);
    if (one) one.state = "running";
    paintAround(turn, view);
    try { await api.post(`/api/turns/${turn.id}/approve`, { call_id: call.id, allow, always }); } catch (error) { failed(error); }
  },
  select: async (turn) => {
    const { tree } = view;
    tree.leaf = tree.end(turn).id;
    const held = document.activeElement?.dataset?.do;
    paintThread(view);
    if (held) $(`[data-do="${held}"]`, articleOf(turn.id))?.focus();
    buttons();
    try { await api.patch(`/api/conversations/${tree.id}`, { leaf_id: tree.leaf }); } catch (error) { failed(error); }
  },
  atlas: (turn) => openAtlas(turn, view.live.get(turn.id)?.tokens ?? seen.get(turn.id) ?? [], view.state),
  prompts: (hash) => openSettings({ ...view, hash }, "prompts"),
  suggest: (text, live) => {
    if (live) { keep({ live: true }); words(); }
    $("#message").value = text;
    grow();
    $("#message").focus();
  },
  listed: () => heading(),
  renamed: (id, title) => { if (view.tree?.id === id) { view.tree.conversation.title = title; heading(); } },
  removed: (id) => { if (view.tree?.id === id) location.hash = "#/"; },
  removedAll: () => { location.hash = "#/"; sidebar.refresh().catch(failed); },
  refresh: () => sidebar.refresh(),
  reload: async () => { view.state = await api.get("/api/state"); words(); },
  chosen: () => { look(); words(); if (view.tree || view.state) paintThread(view); },
});

async function run(todo) {
  try { await todo(); } catch (error) { trouble(error); } finally { buttons(); }
}

/** An answer could not be asked for: say why, and give back what was written. */
function trouble(error, text = "") {
  const field = $("#message");
  if (text && !field.value) { field.value = text; grow(); }
  const box = $("#notice");
  box.replaceChildren(icon("warn"), h("span", {}, error instanceof TypeError ? t("no_server") : t("error", { message: error.message })),
    iconButton("close", t("close"), () => { box.hidden = true; }));
  box.hidden = false;
  if (view.tree) reopen(view.tree).catch(() => {});
}

async function stop() {
  const [id] = writing();
  if (!id) return false;
  try { await api.post(`/api/turns/${id}/stop`); } catch (error) { if (error.status !== 404) failed(error); }
  return true;
}

// What is open

let opened = 0; // the newest request to open something: an older one that comes late changes nothing

async function open(id, turnId) {
  opened += 1;
  const mine = opened;
  const found = await api.get(`/api/conversations/${id}`);
  if (mine !== opened) return;
  const running = [...view.live.values()].find((live) => live.tree.id === id);
  view.tree = running ? running.tree : new Tree(found);
  if (turnId && view.tree.turns.has(turnId)) view.tree.leaf = view.tree.end(view.tree.turns.get(turnId)).id;
  const { persona } = view.tree.conversation;
  if (view.state.personas.some((one) => one.name === persona)) keep({ persona });
  shown();
  if (turnId) { const article = articleOf(turnId); article?.scrollIntoView({ block: "start" }); article?.classList.add("flash"); }
  for (const turn of view.tree.turns.values()) {
    if (turn.state === "writing" && !view.live.has(turn.id)) run(() => follow(view.tree, api.events("GET", `/api/turns/${turn.id}/events`)));
  }
}

async function reopen(tree) {
  const found = await api.get(`/api/conversations/${tree.id}`);
  for (const turn of found.turns) tree.put(turn);
  tree.leaf = found.leaf_id ?? tree.leaf;
  if (view.tree === tree) paintThread(view);
  buttons();
}

function shown() {
  closeAtlas();
  $("#notice").hidden = true;
  sidebar.mark(view.tree?.id ?? null);
  words();
  paintThread(view);
  toEnd(true);
  buttons();
  drawer(false);
}

async function route() {
  const [, id, turnId] = location.hash.match(/^#\/c\/([\w-]+)(?:\/([\w-]+))?$/) ?? [];
  if (!id) { opened += 1; view.tree = null; shown(); return; }
  if (view.tree?.id === id && !turnId) return;
  try { await open(id, turnId); } catch (error) {
    if (error.status !== 404) { failed(error); return; }
    note(t("gone"), "bad");
    location.hash = "#/";
  }
}

// The frame around the thread

function heading() {
  const listed = sidebar.conversations().find((one) => one.id === view.tree?.id);
  if (listed) view.tree.conversation.title = listed.title;
  const title = view.tree?.conversation.title;
  $("#title").textContent = title || (view.tree ? t("untitled") : t("new_chat"));
  document.title = title ? `${title} – libremoe` : "libremoe";
  moreOf(title || t("untitled"));
}

/** The actions of the open conversation, a new one's too as soon as it has begun. */
function moreOf(title) {
  let more = $("#more");
  if (!view.tree) { more?.remove(); return; }
  if (!more) {
    more = iconButton("more", "", () => sidebar.actions(view.tree.conversation, more), { id: "more", "aria-haspopup": "menu", "aria-expanded": "false" });
    $("#top-tools").append(more);
  }
  more.title = t("more_of", { title });
  more.setAttribute("aria-label", more.title);
}

function words() {
  const { state } = view;
  for (const el of $$("[data-i18n]")) el.textContent = t(el.dataset.i18n);
  $("#new").replaceChildren(icon("plus"), t("new_chat"));
  $("#search").placeholder = t("search");
  $("#search").setAttribute("aria-label", t("search"));
  $("#open-settings").replaceChildren(icon("sliders"), t("settings"));
  $("#sidebar").setAttribute("aria-label", t("conversations"));
  for (const [id, name, key] of [["#open-sidebar", "menu", "open_list"], ["#close-sidebar", "close", "close_list"], ["#to-end", "down", "to_end"]]) {
    $(id).replaceChildren(icon(name));
    $(id).setAttribute("aria-label", t(key));
    $(id).title = t(key);
  }
  const field = $("#message");
  field.placeholder = t("write_here");
  $("#hint").textContent = t("hint");
  $("#offline-badge").hidden = !state.offline || !state.live.configured;
  $("#offline-badge").replaceChildren(icon("plane"), t("offline_on"));
  const top = $("#top-tools");
  top.replaceChildren(h("span", { class: "model", title: state.model }, state.model));
  if (state.n_experts) top.append(iconButton("grid", t("atlas"), toggleAtlas, { id: "atlas-button" }));
  composerTools();
  heading();
  sidebar.paint();
}

function composerTools() {
  const { state } = view;
  const lang = document.documentElement.lang;
  const own = (value) => (value && typeof value === "object" ? value[lang] ?? value.en : value ?? "");
  const persona = h("select", { id: "persona", "aria-label": t("persona"), onchange: async () => {
    keep({ persona: persona.value });
    persona.title = own(state.personas.find((one) => one.name === persona.value)?.description);
    if (view.tree) await api.patch(`/api/conversations/${view.tree.id}`, { persona: persona.value }).catch(failed);
  } }, state.personas.map((one) => h("option", { value: one.name, title: own(one.description) }, own(one.title) || one.name)));
  persona.value = state.personas.some((one) => one.name === kept.persona) ? kept.persona : state.personas[0]?.name;
  const toggle = (name, sign, words, disabled) => h("button", { type: "button", class: "toggle", id: `toggle-${name}`, "aria-pressed": String(kept[name] && !disabled), "aria-disabled": disabled ? "true" : null, title: words,
    onclick: () => {
      if (disabled) { note(words); return; }
      keep({ [name]: !kept[name] });
      composerTools();
      $(`#toggle-${name}`).focus();
    } }, icon(sign), h("span", {}, t(name)));
  const noLive = !state.live.configured;
  const live = noLive ? "live_none" : !kept.live ? "live_off" : state.offline ? "live_archive" : "live_on";
  const go = h("button", { type: "submit", class: "send", id: "send" });
  $("#composer-tools").replaceChildren(persona,
    toggle("live", "globe", t(live), noLive),
    ...(state.tools.length ? [toggle("tools", "tool", t(kept.tools ? "tools_on" : "tools_off"), false)] : []), h("span", { class: "grow" }), go);
  buttons();
}

/** The one button that sends or stops. */
function buttons() {
  const go = $("#send");
  if (!go) return;
  const busy = writing().length > 0;
  const name = t(busy ? "stop" : "send");
  if (go.dataset.busy !== String(busy) || go.getAttribute("aria-label") !== name) {
    go.dataset.busy = busy;
    go.replaceChildren(icon(busy ? "stop" : "up"));
    go.setAttribute("aria-label", name);
    go.title = name;
  }
  go.disabled = !busy && !$("#message").value.trim();
  heading();
}

function look() {
  const root = document.documentElement;
  if (kept.theme === "system") delete root.dataset.theme; else root.dataset.theme = kept.theme;
  if (kept.language) root.lang = kept.language;
}

function grow() {
  const field = $("#message");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight * 0.4)}px`;
  buttons();
}

const scroller = $("#scroll");
const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 90;
function toEnd(now) { if (now || atEnd()) scroller.scrollTop = scroller.scrollHeight; }
function stick(change) { const was = atEnd(); change(); if (was) toEnd(true); }

function drawer(wanted) {
  const root = document.documentElement;
  if (NARROW.matches) root.dataset.sidebar = wanted ? "open" : "closed";
  else if (wanted !== undefined && root.dataset.sidebar === undefined) return;
  $("#veil").hidden = !(NARROW.matches && root.dataset.sidebar === "open");
  $("#sidebar").inert = root.dataset.sidebar === "closed";
}

function toggleSidebar() {
  const root = document.documentElement;
  const closed = root.dataset.sidebar === "closed" || (NARROW.matches && root.dataset.sidebar !== "open");
  root.dataset.sidebar = closed ? "open" : "closed";
  if (!NARROW.matches) keep({ sidebar: closed });
  $("#veil").hidden = !(NARROW.matches && closed);
  $("#sidebar").inert = !closed;
  (closed ? $("#new") : $("#open-sidebar")).focus();
}

function toggleAtlas() {
  if (isOpen()) { closeAtlas(); $("#atlas-button")?.focus(); return; }
  const turn = view.tree?.last("assistant") ?? null;
  act.atlas(turn ?? { id: "", details: {} });
  $("#side button").focus();
}

// Keys

function onkey(event) {
  if (event.isComposing || $("dialog[open]")) return;
  const typing = event.target.matches?.("input, textarea, select");
  const last = () => view.tree?.last("assistant");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const keys = {
    "Escape": () => (NARROW.matches && document.documentElement.dataset.sidebar === "open" ? toggleSidebar() : writing().length ? stop() : isOpen() ? closeAtlas() : undefined),
    "ctrl+k": () => { if ($("#sidebar").inert) toggleSidebar(); $("#search").focus(); },
    "ctrl+b": toggleSidebar, "ctrl+,": () => openSettings(view),
    "alt+n": () => $("#new").click(), "alt+e": toggleAtlas,
    "alt+c": () => last() && copy(textOf(last())),
    "alt+r": () => last() && !writing().length && act.regenerate(last()),
    "alt+ArrowLeft": () => version(-1), "alt+ArrowRight": () => version(1),
    ...(typing ? {} : { "/": () => $("#message").focus(), "?": () => openSettings(view, "keyboard") }),
  };
  const todo = keys[`${event.ctrlKey || event.metaKey ? "ctrl+" : ""}${event.altKey ? "alt+" : ""}${key}`];
  if (!todo) return;
  event.preventDefault();
  todo();
}

function version(step) {
  const turn = view.tree?.path().findLast((one) => view.tree.versions(one).length > 1);
  const all = turn ? view.tree.versions(turn) : [];
  const to = all[all.indexOf(turn) + step];
  if (to) act.select(to);
}

function submit() {
  const field = $("#message");
  const text = field.value.trim();
  if (writing().length) { stop(); return; }
  if (!text) return;
  $("#notice").hidden = true;
  field.value = "";
  grow();
  send(text, view.tree?.leaf ?? null).catch((error) => trouble(error, text)).finally(buttons);
}

function wire() {
  $("#logo").append(logo(26));
  $("#composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  $("#message").addEventListener("input", grow);
  $("#message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!writing().length) submit(); }
    if (event.key === "?" && !event.target.value && event.ctrlKey) openSettings(view, "keyboard");
    if (event.key === "ArrowUp" && !event.target.value) {
      const mine = view.tree?.last("user");
      if (mine && !writing().length) { event.preventDefault(); edit(mine, view); }
    }
  });
  $("#new").addEventListener("click", () => { location.hash = "#/"; if (!view.tree) shown(); $("#message").focus(); });
  $("#open-sidebar").addEventListener("click", toggleSidebar);
  $("#close-sidebar").addEventListener("click", toggleSidebar);
  $("#veil").addEventListener("click", toggleSidebar);
  $("#open-settings").addEventListener("click", () => openSettings(view));
  $("#to-end").addEventListener("click", () => { toEnd(true); $("#message").focus(); });
  scroller.addEventListener("scroll", () => { $("#to-end").hidden = atEnd(); }, { passive: true });
  addEventListener("keydown", onkey);
  addEventListener("hashchange", route);
  NARROW.addEventListener("change", () => { delete document.documentElement.dataset.sidebar; if (!kept.sidebar && !NARROW.matches) document.documentElement.dataset.sidebar = "closed"; drawer(false); });
  sidebar.openSidebar(act);
}

async function start() {
  look();
  wire();
  for (let tries = 0; ; tries += 1) {
    try {
      view.state = await api.get("/api/state");
      break;
    } catch (error) {
      if (error.status === 401) return;
      const box = $("#notice");
      box.replaceChildren(icon("warn"), h("span", {}, error instanceof api.Refused ? t("error", { message: error.message }) : t("no_server")));
      box.hidden = false;
      await new Promise((wake) => setTimeout(wake, Math.min(500 * 2 ** tries, 8000)));
    }
  }
  $("#notice").hidden = true;
  words();
  drawer(false);
  await sidebar.refresh().catch(failed);
  await route();
  if (!NARROW.matches) $("#message").focus();
  document.documentElement.dataset.ready = "yes";
}

start();
