"""The page, as people use it: in Chromium, over the real server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import excerpt, words
from page import DESK, PHONE, PageLive, ask, browser, ended, needs_chromium, open_page, served_files, served_page
from payloads import PAYLOADS, many
from serving import CLIENT, CONTEXT, MODEL, tiny_engine

from libremoe.chat.events import Request
from libremoe.chat.message import Tool, ToolCall
from libremoe.chat.tool_box import Entry, ToolBox
from libremoe.errors import LibremoeError
from libremoe.live import Live
from libremoe.live.reasons import REASONS, worded
from libremoe.server import keys

pytestmark = needs_chromium
N_PAYLOADS = int(os.environ.get("LIBREMOE_PAGE_PAYLOADS", "60"))  # beside the short list
LONG = "One two three four five. " * 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


def last(page: Any) -> Any:
    return page.locator("article.assistant").last


def texts(page: Any) -> list[str]:
    return [one.strip() for one in page.locator("article .body").all_inner_texts()]


def echo(request: Request) -> list[str]:
    """A model that repeats the question, so that a test sees what was asked."""
    asked = [m.text for m in request.messages if m.role == "user"]
    return re.findall(r"\s*\S+",
        f"{request.prefix and 'and on'} You said **{asked[-1].strip()}** as number {len(asked)}.")


def test_a_whole_conversation(chromium: Any) -> None:
    with served_page(echo) as running, open_page(chromium, running) as watched:
        page = watched.page
        assert page.locator(".greeting h2").is_visible() and page.locator("#send").is_disabled()
        ask(page, "first question")
        assert texts(page) == ["first question", "You said first question as number 1."]
        assert page.locator("article.assistant strong").inner_text() == "first question"
        page.wait_for_function("() => document.querySelector('#title').textContent === 'first question'")
        assert "tokens/s" in last(page).locator(".readout").inner_text()
        assert page.locator("#more").get_attribute("aria-label") == "More for “first question”"
        ask(page, "second question")
        assert texts(page)[-1] == "You said second question as number 2."

        # an edit is a branch, and both stay
        page.locator("article.user").first.hover()
        page.locator('article.user [data-do="edit"]').first.click()
        page.get_by_label("Edit your message").fill("another question")
        page.get_by_role("button", name="Send as a new branch").click()
        page.wait_for_function("() => document.querySelectorAll('article').length === 2")
        ended(page)
        assert texts(page) == ["another question", "You said another question as number 1."]
        page.get_by_role("button", name="Previous version").first.click()
        page.wait_for_function("() => document.querySelectorAll('article').length === 4")
        assert texts(page)[0] == "first question" and texts(page)[-1] == "You said second question as number 2."

        # another answer is a branch too
        last(page).locator('[data-do="again"]').click()
        page.wait_for_function("() => [...document.querySelectorAll('.versions')].at(-1)?.textContent.includes('2/2')")
        ended(page)
        assert last(page).get_by_role("group", name="Version 2 of 2").is_visible()

        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert texts(page)[-1] == "You said second question as number 2."
        assert last(page).get_by_role("group", name="Version 2 of 2").is_visible()

        # copying, code and words
        last(page).locator('[data-do="copy"]').click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "You said **second question** as number 2."
        watched.check()


def test_the_list_search_rename_export_import_delete(chromium: Any, tmp_path: Path) -> None:
    with served_page(echo) as running, open_page(chromium, running) as watched:
        page = watched.page
        for text in ("about otters", "about walruses"):
            page.locator("#new").click()
            ask(page, text)
        page.wait_for_function("() => document.querySelectorAll('#conversations a').length === 2")
        page.locator("#search").fill("otters")
        page.locator("#conversations a.hit").first.wait_for()
        page.locator("#conversations a.hit").first.click()
        page.wait_for_function("() => document.querySelector('article .body')?.textContent.includes('otters')")
        page.locator("#search").fill("zebras")
        page.get_by_text("Nothing found for “zebras”.").wait_for()
        page.locator("#search").fill("")
        page.locator("#conversations section").wait_for()

        more = page.locator("#top-tools").get_by_role("button", name="More for")
        more.click()
        page.get_by_role("menuitem", name="Rename").click()
        page.get_by_role("textbox", name="Name").fill("Sea <b>otters</b>")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#title').textContent === 'Sea <b>otters</b>'")
        assert page.locator("#conversations a[aria-current]").inner_text() == "Sea <b>otters</b>"

        for name, suffix, inside in (("Markdown", "md", "about otters"), ("JSON", "json", '"about otters"'),
                                     ("a web page", "html", "about otters")):
            more.click()
            with page.expect_download() as download:
                page.get_by_role("menuitem", name=f"Export as {name}").click()
            path = tmp_path / f"export.{suffix}"
            download.value.save_as(path)
            assert download.value.suggested_filename.endswith(f".{suffix}") and inside in path.read_text()

        more.click()
        page.get_by_role("menuitem", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        page.wait_for_function("() => document.querySelectorAll('#conversations a').length === 1")
        page.locator(".greeting").wait_for()
        assert len(CLIENT.get(f"{running.url}/api/conversations").json()["conversations"]) == 1

        page.locator("#open-settings").click()
        page.get_by_role("tab", name="Your data").click()
        page.locator("#file").set_input_files(tmp_path / "export.json")
        page.locator("dialog[open] #toasts").get_by_text("1 conversation was imported.").wait_for()  # not behind it
        page.get_by_role("button", name="Erase all conversations").click()
        page.get_by_role("dialog").last.get_by_role("button", name="Erase all conversations").click()
        page.locator("dialog[open] #toasts").get_by_text("All conversations were erased.").wait_for()
        page.keyboard.press("Escape")
        page.locator("body > #toasts").wait_for(state="attached")
        assert not CLIENT.get(f"{running.url}/api/conversations").json()["conversations"]
        watched.check()


def test_stop_go_on_and_a_page_that_is_loaded_again(chromium: Any) -> None:
    with served_page(words(LONG), pause_s=0.05) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.locator("#message").fill("tell me")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('article.assistant .body')?.textContent.length > 40")
        assert page.locator("#send").get_attribute("aria-label") == "Stop"
        page.wait_for_function("() => / tokens$/.test(document.querySelector('.readout').textContent)")
        page.reload()  # nothing stops: the answer is taken up again
        page.wait_for_selector("html[data-ready=yes]")
        page.wait_for_function("() => document.querySelector('article.assistant .body')?.textContent.length > 80")
        page.keyboard.press("Escape")
        page.get_by_text("Stopped here.").wait_for()
        ended(page)
        written = last(page).locator(".body").inner_text()
        assert LONG.startswith(written.strip()[:60])
        last(page).get_by_role("button", name="Go on writing").click()
        page.wait_for_function("n => document.querySelector('article.assistant .body').textContent.length > n + 30",
                               arg=len(written))
        assert page.locator("article.assistant").count() == 1
        page.locator("#send").click()
        ended(page)
        assert last(page).locator(".body").inner_text().startswith(written.strip()[:40])
        watched.check()


def test_the_tiny_model_itself(chromium: Any) -> None:
    """No stand-in anywhere: noise, but from a network, with its experts."""
    with served_page(engine=tiny_engine(), n_layers=2, n_experts=4, random_weights=True) as running, \
            open_page(chromium, running) as watched:
        page = watched.page
        assert page.get_by_text("This model’s weights are random").is_visible()
        page.locator("#open-settings").click()
        page.get_by_label("Longest answer, in tokens").fill("24")
        page.keyboard.press("Tab")
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
        cut = page.get_by_text("Cut at the limit of tokens.")
        for _ in range(6):  # noise says by chance, about once in fifteen answers, that it has ended
            ask(page, "Hello")
            if cut.count():
                break
        assert "24 tokens" in last(page).locator(".readout").inner_text()
        assert last(page).get_attribute("class").endswith("done")
        assert cut.is_visible()
        last(page).get_by_role("button", name="Experts").click()
        page.locator(".atlas .cell").first.wait_for()
        assert page.locator(".atlas .cell").count() == 2 * 4
        watched.check()


def test_the_atlas_token_by_token(chromium: Any) -> None:
    with served_page(words("one two three four")) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.keyboard.press("Alt+e")
        ask(page, "count")
        page.wait_for_function("() => document.querySelectorAll('.tokens span').length === 4")
        assert page.locator(".atlas .cell").count() == 12 * 8
        assert "The busiest is expert" in page.locator(".atlas").get_attribute("aria-label")
        page.locator(".tokens span").nth(2).hover()
        assert "Token 3 of 4: three" in page.locator("#atlas-at").inner_text()
        lit = page.locator(".atlas .cell.on").count()
        assert 12 <= lit <= 24  # one or two in each layer
        page.get_by_role("slider", name="Token").focus()
        page.keyboard.press("Home")
        assert "Token 1 of 4: one" in page.locator("#atlas-at").inner_text()
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        page.keyboard.press("Alt+e")  # the counts were kept, the tokens were not
        page.locator(".atlas .cell").first.wait_for()
        assert page.locator(".tokens").count() == 0
        watched.check()


def test_live_answers_show_what_they_rest_on(chromium: Any) -> None:
    live = PageLive([excerpt(1, "The rocket flew 20 times in 2026.", "Rocket news", published=1.79e9),
                     excerpt(2, "The rocket was built in France.", "Space weekly", author="Ana")])
    with served_page(words("The rocket flew 20 times in 2026 [1]. The rocket was built in Spain [2]."),
        live=live) as running, \
            open_page(chromium, running) as watched:
        page = watched.page
        page.get_by_role("button", name="Live").click()
        assert page.get_by_role("button", name="Live").get_attribute("aria-pressed") == "true"
        ask(page, "What is new about rockets?")
        assert live.asked == ["What is new about rockets?"]
        answer = last(page)
        assert answer.locator(".source").count() == 2
        assert "1 of 2 cited sentences is supported" in answer.locator(".tally").inner_text()
        assert answer.locator(".verdict.supported").count() == 1 and answer.locator(".verdict.unsupported").count() == 1
        assert worded("name", "Spain", "en") in answer.locator(".doubts").inner_text()
        answer.locator("a.cite").nth(1).click()
        assert page.evaluate("document.activeElement.dataset.number") == "2"
        assert page.url.endswith(page.evaluate("location.hash")) and "source-" not in page.url
        link = answer.locator(".source a").first
        assert link.get_attribute("href") == "https://example.org/1" and "noopener" in link.get_attribute("rel")
        watched.check()


def test_a_feed_is_added_read_cited_and_checked(chromium: Any, tmp_path: Path) -> None:
    """The whole way with nothing made up: a feed on loopback, the real sources, archive, ledger and check."""
    told = "The harbour bridge in Kelmora opened on Tuesday. It is 2,340 metres long and cost 410 million euros."
    feed = ("<?xml version='1.0'?><rss version='2.0'><channel><title>News</title><item><title>Bridge opens</title>"
            f"<link>http://news.example/bridge</link><description>{told}</description></item></channel></rss>")
    says = words("The harbour bridge cost 410 million euros [1]. The harbour bridge is 9,000 metres long [1]. So [7].")
    live = Live(tmp_path / "live")
    with served_files({"/feed.xml": ("application/rss+xml", feed)}) as (feed_url, asked), \
            served_page(says, live=live) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.locator("#open-settings").click()
        page.get_by_role("tab", name="Live sources").click()
        page.get_by_label("Address or name").fill(f"{feed_url}/feed.xml")
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_text("was added.").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Live").click()
        ask(page, "What is new about the harbour bridge?")
        answer = last(page)
        assert asked and answer.locator(".source").count() == 1
        assert answer.locator(".source a").first.get_attribute("href") == "http://news.example/bridge"
        assert told.split(".")[0] in answer.locator(".source blockquote").text_content()
        assert answer.locator(".verdict.supported").count() == 1
        assert worded("number", "9,000 metres", "en") in answer.locator(".doubts").inner_text()
        assert "[7]" not in answer.locator(".body").first.inner_text()  # no excerpt has this number
        page.locator("#open-settings").click()
        page.get_by_role("tab", name="Privacy").click()
        page.get_by_role("cell", name=f"GET {feed_url}/feed.xml").first.wait_for()
        watched.check()


def test_settings_closed_while_a_source_is_added_stay_closed(chromium: Any, tmp_path: Path) -> None:
    feed = "<?xml version='1.0'?><rss version='2.0'><channel><title>News</title></channel></rss>"
    held: list[Any] = []
    live = Live(tmp_path / "live")
    with served_files({"/feed.xml": ("application/rss+xml", feed)}) as (feed_url, _), \
            served_page(words("Yes."), live=live) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.locator("#open-settings").click()
        page.get_by_role("tab", name="Live sources").click()
        page.get_by_label("Address or name").fill(f"{feed_url}/feed.xml")
        page.route("**/api/state", lambda route: held.append(route))
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_text("was added.").wait_for()
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        with page.expect_response("**/api/state"):
            held[0].continue_()
        page.locator("#open-settings").click()  # where they had opened by themselves, they would lie over it
        assert page.get_by_role("tab", selected=True).inner_text() == "General"
        watched.check()


def test_tools_ask_first(chromium: Any) -> None:
    ran: list[dict[str, Any]] = []

    async def send(arguments: dict[str, Any], conversation: str) -> str:
        ran.append(arguments)
        return "it was <b>sent</b>"

    def says(request: Request) -> list[str | ToolCall]:
        done = any(m.role == "tool" for m in request.messages)
        return ["It is done."] if done else [ToolCall(f"c{len(ran)}", "calculator", '{"expression": "1"}')]

    box = ToolBox([Entry(Tool("calculator", "Says it acts."), send, acts=True)])
    with served_page(says, tools=box) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.get_by_role("button", name="Tools").click()
        for choice, times in (("Refuse", 0), ("Allow once", 1), ("Allow in this conversation", 2)):
            before = page.locator("article.assistant").count()
            page.locator("#message").fill("please")
            page.keyboard.press("Enter")
            page.wait_for_function("n => document.querySelectorAll('article.assistant').length > n", arg=before)
            last(page).get_by_role("button", name=choice).click()
            ended(page)
            assert len(ran) == times and "It is done." in last(page).inner_text()
        ask(page, "once more")  # it was allowed for the conversation
        assert len(ran) == 3
        last(page).locator(".call summary").click()
        assert "it was <b>sent</b>" in last(page).locator(".call").inner_text()
        watched.check()


def test_settings_privacy_and_sources(chromium: Any) -> None:
    live = PageLive([excerpt(1, "x")], sent=[{"time": 1.79e9, "host": "news.example", "why": "search: rockets",
                                             "sent": "GET https://news.example/?q=rockets"}])
    with served_page(words("ok"), live=live) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.locator("#open-settings").click()
        page.get_by_role("tab", name="Privacy").click()
        page.get_by_role("cell", name="GET https://news.example/?q=rockets").wait_for()
        page.get_by_role("switch", name="Offline").click()
        page.locator("#offline-badge").wait_for()
        assert live.offline
        page.locator("#toggle-live[aria-disabled]").wait_for(state="detached")  # the archive can still be asked
        assert page.locator("#toggle-live").get_attribute("title") == (
            "Live is off: the model answers from memory")
        page.get_by_role("switch", name="Offline").click()
        page.get_by_role("tab", name="Live sources").click()
        page.get_by_label("Address or name").fill("https://other.example/feed")
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_text("https://other.example/feed was added.").wait_for()
        assert [one["kind"] for one in live.sources.list()] == ["feed", "page"]
        page.get_by_role("button", name="Remove space-news").click()
        page.get_by_text("space-news was removed.").wait_for()
        page.get_by_role("tab", name="System prompts").click()
        page.get_by_text("in use since").first.wait_for()
        page.get_by_role("tab", name="About").click()
        assert MODEL in page.locator("#panel").inner_text() and f"{CONTEXT:,}" in page.locator("#panel").inner_text()
        watched.check()


def test_french_is_whole_and_remembered(chromium: Any) -> None:
    with served_page(echo) as running, open_page(chromium, running, locale="fr-FR") as watched:
        page = watched.page
        assert page.get_by_role("button", name="Nouvelle conversation").is_visible()
        ask(page, "bonjour")
        assert "jetons" in last(page).locator(".readout").inner_text()
        page.locator("#open-settings").click()
        page.get_by_text("English").click()
        page.get_by_role("dialog").get_by_role("button", name="Close").click()
        page.reload()
        page.wait_for_selector("html[data-ready=yes]")
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.get_by_role("button", name="New conversation").is_visible()
        english, french = page.evaluate("import('/web/words.js').then((m) => [m.WORDS.en, m.WORDS.fr])")
        for shown, ours in ((english, REASONS["en"]), (french, REASONS["fr"])):  # as the terminal words them
            assert {k: re.sub("[\u00a0\u202f]", " ", v) for k, v in shown.items() if k.startswith("why_")} == {
                f"why_{code}": text for code, text in ours.items()}
        assert set(english) == set(french) and all(french.values())
        for key, text in french.items():
            assert not re.search(r"[ \u00a0][;!?»]|[ \u202f]:|«[ \u00a0]|\w[;!?»]|[a-zé]:(?!\w)|'", text), (key, text)
            assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", english[key])), key
        page.evaluate("document.documentElement.lang = 'fr'")
        said = page.evaluate("""import('/web/words.js').then((m) => [...["search: news", "read: news", "result of news",
            "open a page", "add a source", "MCP server news", "else"].map(m.errand),
            ...["feed", "new"].map(m.kindOf)])""")
        assert said == ["recherche\u00a0: news", "lecture\u00a0: news", "résultat de news", "ouverture d’une page",
                        "ajout d’une source", "serveur MCP news", "else", "flux", "new"]
        used = "".join(path.read_text() for path in (Path(__file__).parent.parent / "libremoe/server/web").glob("*.js")
                       if path.name != "words.js")
        made = ("call_", "k_", "why_", "kind_", "left_")
        assert not [key for key in english if not re.search(rf"\b{key}\b", used) and not key.startswith(made)
                    and not key.endswith("_auto") and f'"{key}"' not in used and f"{key}" not in ("skip", "message")]
        watched.check()


def test_phone_width(chromium: Any) -> None:
    wide = "| a | b | c | d | e | f |\n|-|-|-|-|-|-|\n| " + " | ".join(["unbreakable-word"] * 6) + " |\n\n"
    text = wide + "```\n" + "x" * 200 + "\n```\n\n" + "y" * 300 + " $" + "+".join(f"x_{i}" for i in range(40)) + "$"
    with served_page(lambda request: [text]) as running, \
            open_page(chromium, running, size=PHONE, has_touch=True, is_mobile=True) as watched:
        page = watched.page
        ask(page, "z" * 200)
        for selector in ("html", "#main", "#thread", "#top", "#composer"):
            width = page.evaluate(
                "s => [document.querySelector(s).scrollWidth, document.querySelector(s).clientWidth]", selector)
            assert width[0] <= min(width[1], PHONE["width"]), (selector, width)
        assert page.evaluate("document.querySelector('#scroll').scrollWidth <= innerWidth")
        assert not page.locator("#sidebar").is_visible()
        page.get_by_role("button", name="Show conversations").click()
        page.locator("#sidebar").get_by_role("link").first.wait_for()
        page.keyboard.press("Escape")
        page.locator("#sidebar").wait_for(state="hidden")
        page.get_by_role("button", name="Show conversations").click()
        page.locator("#new").click()
        page.locator(".greeting").wait_for()
        page.locator("#sidebar").wait_for(state="hidden")
        watched.check()


@pytest.mark.parametrize("language", ["en-US", "fr-FR"])
@pytest.mark.parametrize("width", [320, PHONE["width"]])
def test_the_send_button_is_within_a_phone(chromium: Any, language: str, width: int) -> None:
    with served_page(echo) as running, open_page(chromium, running, size={"width": width, "height": 700},
                                                 locale=language) as watched:
        box = watched.page.locator("#send").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, box


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(chromium: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    text = ("# Title\n\nA [link](https://example.org) and `code`.\n\n```python\nx = 'y'  # z\n```\n\n"
            "| a | b |\n|-|-|\n| 1 | $x^2$ |\n")
    with served_page(lambda request: [text]) as running, \
            open_page(chromium, running, color_scheme=scheme, bypass_csp=True) as watched:  # axe is put into the page
        page = watched.page
        found = {"empty": Axe().run(page)}
        ask(page, "Hello")
        found["talk"] = Axe().run(page)
        page.get_by_role("button", name="Settings").click()
        page.locator("dialog[open]").wait_for()
        found["settings"] = Axe().run(page)
        wrong = {name: [(v["id"], [n["html"] for n in v["nodes"]]) for v in run.response["violations"]]
                 for name, run in found.items() if run.response["violations"]}
        assert wrong == {}


@pytest.mark.parametrize("place", ["message", "error", "math", "citation"])
def test_hostile_text_does_nothing(chromium: Any, place: str) -> None:
    """In people's messages, titles, and answers and formulas that come letter by letter; in what went wrong; in all
    that a source says of itself and in what is cited of it."""
    live = PageLive()

    def says(request: Request) -> list[str]:
        asked = request.messages[-1].text
        if place == "error":
            raise LibremoeError(asked)
        if place == "citation":
            return list("".join(f"{one.text} [{one.number}]. " for one in live.excerpts))
        return list(f"$$\n{asked}\n$$\n\n\\({asked}\\) and ${asked}$" if place == "math" else asked)

    texts, each = [*PAYLOADS, *many(N_PAYLOADS)], 6 if place == "citation" else 12
    as_read = [one.encode(errors="replace").decode() for one in texts]  # what was read from a source is valid text
    with served_page(says, live=live) as running, open_page(chromium, running) as watched:
        page = watched.page
        if place == "citation":
            page.get_by_role("button", name="Live").click()
        for start in range(0, len(texts), each):
            some = texts[start : start + each]
            page.locator("#new").click()
            page.locator(".greeting").wait_for()
            live.excerpts = [excerpt(i, one, one, author=one, source=one, kind=one, url=one)
                             for i, one in enumerate(as_read[start : start + each], 1)]
            ask(page, "What is new?" if place == "citation" else "\n\n".join(some))
            if place == "citation":
                assert page.locator("article.assistant .source").count() == len(some)
                assert set(page.evaluate("[...document.querySelectorAll('.source a')].map((a) => a.protocol)")) <= {
                    "http:", "https:"}
        watched.check()
        assert not page.locator("#thread :is(script, iframe, object, embed, form, img, style, link, base)").count()


def test_hostile_file_names_are_text(chromium: Any) -> None:
    with served_page(echo) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.locator("#open-settings").click()
        page.get_by_role("tab", name="Your data").click()
        for text in [*PAYLOADS, *many(N_PAYLOADS)]:
            name = "".join(c for c in text if c.isprintable()).replace("/", "\u2215") + ".json"
            page.locator("#file").set_input_files({"name": name, "mimeType": "application/json", "buffer": b"no"})
            page.wait_for_function("(name) => document.body.textContent.includes(name)", arg=name)
        watched.check()
        assert not page.locator("dialog :is(script, iframe, object, embed, img, style, link, base)").count()


def test_keyboard_alone(chromium: Any) -> None:
    with served_page(echo) as running, open_page(chromium, running) as watched:
        page, press = watched.page, watched.page.keyboard.press
        assert page.evaluate("document.activeElement.id") == "message"
        page.keyboard.type("by keys")
        press("Shift+Enter")
        page.keyboard.type("alone")
        press("Enter")
        page.wait_for_selector("article.assistant.done")
        ended(page)
        press("ArrowUp")  # an empty field: edit what was said last
        assert page.evaluate("document.activeElement.value") == "by keys\nalone"
        press("Control+a")
        page.keyboard.type("edited")
        press("Enter")
        page.wait_for_function("() => document.querySelector('article.user .body')?.textContent.trim() === 'edited'")
        ended(page)
        press("Alt+r")
        page.wait_for_function("() => [...document.querySelectorAll('.versions')].at(-1)?.textContent === '2/2'")
        ended(page)
        press("Alt+ArrowLeft")
        page.wait_for_function("() => [...document.querySelectorAll('.versions')].at(-1)?.textContent === '1/2'")
        press("Control+k")
        page.keyboard.type("edited")
        page.locator("a.hit").first.wait_for()
        press("ArrowDown")
        press("Enter")
        press("Alt+n")
        page.locator(".greeting").wait_for()
        page.locator("#new").focus()
        press("?")
        page.get_by_role("dialog").get_by_text("To the message field").wait_for()
        assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"
        press("ArrowDown")
        assert page.evaluate("document.activeElement.textContent") == "About"
        press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")
        press("/")
        assert page.evaluate("document.activeElement.id") == "message"
        page.evaluate("document.body.tabIndex = -1; document.body.focus()")
        order = []
        for _ in range(8):  # from the top: the way past everything comes first
            press("Tab")
            order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert order[0] == "Skip to the message field" and "new" in order and "search" in order
        watched.check()


def test_a_screen_reader_hears_each_sentence_once(chromium: Any) -> None:
    text = " ".join(f"Sentence number {i} is here." for i in range(40))
    with served_page(words(text), pause_s=0.02) as running, open_page(chromium, running) as watched:
        page = watched.page
        page.evaluate("""() => { window.heard = []; const el = document.querySelector("#spoken");
            new MutationObserver(() => heard.push(el.textContent)).observe(el, {childList: true,
                characterData: true, subtree: true}); }""")
        ask(page, "talk")
        heard = page.evaluate("heard")
        assert heard[0] == "The answer is being written." and heard[-1].endswith("The answer is complete.")
        spoken = " ".join(heard[1:])
        for i in range(40):
            assert spoken.count(f"Sentence number {i} is here.") == 1, i
        assert page.locator("#thread [aria-live]").count() == 0
        watched.check()


def test_errors_are_text_and_nothing_written_is_lost(chromium: Any) -> None:
    with served_page(echo) as running, open_page(chromium, running) as watched:
        page = watched.page
        ask(page, "one")
        busy = '{"error": {"message": "busy <img src=x onerror=window.ran=1>"}}'
        failing = [lambda route: route.fulfill(status=503, content_type="application/json", body=busy),
                   lambda route: route.abort()]
        # one handler for all: between taking one away and setting another a request slips through
        page.route("**/turns", lambda route: failing.pop(0)(route) if failing else route.continue_())
        page.locator("#message").fill("keep me")
        page.keyboard.press("Enter")
        page.locator("#notice").get_by_text("busy <img").wait_for()
        assert page.locator("#message").input_value() == "keep me"
        page.keyboard.press("Enter")
        page.get_by_text("The server does not answer.").wait_for()
        assert page.locator("#message").input_value() == "keep me"
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelectorAll('article.assistant').length === 2")
        ended(page)
        assert texts(page)[-2:] == ["keep me", "You said keep me as number 2."]
        page.goto(f"{running.url}/#/c/{'0' * 32}")
        page.get_by_text("This conversation is not here any more.").wait_for()


def test_logging_in(chromium: Any, tmp_path: Path) -> None:
    secret = keys.add(tmp_path / "keys.json", "someone")
    with served_page(echo, keys=tmp_path / "keys.json") as running, \
            open_page(chromium, running, ready=False) as watched:
        page = watched.page
        page.get_by_label("Key").fill("lm-wrong")
        page.keyboard.press("Enter")
        page.get_by_text("This key is not known here.").wait_for()
        page.get_by_label("Key").fill(secret)
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-ready=yes]")
        ask(page, "in")
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and secret not in cookie["value"]
        assert page.evaluate("document.cookie") == "" and secret not in page.content()
        assert not page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})").count(secret)
        send = {"cookie": f"libremoe={cookie['value']}"}
        asked = {"url": f"{running.url}/api/conversations", "headers": send, "json": {}}
        assert CLIENT.get(asked["url"], headers=send).status_code == 200
        assert CLIENT.post(**asked).status_code == 401  # nobody says that it comes from our page
        asked["headers"] = send | {"origin": "http://evil.example"}
        assert CLIENT.post(**asked).status_code == 403
        asked["headers"] = send | {"origin": running.url}
        assert CLIENT.post(**asked).status_code == 201
        for path in ("/v1/models", "/metrics", "/openapi.json"):  # the cookie is for the page alone
            assert CLIENT.get(running.url + path, headers=send).status_code == 401
        keys.remove(tmp_path / "keys.json", "someone")
        page.wait_for_timeout(1100)  # keys are read again after a second
        assert CLIENT.get(f"{running.url}/api/conversations", headers=send).status_code == 401
        assert not [line for line in watched.errors if "401" not in line]


def test_files_of_the_page(chromium: Any) -> None:
    with served_page(echo) as running:
        found = CLIENT.get(running.url)
        policy = found.headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert not re.search(r"<script(?![^>]* src=)|\sstyle=|\son\w+=|<style|https?://", found.text)
        names = set(re.findall(r'"/web/([\w.]+)"', found.text))
        while True:
            more = {name for one in names if one.endswith(".js")
                    for name in re.findall(r'from "\./([\w.]+)"', CLIENT.get(f"{running.url}/web/{one}").text)}
            if more <= names:
                break
            names |= more
        folder = Path(__file__).parent.parent / "libremoe/server/web"
        assert names | {"index.html"} == {path.name for path in folder.iterdir()}
        etag = CLIENT.get(f"{running.url}/web/app.js").headers["etag"]
        assert CLIENT.get(f"{running.url}/web/app.js", headers={"if-none-match": etag}).status_code == 304
        for path in ("/web/../app.py", "/web/%2e%2e%2fapp.py", "/web/nonesuch.js", "/web/", "/web/app.js/",
            "/web/__init__.py"):
            assert CLIENT.get(running.url + path).status_code == 404, path


@pytest.mark.parametrize(("name", "size", "scheme", "language"), [
    ("desk", DESK, "light", "en-US"), ("phone", PHONE, "dark", "fr-FR")])
def test_pictures_for_the_readme(chromium: Any, tmp_path: Path, name: str, size: dict[str, int], scheme: str,
                                 language: str) -> None:
    """LIBREMOE_PICTURES=docs/screenshots keeps them."""
    folder = Path(os.environ.get("LIBREMOE_PICTURES", tmp_path))
    live = PageLive([excerpt(1, "The rocket flew 20 times in 2026.", "Rocket news", published=1.79e9),
                     excerpt(2, "The rocket was built in France.", "Space weekly", author="Ana")])
    said = ("The rocket flew **20 times** in 2026 [1]. The rocket was built in Spain [2].\n\n"
            "| year | flights |\n|-|-|\n| 2026 | 20 |")
    with served_page(lambda request: re.findall(r"\s*\S+", said), live=live) as running, \
            open_page(chromium, running, size=size, color_scheme=scheme, locale=language) as watched:
        page = watched.page
        page.locator("#toggle-live").click()
        ask(page, "What is new about rockets?")
        page.screenshot(path=folder / f"{name}.png")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        watched.check()
