"""Pages of other sites, open in the same browser, that try to use or to read the server on this machine.

A page for each route and method, on another site (localhost) and on another port of the same one (127.0.0.1); each
tries every way by which a browser sends something.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import words
from page import PageLive, ask, browser, needs_chromium, open_page, served_files, served_page
from serving import CHAT, CLIENT, MODEL, Running, stub

from libremoe.server import app, body

pytestmark = [needs_chromium]

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT, "/v1/completions": {"model": MODEL, "prompt": "Hi", "max_tokens": 4},
    "/v1/responses": {"model": MODEL, "input": "Hi"}, "/v1/embeddings": {"model": MODEL, "input": "Hi"},
    "/v1/messages": CHAT, "/v1/messages/count_tokens": CHAT, "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [40]}, "/api/conversations": {}, "/api/conversations/{id}": {"title": "taken"},
    "/api/conversations/{id}/turns": {"text": "sent by another site"}, "/api/offline": {"offline": True},
    "/api/sources": {"url": "https://evil.example/feed"}, "/api/code": {"task": "explain", "code": "x"},
}
ATTACK = """
async ({url, verb, body}) => {
  const seen = [], wait = (ms) => new Promise((go) => setTimeout(go, ms));
  const sends = verb !== "GET";
  const content = sends ? body : undefined;
  const add = (tag, fields) => document.body.appendChild(Object.assign(document.createElement(tag), fields));
  const loaded = (one) => new Promise((go) => { one.onload = go; one.onerror = go; });
  const read = (frame) => frame.contentDocument?.URL !== "about:blank" && frame.contentDocument.body.textContent;
  const ways = {
    fetch: async (say) => {
      const headers = sends ? {"content-type": "application/json"} : {};
      say((await fetch(url, {method: verb, body: content, headers})).status);
    },
    no_cors: async (say) => {
      const method = sends ? "POST" : "GET";
      say(await (await fetch(url, {method, mode: "no-cors", credentials: "include", body: content})).text());
    },
    xhr: (say) => new Promise((go) => {
      const x = new XMLHttpRequest();
      x.open(verb, url);
      x.withCredentials = true;
      x.onloadend = () => { say(x.status); go(); };
      x.send(content ?? null);
    }),
    form: async (say) => {
      const name = `f${Math.random()}`, into = add("iframe", {name});
      const form = add("form", {action: url, target: name, method: sends ? "post" : "get", enctype: "text/plain"});
      const field = {name: body.slice(0, -1) + ', "x": "', value: '"}'};  // together with = they are JSON
      form.append(Object.assign(document.createElement("input"), field));
      const done = loaded(into);
      form.submit();
      await done;
      await wait(100);
      say(read(into));
    },
    frame: async (say) => {
      const into = add("iframe", {src: url});
      await loaded(into);
      say(read(into));
    },
    script: async (say) => {
      const before = Object.keys(window).length;
      await loaded(add("script", {src: url}));
      say(Object.keys(window).length - before);
    },
    events: (say) => new Promise((go) => {
      const one = new EventSource(url);
      one.onopen = () => say("open");
      one.onmessage = (event) => say(event.data);
      one.onerror = () => { one.close(); go(); };
    }),
    beacon: async () => { navigator.sendBeacon(url, new Blob([body], {type: "text/plain"})); await wait(50); },
  };
  await Promise.all(Object.entries(ways).map(async ([way, run]) => {
    const say = (what) => { if (what) seen.push(`${way}: ${String(what).slice(0, 80)}`); };
    try { await Promise.race([run(say), wait(1500)]); } catch { /* the browser or the server refused */ }
  }));
  return seen;
}
"""


BLANK = {"/": ("text/html", "<!doctype html><title>a page of another site</title><body>")}


def targets(conversation: str) -> list[tuple[str, str, str]]:
    """(path, method, body) of every route and method."""
    found = []
    for route in app.ROUTES:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            path = route.path.replace("{id}", conversation).replace("{name:path}", MODEL)
            path = path.replace("{name}", "space-news")
            found.append((path, method, json.dumps(BODIES.get(route.path, {}))))
    return found


def state(running: Running, live: PageLive, engine: Any) -> tuple[Any, ...]:
    """All that an attack could change."""
    listed = CLIENT.get(f"{running.url}/api/conversations").json()["conversations"]
    turns = [CLIENT.get(f"{running.url}/api/conversations/{one['id']}").json() for one in listed]
    return listed, turns, list(live.sources.found), live.offline, live.asked, dict(engine.finished)


def attack(chromium: Any, n_sites: int = 2, only: str = "") -> tuple[int, list[str], bool]:
    """(pages, what they could read, whether anything changed)."""
    live, engine = PageLive(), stub(tokens_per_s=50)
    with served_page(words("ok"), live=live, engine=engine) as running, served_files(BLANK) as (evil, _):
        with open_page(chromium, running) as own:
            ask(own.page, "mine")
        (made,) = CLIENT.get(f"{running.url}/api/conversations").json()["conversations"]
        before, seen, n_pages = state(running, live, engine), [], 0
        for site in ("localhost", "127.0.0.1")[:n_sites]:
            context = chromium.new_context()
            page = context.new_page()
            for path, method, content in targets(made["id"]):
                if path.startswith(only):
                    page.goto(evil.replace("127.0.0.1", site))
                    asked = {"url": running.url + path, "verb": method, "body": content}
                    seen += [f"{site} {method} {path} {what}" for what in page.evaluate(ATTACK, asked)]
                    n_pages += 1
            context.close()
        return n_pages, seen, state(running, live, engine) != before


def test_pages_of_other_sites_change_and_read_nothing() -> None:
    with browser() as chromium:
        n_pages, seen, changed = attack(chromium)
    assert n_pages >= 60
    assert seen == [] and not changed


def test_without_both_checks_they_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the origin, and of a type of body that a browser sends elsewhere only after asking."""
    monkeypatch.setattr(app._Guards, "_check_origin", lambda *_: None)
    monkeypatch.setattr(body, "JSON_TYPES", ("application/json", "text/plain"))
    with browser() as chromium:
        _, _, changed = attack(chromium, 1, "/api/conversations")
    assert changed
