// The list of conversations: by day, searched, renamed, exported, deleted.

import { $, h, iconButton } from "./dom.js";
import * as api from "./api.js";
import { ask, failed, menu, note } from "./dialogs.js";
import { t } from "./words.js";

const TYPING_MS = 200;
const DAY_S = 86400;
const list = { conversations: [], hits: null, query: "", current: null, act: null };

export function openSidebar(act) {
  list.act = act;
  let timer = 0;
  $("#search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => refresh().catch(failed), TYPING_MS);
  });
  $("#search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") { event.preventDefault(); $("#conversations a")?.focus(); }
    if (event.key === "Escape" && event.target.value) { event.stopPropagation(); event.target.value = ""; refresh().catch(failed); }
  });
  $("#conversations").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const links = [...$("#conversations").querySelectorAll("a")];
    const to = links.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    (links[to] ?? (to < 0 ? $("#search") : links.at(-1)))?.focus();
  });
}

export const conversations = () => list.conversations;

/** Read the list again; words in the search field choose from it. */
export async function refresh() {
  const query = $("#search").value.trim();
  const found = await api.get(`/api/conversations${query ? `?query=${encodeURIComponent(query)}` : ""}`);
  if (query !== $("#search").value.trim()) return; // older than what is typed
  Object.assign(list, { conversations: found.conversations, hits: query ? found.hits ?? [] : null, query });
  paint();
  list.act.listed();
}

export function mark(id) {
  list.current = id;
  paint();
}

export function paint() {
  const nav = $("#conversations");
  nav.setAttribute("aria-label", t("conversations"));
  const held = document.activeElement?.closest?.("#conversations a")?.getAttribute("href");
  nav.replaceChildren(...(list.hits ? hits() : days()));
  if (held) [...nav.querySelectorAll("a")].find((a) => a.getAttribute("href") === held)?.focus();
}

function hits() {
  if (!list.hits.length) return [h("p", { class: "empty" }, t("no_hits", { query: list.query }))];
  return [h("h2", {}, t("hits", { n: list.hits.length })), h("ul", {}, list.hits.map((hit) =>
    h("li", {}, h("a", { class: "hit", href: `#/c/${hit.conversation_id}${hit.turn_id ? `/${hit.turn_id}` : ""}` },
      h("strong", {}, hit.title || t("untitled")), h("span", {}, hit.snippet)))))];
}

function days() {
  if (!list.conversations.length) return [h("p", { class: "empty" }, t("no_conversations"))];
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  const groups = { today: [], yesterday: [], week: [], older: [] };
  for (const one of list.conversations) {
    const age = midnight - one.updated;
    groups[age <= 0 ? "today" : age <= DAY_S ? "yesterday" : age <= 6 * DAY_S ? "week" : "older"].push(one);
  }
  return Object.entries(groups).filter(([, found]) => found.length).map(([name, found]) =>
    h("section", {}, h("h2", {}, t(name)), h("ul", {}, found.map(row))));
}

function row(one) {
  const title = one.title || t("untitled");
  const more = iconButton("more", t("more_of", { title }), () => actions(one, more), { "aria-haspopup": "menu", "aria-expanded": "false" });
  return h("li", {}, h("a", { href: `#/c/${one.id}`, title, "aria-current": one.id === list.current ? "page" : null }, title), more);
}

/** What can be done with a conversation. */
export function actions(one, button) {
  menu(button, [
    ["edit", t("rename"), () => rename(one)],
    ["file", t("export_markdown"), () => download(one, "markdown")],
    ["file", t("export_html"), () => download(one, "html")],
    ["file", t("export_json"), () => download(one, "json")],
    ["bin", t("remove"), () => remove(one), true],
  ]);
}

async function rename(one) {
  const title = await ask({ title: t("rename_title"), value: one.title, label: t("name"), ok: t("save") });
  if (title === null) return;
  try {
    await api.patch(`/api/conversations/${one.id}`, { title });
    list.act.renamed(one.id, title);
    await refresh();
  } catch (error) { failed(error); }
}

function download(one, format) {
  const link = h("a", { href: `/api/conversations/${one.id}/export?format=${format}`, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

async function remove(one) {
  const sure = await ask({ title: t("remove_title"), text: t("remove_text", { title: one.title || t("untitled") }), ok: t("remove"), danger: true });
  if (!sure) return;
  try {
    await api.erase(`/api/conversations/${one.id}`);
    note(t("removed"));
    list.act.removed(one.id);
    await refresh();
  } catch (error) { failed(error); }
}

