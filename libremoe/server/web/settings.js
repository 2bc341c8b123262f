// The settings: looks, privacy, live sources, prompts, data, keys.

import { $, h } from "./dom.js";
import * as api from "./api.js";
import { ask, dialog, failed, note } from "./dialogs.js";
import { keep, kept } from "./kept.js";
import { conversations } from "./sidebar.js";
import { day, errand, kindOf, moment, t } from "./words.js";

const KINDS = ["feed", "page", "search", "wikipedia", "mastodon", "bluesky", "x"];

/** view: {state, act}. part: which tab is shown first. */
export function openSettings(view, part = "general") {
  const parts = { general, privacy, live_sources: sources, prompts, data, keyboard, about };
  const panel = h("div", { class: "panel", role: "tabpanel", id: "panel", tabindex: "0" });
  const tabs = Object.keys(parts).map((name) => h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel",
    onclick: () => choose(name) }, t(name)));
  const bar = h("div", { class: "tabs", role: "tablist", "aria-label": t("settings"), "aria-orientation": "vertical" }, tabs);
  bar.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length];
    tab.focus();
    tab.click();
  });
  const again = (name) => {
    if (!made.el.open) return;  // closed by the person while something was on its way
    made.el.close("");
    openSettings(view, name);
  };
  function choose(name) {
    for (const tab of tabs) {
      const chosen = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
      if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    panel.setAttribute("aria-labelledby", `tab-${name}`);
    panel.replaceChildren(...[parts[name]({ ...view, again })].flat());
  }
  const made = dialog({ title: t("settings"), body: h("div", { class: "settings" }, bar, panel), name: "big" });
  choose(part);
  $(`#tab-${part}`).focus();
}

const choice = (name, value, chosen, label, onchange) => h("label", { class: "choice" },
  h("input", { type: "radio", name, value, checked: chosen === value, onchange: () => onchange(value) }), h("span", {}, label));

function general({ act, again }) {
  const set = (changes) => { keep(changes); act.chosen(); };
  const amount = (name, step, most) => h("label", { class: "stack" }, t(name), h("input", { type: "number", min: step, max: most, step, value: kept[name] ?? "",
    placeholder: t(`${name}_auto`), onchange: (event) => set({ [name]: event.target.checkValidity() && event.target.value !== "" ? Number(event.target.value) : null }) }));
  return [
    h("fieldset", {}, h("legend", {}, t("theme")), ["system", "light", "dark"].map((name) => choice("theme", name, kept.theme, t(name), (theme) => set({ theme })))),
    h("fieldset", {}, h("legend", {}, t("language")), [["en", "English"], ["fr", "Français"]].map(([name, label]) =>
      choice("language", name, document.documentElement.lang, h("span", { lang: name }, label), (language) => { set({ language }); again("general"); }))),
    amount("temperature", 0.1, 2), amount("max_tokens", 1, 1000000),
  ];
}

const loaded = (read, shown) => {
  const box = h("div", { "aria-busy": "true" }, h("p", { class: "doing dots" }, h("span"), h("span"), h("span")));
  read().then((found) => box.replaceChildren(...[shown(found)].flat().filter(Boolean)),
    (error) => box.replaceChildren(h("p", { class: "empty" }, error.status === 404 ? t("no_live") : t("error", { message: error.message }))))
    .finally(() => box.removeAttribute("aria-busy"));
  return box;
};

function privacy({ state, act }) {
  const off = h("input", { type: "checkbox", role: "switch", checked: state.offline, onchange: async () => {
    try { state.offline = (await api.post("/api/offline", { offline: off.checked })).offline; } catch (error) { failed(error); }
    off.checked = state.offline;
    act.chosen();
  } });
  return [
    h("label", { class: "switch" }, off, h("span", {}, h("strong", {}, t("offline")), h("span", { class: "where" }, t("offline_text")))),
    h("h3", {}, t("ledger")), h("p", { class: "where" }, t("ledger_text")),
    loaded(() => api.get("/api/ledger"), ({ entries }) => (entries.length ? h("div", { class: "table", tabindex: "0", role: "region", "aria-label": t("ledger") },
      h("table", {}, h("thead", {}, h("tr", {}, ["when", "host", "why", "what"].map((name) => h("th", { scope: "col" }, t(name))))),
        h("tbody", {}, entries.map((one) => h("tr", {}, h("td", {}, moment(one.time)), h("td", {}, one.host),
          h("td", {}, errand(one.why)), h("td", { class: "mono" }, one.sent)))))) : h("p", { class: "empty" }, t("ledger_empty")))),
  ];
}

function sources({ state, act, again }) {
  const field = h("input", { type: "text", required: true, maxlength: 2048, autocomplete: "off", spellcheck: "false" });
  const kind = h("select", {}, h("option", { value: "" }, t("kind_auto")), KINDS.map((name) => h("option", { value: name }, kindOf(name))));
  const changed = async (words) => {
    note(words);
    await act.reload();
    again("live_sources");
  };
  const add = async (event) => {
    event.preventDefault();
    try {
      const { source } = await api.post("/api/sources", { url: field.value.trim(), ...(kind.value ? { kind: kind.value } : {}) });
      await changed(t("source_added", { name: source.name ?? field.value }));
    } catch (error) { failed(error); }
  };
  const take = async (name) => {
    try {
      await api.erase(`/api/sources/${encodeURIComponent(name)}`);
      await changed(t("source_removed", { name }));
    } catch (error) { failed(error); }
  };
  return [
    h("p", { class: "where" }, t("sources_text")),
    loaded(() => api.get("/api/sources"), ({ sources: found }) => [
      found.length ? h("ul", { class: "list" }, found.map((one) => h("li", {}, h("span", {}, h("strong", {}, one.name), h("span", { class: "where" }, [kindOf(one.kind), one.url].filter(Boolean).join(" · "))),
        h("button", { type: "button", "aria-label": t("remove_source", { name: one.name }), onclick: () => take(one.name) }, t("remove"))))) : h("p", { class: "empty" }, t("sources_empty")),
      h("form", { class: "inline", onsubmit: add }, h("h3", {}, t("add_source")), h("label", { class: "stack" }, t("kind"), kind), h("label", { class: "stack grow" }, t("address"), field),
        h("button", { type: "submit", class: "primary" }, t("add"))),
    ]),
  ];
}

function prompts({ state, hash }) {
  const language = document.documentElement.lang;
  const version = (one) => [h("p", { class: "where mono" }, one.sha256), one.note ? h("p", { class: "where" }, one.note) : null, h("pre", { class: "words", tabindex: "0" }, one.text)];
  return [h("p", { class: "where" }, t("prompts_text")), loaded(() => api.get("/prompts"), ({ prompts: found }) => found.filter((one) => one.language === language).map((one) =>
    h("details", { class: "prompt", open: one.versions.some((each) => each.sha256 === hash) || one.persona === kept.persona },
      h("summary", {}, h("strong", {}, one.title), h("span", { class: "where" }, one.own ? t("own") : t("in_use", { when: day(one.versions[0].since) }))),
      version(one.versions[0]), one.versions.slice(1).map((old) => h("details", {}, h("summary", {}, t("earlier", { when: day(old.since) })), version(old))))))];
}

function data({ act }) {
  const file = h("input", { type: "file", id: "file", accept: ".json,.zip", class: "unseen", onchange: async () => {
    const [one] = file.files;
    if (!one) return;
    note(t("importing", { name: one.name }));
    try {
      const { imported } = await api.upload("/api/import", one);
      note(t("imported", { n: imported }));
      await act.refresh();
    } catch (error) { note(t("import_failed", { name: one.name, message: error.message }), "bad"); }
    file.value = "";
  } });
  const all = async () => {
    const sure = await ask({ title: t("erase_all"), text: t("erase_all_text", { n: conversations().length }), ok: t("erase_all"), danger: true });
    if (!sure) return;
    try {
      await api.erase("/api/conversations");
      note(t("erased_all"));
      act.removedAll();
    } catch (error) { failed(error); }
  };
  return [h("h3", {}, t("import")), h("p", { class: "where" }, t("import_text")), file, h("label", { for: "file", class: "button" }, t("choose_file")),
    h("h3", {}, t("erase_all")), h("button", { type: "button", class: "danger", onclick: all }, t("erase_all"))];
}

const KEYS = [["k_send", "Enter"], ["k_line", "Shift+Enter"], ["k_stop", "Esc"], ["k_new", "Alt+N"], ["k_search", "Ctrl+K"], ["k_message", "/"], ["k_list", "Ctrl+B"],
  ["k_edit", "↑"], ["k_copy", "Alt+C"], ["k_again", "Alt+R"], ["k_version", "Alt+←, Alt+→"], ["k_atlas", "Alt+E"], ["k_settings", "Ctrl+,"], ["k_keys", "?"]];

const NAMED = { Enter: "key_enter", Shift: "key_shift", Esc: "key_esc" }; // the others are called the same in French

function keyboard() {
  return h("dl", { class: "keys" }, KEYS.map(([key, keys]) => [h("dt", {}, t(key)), h("dd", {}, keys.split(", ").map((combo, i) =>
    [i ? ` ${t("or")} ` : "", combo.split("+").map((one) => h("kbd", {}, one in NAMED ? t(NAMED[one]) : one))]))]));
}

function about({ state }) {
  const rows = [["model", state.model], ["context", t("context_n", { n: state.context_len })]];
  if (state.n_layers) rows.push(["layers_name", state.n_experts ? t("layers_experts", { layers: state.n_layers, experts: state.n_experts }) : t("dense", { layers: state.n_layers })]);
  if (state.random_weights) rows.push(["weights", t("weights_random")]);
  if (state.keeps !== undefined) rows.push(["storage", t(state.keeps ? "kept_on_disk" : "kept_in_memory")]);
  return [h("dl", { class: "facts" }, rows.map(([key, value]) => [h("dt", {}, t(key)), h("dd", {}, value)])),
    state.keys ? h("form", { method: "post", action: "/logout" }, h("button", { type: "submit" }, t("log_out"))) : ""];
}
