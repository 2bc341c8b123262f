// Questions, menus and short notes.

import { $, h, icon, iconButton } from "./dom.js";
import { t } from "./words.js";

/** A dialog with a heading; closes with Esc, its cross, or a click beside it. Resolves with its returnValue. */
export function dialog({ title, body, foot = [], name = "" }) {
  const id = `d${Math.random().toString(36).slice(2)}`;
  const el = h("dialog", { class: name, "aria-labelledby": id },
    h("div", { class: "sheet" },
      h("header", {}, h("h2", { id }, title), iconButton("close", t("close"), () => el.close(""))),
      h("div", { class: "content" }, body),
      foot.length ? h("footer", {}, foot) : null));
  el.addEventListener("click", (event) => { if (event.target === el) el.close(""); });
  document.body.append(el);
  el.showModal();
  notesToTheTop();
  const closed = new Promise((resolve) => {
    el.addEventListener("close", () => { resolve(el.returnValue); notesToTheTop(); el.remove(); }, { once: true });
  });
  return { el, closed };
}

/** Ask for a text, or (without value) for a yes. Resolves with the text, true, or null. */
export async function ask({ title, text, value, label, ok, danger = false }) {
  const input = value === undefined ? null : h("input", { type: "text", value, maxlength: 200, required: true, autocomplete: "off" });
  const form = h("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); made.el.close("ok"); } },
    text ? h("p", {}, text) : null,
    input ? h("label", { class: "stack" }, label, input) : null,
    h("div", { class: "buttons" },
      h("button", { type: "button", onclick: () => made.el.close("") }, t("cancel")),
      h("button", { type: "submit", class: danger ? "danger" : "primary" }, ok)));
  const made = dialog({ title, body: form, name: "small" });
  input?.select();
  const answer = await made.closed;
  if (answer !== "ok") return null;
  return input ? input.value.trim() || null : true;
}

/** A list of actions beside a button: [[icon, label, action, danger?], ...]. Arrows move, Esc closes. */
export function menu(button, items) {
  const el = h("div", { class: "menu", role: "menu", popover: "auto" }, items.map(([name, label, action, danger]) =>
    h("button", { type: "button", role: "menuitem", class: danger ? "danger" : null, onclick: () => { el.hidePopover(); action(); } }, icon(name), label)));
  const rows = [...el.children];
  el.addEventListener("keydown", (event) => {
    const at = rows.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    rows[(to + rows.length) % rows.length].focus();
  });
  el.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    button.setAttribute("aria-expanded", "false");
    if (el.contains(document.activeElement) || document.activeElement === document.body) button.focus();
    el.remove();
  });
  document.body.append(el);
  el.showPopover();
  const place = button.getBoundingClientRect();
  el.style.left = `${Math.max(8, Math.min(place.left, innerWidth - el.offsetWidth - 8))}px`;
  el.style.top = `${place.bottom + el.offsetHeight + 8 > innerHeight ? Math.max(8, place.top - el.offsetHeight - 4) : place.bottom + 4}px`;
  button.setAttribute("aria-expanded", "true");
  rows[0].focus();
}

const SHOWN_MS = 4500;

/** What is outside of a dialog that is open lies behind it and is not read out: notes go into the topmost one. */
function notesToTheTop() {
  ([...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body).append($("#toasts"));
}

/** A short note near the upper edge; it is read out. */
export function note(text, kind = "") {
  const el = h("div", { class: `toast ${kind}` }, text);
  $("#toasts").append(el);
  setTimeout(() => el.remove(), SHOWN_MS);
}

export const failed = (error) => note(t("error", { message: error.message }), "bad");
