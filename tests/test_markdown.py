"""Markdown as HTML: what people expect of it, and that nothing it is given, whole or cut anywhere, becomes more than
text, links and formulas."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import PAYLOADS

from libremoe.chat import markdown
from libremoe.chat.markdown import ATTRIBUTES, CLASSES, MATH_TAGS, SCHEMES, TEXT_TAGS, render

SOURCES = [{"number": 1, "title": 'A "quoted" <title>'}, {"number": 2, "title": "B"}]
LONGEST_S = 10 * markdown.DEADLINE_S  # however busy the machine


class Checker(HTMLParser):
    """Reads HTML by itself and raises at whatever the allow-list has not."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TEXT_TAGS | MATH_TAGS:
            raise ValueError(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name in ("style", "src", "id", "name") or \
                    name not in ATTRIBUTES.get(tag, set()) | ({"rel"} if tag == "a" else set()):
                raise ValueError(f"<{tag} {name}={value}>")
            scheme = (value or "").split(":")[0].lower()
            if name == "href" and scheme not in SCHEMES and not scheme.startswith("#"):
                raise ValueError(f"a link to {value}")
            if name == "class" and not set((value or "").split()) <= CLASSES[tag]:
                raise ValueError(f"the class {value}")

    def handle_comment(self, data: str) -> None:
        raise ValueError("a comment")

    handle_decl = unknown_decl = handle_pi = handle_comment


def check(html: str) -> str:
    checker = Checker()
    checker.feed(html)
    checker.close()
    return html


@pytest.mark.parametrize(("text", "expected"), [
    ("# Title", "<h3>Title</h3>"),
    ("**bold** *soft* ~~gone~~ `code`", "<strong>bold</strong> <em>soft</em> <s>gone</s> <code>code</code>"),
    ("[a](https://x.example/?a=1&b=2)", 'href="https://x.example/?a=1&amp;b=2"'),
    ("see https://x.example/a_(b). Then", 'href="https://x.example/a_(b)"'),
    ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
    ("[a](/relative)", "<p>[a](/relative)</p>"),
    ("![a picture](https://x.example/x.png)", '<span class="image"><a href="https://x.example/x.png"'),
    ("|a|b|\n|:-|-:|\n|1|2|", '<td class="right">2</td>'),
    ("```python\nif x: pass\n```", '<span class="k">if</span>'),
    ("```python\nif x: pass\n```", 'data-language="python"'),
    ("```nonesuch\n<b>\n```", "<code>&lt;b&gt;\n</code>"),
    ("3. c", '<ol start="3">'),
    ("one\ntwo", "one<br>"),
    ("$x^2$", "<msup><mi>x</mi><mn>2</mn></msup>"),
    (r"\(x^2\) and \[y\]", "<msup><mi>x</mi><mn>2</mn></msup>"),
    ("$$\na\n=\nb\n$$", '<div class="formula" tabindex="0"><math display="block">'),
    ("\\[\na - b\n\\]", '<div class="formula" tabindex="0"><math display="block">'),
    ("it costs $5 and $6", "<p>it costs $5 and $6</p>"),
    (r"\$x\$", "<p>$x$</p>"),
    (r"$\frac$", r'<code class="formula">\frac</code>'),
    ("`$x$`", "<code>$x$</code>"),
    ("<b>&amp;</b>", "<p>&lt;b&gt;&amp;&lt;/b&gt;</p>"),
    ("a\u202eb", "a&lt;U+202E&gt;b"),
    ("\ud800", "&lt;U+D800&gt;"),
    ("[1] is text without sources", "<p>[1] is text"),
])
def test_what_it_makes(text: str, expected: str) -> None:
    assert expected in check(render(text))


def test_citations_become_links_to_their_sources() -> None:
    found = check(render("So [1], and [2; 7]. [1](http://evil.example)\n\n[2]: http://evil.example",
        SOURCES, anchor="s9"))
    assert found.count('href="#s9-1"') == 2 and found.count('href="#s9-2"') == 2
    assert '<span class="cite dangling">7</span>' in found
    assert 'title="A &quot;quoted&quot; &lt;title&gt;"' in found
    assert render("[1-2] 【2†L3】 [^1]", SOURCES).count('class="cite"') == 4
    assert render("`[1]`", SOURCES) == "<p><code>[1]</code></p>\n"


def test_a_verdict_leaves_a_table_a_table() -> None:
    text = "| year | flights |\n|-|-|\n| 2026 | 20 [1] |"
    for end in (len(text), len(text) - 2, text.index("\n")):
        found = render(text, sentences=[{"start": 0, "end": end, "verdict": "supported"}])
        assert found.count('<span class="verdict supported"></span></t') == 1 and found.count("<td") == 2, found


def test_verdicts_stand_behind_their_sentences_and_change_nothing_else() -> None:
    text = "Sure [1]. **Not so.** \n\n```\ncode.\n```\n\n- It is. \n\n---\n"
    ends = [text.index(".") + 1, text.index("so.") + 3, text.index("code.") + 5, text.index("is.") + 3, len(text)]
    verdicts = ["supported", "unsupported", "uncited", "dangling", "supported"]
    sentences = [{"start": 0, "end": end, "verdict": verdict} for end, verdict in zip(ends, verdicts, strict=True)]
    found = check(render(text, SOURCES, sentences))
    for verdict, before in (("supported", "."), ("unsupported", "so."), ("dangling", "is.")):
        assert f'{before}<span class="verdict {verdict}"></span>' in found
        found = found.replace(f'<span class="verdict {verdict}"></span>', "", 1)
    assert found == render(text, SOURCES)
    assert "verdict" not in render("".join(map(chr, range(0xF0000, 0xF0010))))


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_payloads_stay_text(payload: str) -> None:
    title = [{"number": 1, "title": payload}]
    for text in (payload, f"[1] {payload}", f"${payload}$", f"```{payload}\n{payload}\n```", f"| {payload} |\n|---|",
                 f"[a]({payload})", f"![{payload}]({payload})", f"[{payload}]: {payload}",
                     f"\\[\\text{{{payload}}}\\]"):
        check(render(text, title))


PIECES = st.sampled_from([
    *PAYLOADS[:60], "$", "$$", "\\(", "\\)", "\\[", "\\]", "`", "```", "```html\n", "\n", "\n\n", "[", "]", "(",
        ")", "[1]", "*",
    "**", "|", "|-|\n", "> ", "- ", "1. ", "# ", "<", ">", "&", "\\text{", "\\frac{1}{", "}", "http://x.example/", "\\",
    '"', "'", "!", "~~", "\x00", "\u202e", "\ud800", "javascript:", "data:text/html,", "é", " ",
])


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join), st.data())
def test_no_prefix_of_a_stream_is_more_than_the_allow_list(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    ends = data.draw(st.lists(st.integers(-1, len(text) + 1), max_size=4))
    sentences = [{"start": 0, "end": end, "verdict": "supported"} for end in ends]
    check(render(text[:cut], SOURCES, sentences))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([
    "\\frac", "{", "}", "^", "_", "\\left", "\\right", "(", ")", "\\begin{matrix}", "\\end{matrix}", "&", "\\\\",
    "\\sqrt", "\\text{",
    "\\begin{array}{cc}", "\\end{array}", "a", "1", "\\hspace{", "\\limits", "\\sum", "\\color",
    "\\href{javascript:alert(1)}", "'",
    "\\genfrac", "\\substack", "\\overset", "\\not", "\\big", "\\cases", "<", '"', "%", "#", "\\mathbb",
    "\\operatorname{",
]) | st.text(max_size=3), max_size=30).map("".join))
def test_formulas_that_are_none_are_shown_as_written(latex: str) -> None:
    check(render(f"${latex}$"))


@pytest.mark.parametrize("text", [
    "[" * 100_000, "*a **a " * 20_000, "[a](<b" * 20_000, "![" * 50_000, "&" * 100_000, "$a " * 40_000,
    "$$a\n" * 20_000,
    "\\[a\n" * 20_000, "[1," * 30_000, "\\" * 100_000, "~~a" * 30_000, "_a__a" * 20_000, ">" * 100_000, "- " * 50_000,
    "".join("`" * i + " " for i in range(440)), "$" + "{" * 1900 + "$", "$" + "\\sqrt" * 380 + "$",
    "$" + "\\left(" * 300 + "$",
    "```python\n" + "(" * 29_000, "```html\n" + "<a " * 9_000, "```js\n" + "/" * 900 + "\n" + "x" * 20_000,
    "x" * 500_000,
], ids=lambda text: text[:6].encode("unicode_escape").decode())
def test_time_is_bounded(text: str) -> None:
    began = time.monotonic()
    check(render(text, SOURCES))
    assert time.monotonic() - began < LONGEST_S  # a hang, not a speed: without the clock some take minutes


def test_out_of_time_the_text_is_shown_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "DEADLINE_S", -1.0)
    assert render("**a** <b>") == '<pre class="plain" tabindex="0">**a** &lt;b&gt;</pre>'
