// What an answer rests on: its sources, how its sentences stand to them, and where they contradict each other.

import { $$, h } from "./dom.js";
import { kindOf, moment, reason, t } from "./words.js";

const SIGNS = { supported: "✓", unsupported: "≠", dangling: "∅", uncited: "·" };

/** Give the marks behind sentences, and the numbers of citations, their words. */
export function explain(body, article) {
  for (const mark of $$(".verdict", body)) {
    const verdict = Object.keys(SIGNS).find((name) => mark.classList.contains(name));
    if (!verdict) continue;
    mark.title = t(verdict);
    mark.replaceChildren(h("span", { "aria-hidden": "true" }, SIGNS[verdict]), h("span", { class: "unseen" }, ` (${t(verdict)})`));
  }
  for (const cite of $$(".cite", body)) {
    const number = cite.textContent;
    if (cite.tagName !== "A") { cite.title = t("marker", { n: number }); continue; }
    cite.setAttribute("aria-label", t("source_n", { n: number }));
    cite.addEventListener("click", (event) => { event.preventDefault(); show(article, number); });
  }
}

function show(article, number) {
  const box = article.querySelector("details.sources");
  const card = $$(".source", article).find((one) => one.dataset.number === number);
  if (!box || !card) return;
  box.open = true;
  card.classList.remove("flash");
  card.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  card.focus({ preventScroll: true });
  requestAnimationFrame(() => card.classList.add("flash"));
}

/** The sources of a turn, what was checked, and notes; null where there are none. open: whether the list is unfolded. */
export function evidence(details, text, open) {
  const sources = details.sources ?? [];
  const notes = details.notes ?? [];
  if (!sources.length && !notes.length && !details.conflicts?.length) return null;
  const list = h("ol", { class: "cards" }, sources.map(card));
  return h("details", { class: "sources", open },
    h("summary", {}, sources.length ? t("n_sources", { n: sources.length }) : t("no_sources"), verdicts(details.sentences ?? [])),
    list, doubts(details.sentences ?? [], text), agreement(details),
    notes.length ? h("ul", { class: "notes" }, notes.map((one) => h("li", {}, one))) : null);
}

function verdicts(sentences) {
  const cited = sentences.filter((one) => ["supported", "unsupported", "dangling"].includes(one.verdict));
  if (!cited.length) return null;
  const ok = cited.filter((one) => one.verdict === "supported").length;
  return h("span", { class: ok === cited.length ? "tally good" : "tally bad" }, t("checks", { n: ok, of: cited.length }));
}

function card(source) {
  const where = host(source.url);
  const title = source.title || where || t("source_n", { n: source.number });
  return h("li", { class: "source", tabindex: "-1", dataset: { number: source.number } },
    h("span", { class: "number", "aria-hidden": "true" }, source.number),
    h("div", {},
      where ? h("a", { href: source.url, target: "_blank", rel: "noopener noreferrer nofollow" }, title) : h("strong", {}, title),
      h("p", { class: "where" }, [source.author, where || source.source, kindOf(source.kind)].filter(Boolean).join(" · ")),
      h("p", { class: "where" }, [source.published ? t("published", { when: moment(source.published) }) : null,
        source.fetched ? t("snapshot", { when: moment(source.fetched) }) : null].filter(Boolean).join(" · ")),
      source.text ? h("details", { class: "excerpt" }, h("summary", {}, t("excerpt")), h("blockquote", {}, source.text),
        source.snapshot_sha256 ? h("p", { class: "where mono" }, `sha256 ${String(source.snapshot_sha256).slice(0, 16)}… [${source.start}–${source.end}]`) : null) : null));
}

/** The host of a web address; "" for anything that is none, which then becomes no link. */
function host(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:"].includes(url.protocol) ? url.host.replace(/^www\./, "") : "";
  } catch { return ""; }
}

function doubts(sentences, text) {
  const bad = sentences.filter((one) => one.verdict === "unsupported" || one.verdict === "dangling");
  if (!bad.length) return null;
  return [h("h3", {}, t("doubts")), h("ul", { class: "doubts" }, bad.map((one) =>
    h("li", {}, text.slice(one.start, one.end).trim(), one.reason ? h("span", { class: "where" }, ` – ${reason(one.reason, one.about)}`) : null)))];
}

function agreement(details) {
  const refs = (numbers = []) => h("span", { class: "where" }, ` [${numbers.join(", ")}]`);
  const part = (key, list, made) => (list?.length ? [h("h3", {}, t(key)), h("ul", { class: key }, list.map((one) => h("li", {}, made(one))))] : null);
  return [
    part("facts", details.facts, (one) => [one.text, refs(one.numbers)]),
    part("opinions", details.opinions, (one) => [h("q", {}, one.text), h("span", { class: "where" },
      ` ${[(one.who ?? []).join(", "), one.when ? moment(one.when) : null, t("opinion_n", { n: one.how_many ?? 1 })].filter(Boolean).join(" · ")}`), refs(one.numbers)]),
    part("conflicts", details.conflicts, (one) => (one.sides ?? []).map(([number, value, sentence]) =>
      h("div", { class: "conflict" }, h("strong", {}, value), ` ${sentence}`, refs([number])))),
  ];
}
