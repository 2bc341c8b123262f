"""The API of the page, as a page uses it: over loopback, against a real engine with a tiny model, or the stub."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fakes import text_of
from serving import CLIENT, Running, chatting, post, served, stub, tiny_engine, wait_until
from stub_engine import FIRST_BYTE_ID, StubEngine

from libremoe.chat.conversation import part_of
from libremoe.chat.message import Tool
from libremoe.chat.persona import digest
from libremoe.chat.tool_box import Entry, ToolBox, local_tools
from libremoe.french import translated

GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(tiny_engine(), chat=chatting(n_layers=2)) as running:
        yield running


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


def ask(running: Running, path: str, body: dict[str, Any], client: httpx2.Client = CLIENT) -> list[dict[str, Any]]:
    """The events of an answer, to its end."""
    with client.stream("POST", running.url + path, json=body) as found:
        assert found.status_code == 200, found.read()
        return list(events_of(found.iter_lines()))


def begin(running: Running, **fields: Any) -> str:
    found = post(running, "/api/conversations", fields)
    assert found.status_code == 201, found.text
    return found.json()["id"]


def get(running: Running, path: str) -> Any:
    found = CLIENT.get(running.url + path)
    assert found.status_code == 200, found.text
    return found.json()


def words_of(turn: dict[str, Any]) -> str:
    return text_of([part_of(part) for part in turn["parts"]])


def test_state_says_what_can_be_used(running: Running) -> None:
    found = get(running, "/api/state")
    assert found["model"] == "tiny" and found["context_len"] == 4096 and found["atlas"]
    assert {"regular", "fun", "coder", "teacher"} <= {p["name"] for p in found["personas"]}
    assert {"calculator", "clock"} <= {t["name"] for t in found["tools"]} and not found["live"]["configured"]
    assert found["offline"]


def test_a_turn_is_durable_streamed_and_shown_again(running: Running) -> None:
    id = begin(running)
    found = ask(running, f"/api/conversations/{id}/turns", {"text": "Hello **you**", **GREEDY})
    kinds = [one["type"] for one in found]
    assert kinds[:2] == ["turn", "turn"] and kinds[-1] == "done" and "stats" in kinds
    question, begun, answer = found[0]["turn"], found[1]["turn"], found[-1]["turn"]
    assert question["role"] == "user" and question["state"] == "done" and begun["state"] == "writing"
    assert answer["id"] == begun["id"] and answer["parent_id"] == question["id"] and answer["state"] == "done"
    said = "".join(one["text"] for one in found if one["type"] == "delta")
    assert said and words_of(answer) == said
    details = answer["details"]
    assert details["finish_reason"] == "length" and details["stats"]["tokens"] == 12
    assert details["template"] == "transcript" and details["model"] == "tiny" and details["persona"] == "regular"
    again = get(running, f"/api/conversations/{id}")
    assert [t["id"] for t in again["turns"]] == [question["id"], answer["id"]] and again["leaf_id"] == answer["id"]
    assert again["turns"][1]["details"] == details and again["conversation"]["title"] == "Hello **you**"
    assert "<strong>you</strong>" in again["turns"][0]["html"]
    experts = [one for one in found if one["type"] == "experts"]
    assert [one["token"] for one in experts] == list(range(12))
    assert all(len(one["layers"]) == 2 and all(len(set(e)) == 2 for e in one["layers"]) for one in experts)
    assert [sum(row) for row in details["atlas"]] == [24, 24]


def test_the_prompt_behind_an_answer_is_found_by_its_digest(running: Running) -> None:
    id = begin(running, language="fr", persona="teacher")
    details = ask(running, f"/api/conversations/{id}/turns", {"text": "Bonjour", **GREEDY})[-1]["turn"]["details"]
    prompts = get(running, "/prompts")["prompts"]
    behind = [v for p in prompts for v in p["versions"] if v["sha256"] == details["prompt_sha256"]]
    assert len(behind) == 1 and digest(behind[0]["text"]) == details["prompt_sha256"]
    assert "professeur" in behind[0]["text"]
    page = CLIENT.get(f"{running.url}/prompts", headers={"accept": "text/html"})
    assert details["prompt_sha256"] in page.text and "<script" not in page.text


def test_branches_edits_and_another_answer(running: Running) -> None:
    id = begin(running)
    first = ask(running, f"/api/conversations/{id}/turns", {"text": "One", **GREEDY})
    answer = first[-1]["turn"]["id"]
    other = ask(running, f"/api/conversations/{id}/regenerate", {"turn_id": answer, "seed": 5, "max_tokens": 8})
    assert other[0]["turn"]["parent_id"] == first[0]["turn"]["id"] and other[-1]["turn"]["id"] != answer
    edited = ask(running, f"/api/conversations/{id}/turns", {"text": "Edited", "parent_id": None, **GREEDY})
    assert edited[0]["turn"]["parent_id"] is None
    found = get(running, f"/api/conversations/{id}")
    assert len(found["turns"]) == 5 and found["leaf_id"] == edited[-1]["turn"]["id"]
    changed = CLIENT.patch(f"{running.url}/api/conversations/{id}", json={"leaf_id": answer, "title": "Mine"}).json()
    assert changed["leaf_id"] == answer and changed["title"] == "Mine"
    deeper = ask(running, f"/api/conversations/{id}/turns", {"text": "Two", "parent_id": answer, **GREEDY})
    assert deeper[0]["turn"]["parent_id"] == answer
    hits = get(running, "/api/conversations?query=Edited")["hits"]
    assert [h["conversation_id"] for h in hits] == [id]


def test_a_cut_answer_goes_on_as_if_it_had_not_been_cut(running: Running) -> None:
    id = begin(running)
    whole = ask(running, f"/api/conversations/{id}/turns", {"text": "Go", "temperature": 0.0, "max_tokens": 24})
    short = ask(running, f"/api/conversations/{id}/regenerate", {"turn_id": whole[-1]["turn"]["id"], **GREEDY})
    begun = words_of(short[-1]["turn"])
    assert short[-1]["turn"]["details"]["finish_reason"] == "length"
    more = ask(running, f"/api/conversations/{id}/continue", {"turn_id": short[-1]["turn"]["id"], **GREEDY})
    turn = more[-1]["turn"]
    assert turn["id"] == short[-1]["turn"]["id"] and words_of(turn).startswith(begun)
    assert len(words_of(turn)) > len(begun) and turn["state"] == "done"


def test_stop_keeps_what_was_written() -> None:
    with served(stub(tokens_per_s=50), chat=chatting()) as running:
        id = begin(running)
        with CLIENT.stream("POST", f"{running.url}/api/conversations/{id}/turns",
                           json={"text": "Hi", "max_tokens": 2000}) as found:
            lines = events_of(found.iter_lines())
            events = [next(lines), next(lines)]
            turn_id = events[1]["turn"]["id"]
            while events[-1]["type"] != "delta":
                events.append(next(lines))
            stopped = post(running, f"/api/turns/{turn_id}/stop", {}).json()["turn"]
            events += list(lines)
        assert stopped["state"] == "stopped" and events[-1]["type"] == "done"
        kept = get(running, f"/api/conversations/{id}")["turns"][-1]
        assert kept["state"] == "stopped" and words_of(kept) == words_of(events[-1]["turn"]) != ""
        assert kept["details"]["prompt_sha256"] and kept["details"]["finish_reason"] == "stopped"
        wait_until(lambda: not running.service.engine.running)
        assert post(running, f"/api/turns/{turn_id}/stop", {}).status_code == 404


def test_an_answer_goes_on_when_its_page_leaves() -> None:
    with served(stub(tokens_per_s=100), chat=chatting()) as running:
        id = begin(running)
        with CLIENT.stream("POST", f"{running.url}/api/conversations/{id}/turns",
                           json={"text": "Hi", "max_tokens": 100}) as found:
            lines = events_of(found.iter_lines())
            next(lines)
            turn_id = next(lines)["turn"]["id"]
        with CLIENT.stream("GET", f"{running.url}/api/turns/{turn_id}/events") as found:  # a page that came back
            followed = list(events_of(found.iter_lines()))
        assert followed[0]["turn"]["id"] == turn_id and followed[-1]["turn"]["state"] == "done"
        said = "".join(one["text"] for one in followed if one["type"] == "delta")
        kept = get(running, f"/api/conversations/{id}")["turns"][-1]
        assert words_of(kept) == said and kept["details"]["stats"]["tokens"] == 100


def test_what_is_wrong_is_a_sentence(running: Running) -> None:
    id = begin(running)
    answer = ask(running, f"/api/conversations/{id}/turns", {"text": "Hi", **GREEDY})
    user, assistant = answer[0]["turn"]["id"], answer[-1]["turn"]["id"]
    turns, none = f"/api/conversations/{id}/turns", "0" * 32
    for path, body, status, says in (
        (turns, {"text": ""}, 400, "text"),
        (turns, {"text": "x", "parent_id": none}, 404, "not in this conversation"),
        (turns, {"text": "x", "parent_id": user}, 400, "parent_id"),
        (turns, {"text": "x", "persona": "nobody"}, 400, "regular"),
        (turns, {"text": "x", "temperature": 9}, 400, "temperature"),
        (f"/api/conversations/{none}/turns", {"text": "x"}, 404, none),
        (f"/api/conversations/{id}/regenerate", {"turn_id": user}, 400, "answer"),
        (f"/api/conversations/{id}/continue", {"turn_id": none}, 404, "not in this"),
        (f"/api/turns/{assistant}/approve", {"call_id": "x", "allow": True}, 404, "being written"),
        ("/api/conversations", {"persona": "../x"}, 400, "persona"),
        ("/api/offline", {"offline": True}, 404, "live"),
    ):
        found = post(running, path, body)
        assert found.status_code == status and says in found.json()["error"]["message"], (path, body, found.text)
    assert CLIENT.get(f"{running.url}/api/conversations/{none}").status_code == 404
    assert CLIENT.post(f"{running.url}/api/import", content=b"x").status_code == 415
    long = ask(running, turns, {"text": "x" * 20_000})
    assert long[-2]["type"] == "error" and "too long" in long[-2]["message"]
    assert long[-1]["turn"]["state"] == "failed" and "too long" in long[-1]["turn"]["details"]["error"]


def test_a_page_in_french_is_refused_in_french(running: Running) -> None:
    """What is kept, and what programs are told, stays English."""
    french = {"Accept-Language": "fr-FR,fr;q=0.9,en;q=0.5"}
    missing = [CLIENT.get(running.url + "/api/conversations/none", headers=headers) for headers in ({}, french)]
    said = [found.json()["error"]["message"] for found in missing]
    assert [found.status_code for found in missing] == [404, 404]
    assert said == ["conversation 'none': not found", translated(said[0], "fr")] and said[0] != said[1]
    models = CLIENT.get(running.url + "/v1/models/none", headers=french)
    assert "there is no model" in models.json()["error"]["message"]
    id = begin(running)
    body = {"text": "word " * 9000, **GREEDY}
    with CLIENT.stream("POST", running.url + f"/api/conversations/{id}/turns", json=body, headers=french) as found:
        events = list(events_of(found.iter_lines()))
    error = next(one["message"] for one in events if one["type"] == "error")
    assert events[-1]["turn"]["details"]["error"] == error
    pages = [CLIENT.get(running.url + f"/api/conversations/{id}", headers=headers).json() for headers in ({}, french)]
    kept = [page["turns"][-1]["details"]["error"] for page in pages]
    assert kept[1] == error == translated(kept[0], "fr") != kept[0]


def test_erased_is_gone_and_an_open_answer_with_it() -> None:
    with served(stub(tokens_per_s=50), chat=chatting()) as running:
        id = begin(running)
        with CLIENT.stream("POST", f"{running.url}/api/conversations/{id}/turns",
                           json={"text": "Hi", "max_tokens": 2000}) as found:
            next(events_of(found.iter_lines()))
            assert CLIENT.delete(f"{running.url}/api/conversations/{id}").status_code == 200
        assert CLIENT.get(f"{running.url}/api/conversations/{id}").status_code == 404
        assert get(running, "/api/conversations")["conversations"] == []
        wait_until(lambda: not running.service.engine.running)


def test_no_more_answers_at_once_than_allowed(tmp_path: Path) -> None:
    chat = chatting()
    chat.answers.max_open = 2
    with served(stub(tokens_per_s=20), chat=chat) as running:
        ids = [begin(running) for _ in range(3)]
        streams = []
        for id in ids[:2]:
            context = CLIENT.stream("POST", f"{running.url}/api/conversations/{id}/turns",
                                    json={"text": "Hi", "max_tokens": 1000})
            found = context.__enter__()
            next(events_of(found.iter_lines()))
            streams.append(context)
        refused = post(running, f"/api/conversations/{ids[2]}/turns", {"text": "Hi"})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert get(running, f"/api/conversations/{ids[2]}")["turns"] == []
        for context in streams:
            context.__exit__(None, None, None)


def test_without_a_page_there_is_none() -> None:
    with served(stub()) as running:
        for path in ("/api/state", "/api/conversations", "/prompts", "/api/ledger"):
            found = CLIENT.get(running.url + path)
            assert found.status_code == 404 and "--no-page" in found.json()["error"]["message"]


# ---- tools

CALL = '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>'


def calling(ran: list[str]) -> tuple[StubEngine, ToolBox]:
    """An engine that says nothing but a call, and a tool that acts."""

    async def run(given: dict[str, Any], tag: str) -> str:
        ran.append(f"{tag}: {given['query']}")
        return "done"

    engine = stub(tokens_per_s=5000)
    engine.text = [FIRST_BYTE_ID + byte for byte in CALL.encode()]
    return engine, ToolBox([Entry(Tool("search", "acts"), run, acts=True), *local_tools()])


@pytest.mark.parametrize(("decisions", "n_ran"), [
    ([{"allow": False}] * 4, 0), ([{"allow": True}, {"allow": False}, {"allow": True}, {"allow": False}], 2),
    ([{"allow": True, "always": True}], 4),
])
def test_a_person_decides_about_calls(decisions: list[dict[str, bool]], n_ran: int) -> None:
    ran: list[str] = []
    engine, box = calling(ran)
    with served(engine, chat=chatting(tools=box)) as running:
        id = begin(running)
        left, found = list(decisions), []
        with CLIENT.stream("POST", f"{running.url}/api/conversations/{id}/turns",
                           json={"text": "Hi", "tools": True, "max_tokens": len(CALL)}) as stream:
            for one in events_of(stream.iter_lines()):
                found.append(one)
                if one["type"] == "turn":
                    turn_id = one["turn"]["id"]
                if one["type"] == "approve":
                    decision = {"call_id": one["call"]["id"], **left.pop(0)}
                    assert post(running, f"/api/turns/{turn_id}/approve", decision).status_code == 200
        assert not left and ran == [f"{id}: x"] * n_ran
        assert [one["ok"] for one in found if one["type"] == "call_done"].count(True) == n_ran
        kinds = [part["type"] for part in found[-1]["turn"]["parts"]]
        assert kinds[:8] == ["tool_call", "tool_result"] * 4 and found[-1]["turn"]["state"] == "done"


def test_a_stop_ends_a_call_that_waits_and_one_that_runs() -> None:
    engine, box = calling([])
    with served(engine, chat=chatting(tools=box)) as running:
        id = begin(running)
        with CLIENT.stream("POST", f"{running.url}/api/conversations/{id}/turns",
                           json={"text": "Hi", "tools": ["search"], "max_tokens": len(CALL)}) as stream:
            for one in events_of(stream.iter_lines()):
                if one["type"] == "turn":
                    turn_id = one["turn"]["id"]
                if one["type"] == "approve":
                    assert post(running, f"/api/turns/{turn_id}/stop", {}).json()["turn"]["state"] == "stopped"
        assert one["type"] == "done" and one["turn"]["state"] == "stopped"


# ---- live, over loopback

class _Feed(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        now = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        body = ("<?xml version='1.0'?><rss version='2.0'><channel><title>News</title><link>http://127.0.0.1/</link>"
                "<description>x</description><item><title>Bridge</title><link>http://127.0.0.1/bridge</link>"
                f"<description>The new bridge in Bern opened.</description><pubDate>{now}</pubDate></item>"
                "</channel></rss>").encode()
        self.send_response(200)
        self.send_header("content-type", "application/rss+xml")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_live_answers_the_ledger_and_the_switch(tmp_path: Path) -> None:
    pytest.importorskip("feedparser")
    from libremoe.live import Live

    news = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Feed)
    threading.Thread(target=news.serve_forever, daemon=True).start()
    live = Live(tmp_path)
    try:
        with served(stub(tokens_per_s=5000), chat=chatting(live=live, live_allowed=True)) as running:
            url = f"http://127.0.0.1:{news.server_address[1]}/feed"
            made = post(running, "/api/sources", {"url": url, "kind": "feed", "name": "news"})
            assert made.status_code == 201, made.text
            assert get(running, "/api/state")["live"]["configured"]
            id = begin(running)
            asked = {"text": "What is new about the bridge in Bern?", "live": True, "max_tokens": 20}
            found = ask(running, f"/api/conversations/{id}/turns", asked)
            sources = next(one["sources"] for one in found if one["type"] == "sources")
            assert [s["number"] for s in sources] == [1] and "bridge" in sources[0]["text"]
            assert found[-1]["turn"]["details"]["sources"] == sources and found[-1]["turn"]["details"]["sentences"]
            entries = get(running, "/api/ledger")["entries"]
            assert [e["host"] for e in entries] == ["127.0.0.1"] and entries[0]["tag"] == id
            assert post(running, "/api/offline", {"offline": True}).json() == {"offline": True}
            ask(running, f"/api/conversations/{id}/turns", {**asked, "text": "And the bridge today?"})
            assert len(get(running, "/api/ledger")["entries"]) == 1  # the archive answered, nothing left
            assert CLIENT.delete(f"{running.url}/api/conversations/{id}").status_code == 200
            assert [e["tag"] for e in get(running, "/api/ledger")["entries"]] == [""]
            running.service.chat.live_allowed = False  # type: ignore[union-attr]  # as without --live
            assert post(running, "/api/offline", {"offline": False}).status_code == 403
            assert CLIENT.delete(f"{running.url}/api/sources/news").status_code == 200
            assert get(running, "/api/sources")["sources"] == []
    finally:
        news.shutdown()
        news.server_close()


def test_what_is_exported_can_be_taken_in_again(running: Running) -> None:
    id = begin(running, title="Tides & co")
    answer = ask(running, f"/api/conversations/{id}/turns", {"text": "Why?", **GREEDY})[-1]["turn"]
    ask(running, f"/api/conversations/{id}/regenerate", {"turn_id": answer["id"], **GREEDY})
    for kind, ends in (("markdown", ".md"), ("json", ".json"), ("html", ".html")):
        found = CLIENT.get(f"{running.url}/api/conversations/{id}/export?format={kind}")
        name = found.headers["content-disposition"]
        assert found.status_code == 200 and name == f'attachment; filename="Tides-co{ends}"'
        if kind == "json":
            back = CLIENT.post(f"{running.url}/api/import", content=found.content,
                               headers={"content-type": "application/json"})
    assert back.status_code == 201 and back.json()["imported"] == 1
    again = get(running, f"/api/conversations/{back.json()['ids'][0]}")
    before = get(running, f"/api/conversations/{id}")
    assert [t["parts"] for t in again["turns"]] == [t["parts"] for t in before["turns"]]
    assert CLIENT.get(f"{running.url}/api/conversations/{id}/export?format=pdf").status_code == 400


def test_feeds_are_read_by_themselves_until_the_server_ends() -> None:
    class Feeds:
        running = 0

        async def refresher(self) -> None:
            self.running += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.running -= 1

        def close(self) -> None:
            assert self.running == 0

    async def use(allowed: bool) -> int:
        feeds = Feeds()
        chat = chatting(live=feeds, live_allowed=allowed, belongings=object())
        await chat.start()
        await asyncio.sleep(0.01)
        seen = feeds.running
        await chat.close()
        return seen

    assert asyncio.run(use(True)) == 1 and asyncio.run(use(False)) == 0
