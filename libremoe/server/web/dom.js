// Making elements. Text is always text; HTML comes from the server's renderer alone and passes one gate, `trusted`.

const SVG = "http://www.w3.org/2000/svg";
const policy = window.trustedTypes ? window.trustedTypes.createPolicy("libremoe", { createHTML: (text) => text })
  : { createHTML: (text) => text };
// The server's allow-list (chat/markdown.py) is the rule; this is a second lock for what must never pass.
const REFUSED = new Set(["SCRIPT", "STYLE", "IFRAME", "FRAME", "OBJECT", "EMBED", "LINK", "META", "BASE", "FORM", "INPUT",
  "BUTTON", "IMG", "VIDEO", "AUDIO", "SVG", "TEMPLATE", "NOSCRIPT", "PORTAL"]);

export const $ = (selector, from = document) => from.querySelector(selector);
export const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];

/** h("p", {class: "x", onclick: f, "aria-label": "y", dataset: {id: 1}}, "text", element, null, [more]) */
export function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (name === "class") el.className = value;
    else if (name === "dataset") Object.assign(el.dataset, value);
    else if (name === "value") el.value = value;
    else el.setAttribute(name, value === true ? "" : String(value));
  }
  el.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return el;
}

/** A fragment of the server's rendered Markdown. */
export function trusted(html) {
  const template = document.createElement("template");
  template.innerHTML = policy.createHTML(html);
  for (const el of template.content.querySelectorAll("*")) {
    if (REFUSED.has(el.tagName.toUpperCase())) { el.remove(); continue; }
    for (const { name, value } of [...el.attributes]) {
      const bad = name.startsWith("on") || name === "style" || name === "src" || name === "srcset" || name === "id"
        || (name.endsWith("href") && !/^(https?:|mailto:|#)/i.test(value));
      if (bad) el.removeAttribute(name);
    }
    if (el.tagName === "A" && !el.getAttribute("href")?.startsWith("#")) {
      el.target = "_blank";
      el.rel = "noopener noreferrer nofollow";
    }
  }
  return template.content;
}

const ICONS = {
  plus: "M12 5v14M5 12h14", menu: "M4 7h16M4 12h16M4 17h10", close: "M6 6l12 12M18 6L6 18",
  more: "M5 12h.01M12 12h.01M19 12h.01", up: "M12 19V5M6 11l6-6 6 6", down: "M12 5v14M6 13l6 6 6-6", stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4", check: "M5 12.5l4.5 4.5L19 7.5", edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  again: "M19.5 12a7.5 7.5 0 1 1-2.3-5.4M19.5 3.5V8H15", left: "M14.5 6l-6 6 6 6", right: "M9.5 6l6 6-6 6",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5", file: "M12 4v11M7.5 11l4.5 4.5 4.5-4.500M5 20h14",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4", globe: "M12 3.500a8.5 8.5 0 1 0 0 17 8.5 8.5 0 0 0 0-17zM3.5 12h17M12 3.500c-5 5.5-5 11.5 0 17M12 3.500c5 5.5 5 11.5 0 17",
  tool: "M14.5 6.500a4 4 0 0 1 5-2.300l-2.700 2.700.3 2 2 .3 2.200-2.200a4 4 0 0 1-5.300 5L9 19a2.100 2.100 0 0 1-3-3l7-7a4 4 0 0 1 1.5-2.500z",
  grid: "M5 5h4v4H5zM15 5h4v4h-4zM5 15h4v4H5zM15 15h4v4h-4z", play: "M8 5.500l10 6.5-10 6.500z", warn: "M12 4L3 19.500h18zM12 10v4.500M12 17h.01",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3", plane: "M4 4l16 16M9.5 5.500A14 14 0 0 1 21 9.500M3 9.500A14 14 0 0 1 6.5 7.300M6.5 13.500a8 8 0 0 1 4-2.200M15.5 12a8 8 0 0 1 2 1.500M12 18h.01",
  keys: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8", out: "M12 15V4M7.5 8.500L12 4l4.5 4.500M5 20h14", quote: "M6 17h4V9H5v6M15 17h4V9h-5v6",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("i");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** The mark: eight experts in a ring, two of them at work. */
export function logo(size) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 32 32");
  svg.setAttribute("width", size);
  svg.setAttribute("height", size);
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("logo");
  for (let i = 0; i < 8; i += 1) {
    const dot = document.createElementNS(SVG, "circle");
    dot.setAttribute("cx", (16 + 11.5 * Math.cos((i * Math.PI) / 4)).toFixed(2));
    dot.setAttribute("cy", (16 + 11.5 * Math.sin((i * Math.PI) / 4)).toFixed(2));
    dot.setAttribute("r", "2.7");
    dot.classList.add(`e${i}`);
    svg.append(dot);
  }
  return svg;
}

/** A button with an icon whose words are read out and shown on hover. */
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** Replace children only from the first that differs, so that selections and scroll positions in the others stay. */
export function morph(target, fragment) {
  const old = [...target.childNodes];
  const made = [...fragment.childNodes];
  let same = 0;
  while (same < old.length && same < made.length && old[same].isEqualNode(made[same])) same += 1;
  for (const node of old.slice(same)) node.remove();
  target.append(...made.slice(same));
}
