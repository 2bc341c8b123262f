"""The report as one HTML page: no script, nothing loaded from anywhere, every answer in it as text.

Answers and prompts are untrusted: all text goes through t(), and a Content-Security-Policy allows this page's one style
sheet (by its digest) and nothing else, so that even a mistake here could run nothing. Plots are inline SVG whose places
are percentages of the width, so that they fit a phone without smaller letters; each value is also there as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Sequence
from typing import Any

from libremoe.evals.published import published
from libremoe.evals.report import TaskRun, percent, tasks_of, visible

CODE_TASKS = ("humaneval", "humaneval+", "mbpp", "mbpp+")
OUTCOMES = ("passed", "right", "wrong", "exception", "timeout", "syntax error", "refused", "unreadable")

STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --ink: #1c1e21; --soft: #5b6169; --line: #d9dce0; --track: #f1f3f5;
  --c0: #1f5fbf; --c1: #b3470c; --c2: #1b7a4b; --c3: #7a3fa0; --other: #6d747c;
  --good: #1b7a4b; --bad: #b3261e; --o2: #b3261e; --o3: #b3470c; --o4: #7a3fa0; --o5: #8a6d00; --o6: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --ink: #e7e9ec; --soft: #a2a9b2; --line: #343940;
  --track: #1f2329; --c0: #7fb0ff; --c1: #ffab78; --c2: #6fd3a0; --c3: #d0a2f0; --other: #8f97a1;
  --good: #6fd3a0; --bad: #ff8f86; --o2: #e0574e; --o3: #d98244; --o4: #a878cc; --o5: #b89a2e; --o6: #7c8694; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--bg); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; } p { margin: .25rem 0 .75rem; } .soft { color: var(--soft); }
a { color: var(--c0); } :focus-visible { outline: 3px solid var(--c0); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: .75rem 0; }
.wide { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
td.n, th.n { text-align: right; white-space: nowrap; } tr.known { color: var(--soft); }
.row { display: grid; grid-template-columns: 13rem 1fr 14rem; gap: .75rem; align-items: center; }
.row > :last-child { font-variant-numeric: tabular-nums; color: var(--soft); font-size: .875rem; }
.row > :first-child { line-height: 1.25; font-size: .9375rem; }
svg { display: block; width: 100%; height: 1.6rem; overflow: visible; } svg.axis { height: 1.3rem; }
svg text { fill: var(--soft); font-size: .75rem; } .grid { stroke: var(--line); }
.s0 { stroke: var(--c0); fill: var(--c0); } .s1 { stroke: var(--c1); fill: var(--c1); }
.s2 { stroke: var(--c2); fill: var(--c2); } .s3 { stroke: var(--c3); fill: var(--c3); }
.sp { stroke: var(--other); fill: var(--bg); } .span { stroke-width: 3; }
.good { fill: var(--good); background: var(--good); } .o2 { fill: var(--o2); background: var(--o2); }
.o3 { fill: var(--o3); background: var(--o3); } .o4 { fill: var(--o4); background: var(--o4); }
.o5 { fill: var(--o5); background: var(--o5); } .o6 { fill: var(--o6); background: var(--o6); }
.part { stroke: var(--bg); stroke-width: 1; }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none; font-size: .875rem; }
.key svg { display: inline-block; width: 16px; height: 16px; vertical-align: -.2rem;
  margin-right: .3rem; }
.key i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; vertical-align: -.05rem; }
details { border-top: 1px solid var(--line); } details details { margin-left: 1rem; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .35rem 0; } .item { content-visibility: auto; contain-intrinsic-size: auto 2.2rem; }
pre { white-space: pre-wrap; background: var(--track); padding: .6rem .75rem; margin: .25rem 0 .75rem;
  border-radius: 4px; font: .8125rem/1.45 ui-monospace, monospace; max-height: 30rem; overflow: auto; }
.yes { color: var(--good); } .no { color: var(--bad); } dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) {
  .row { grid-template-columns: minmax(5rem, 1fr) fit-content(68%); gap: 0 .75rem; margin-bottom: .5rem; }
  .row > svg { grid-column: 1 / -1; grid-row: 2; } details details { margin-left: .4rem; } }
"""


def t(text: object) -> str:
    """Any text for HTML, also within quotes."""
    return html.escape(visible(str(text)), quote=True)


def page(runs: Sequence[TaskRun]) -> str:
    """The whole document."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    names = list(dict.fromkeys(one.run for one in runs))
    body = "".join([_head(runs, names), _scores(runs, names), _groups(runs, names), _outcomes(runs),
                    _costs(runs, names), _answers(runs)])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'sha256-{digest}\'; '
        'base-uri \'none\'; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="referrer" content="no-referrer">\n<title>Evaluation: {t(", ".join(names))}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _head(runs: Sequence[TaskRun], names: Sequence[str]) -> str:
    links = [("scores", "Scores"), ("groups", "By subject"), ("outcomes", "By outcome"), ("costs", "Time and cost"),
             ("answers", "Every answer")]
    there = {"scores", "costs", "answers"}
    there |= {"groups"} if any(one.result["groups"] for one in runs) else set()
    there |= {"outcomes"} if any(one.task in CODE_TASKS for one in runs) else set()
    listed = "".join(f'<li><a href="#{id}">{text}</a></li>' for id, text in links if id in there)
    n_items = sum(one.result["n"] for one in runs)
    return (f"<header><h1>Evaluation</h1><p class=\"soft\">{t(', '.join(names))}: {n_items} answers on "
            f"{len(tasks_of(runs))} benchmarks. Intervals are 95 %.</p>"
            f'<nav aria-label="Sections"><ul>{listed}</ul></nav></header>\n<main>\n')


def _scores(runs: Sequence[TaskRun], names: Sequence[str]) -> str:
    plots, rows = "", ""
    for task in tasks_of(runs):
        ours = [one for one in runs if one.task == task]
        title = t(ours[0].result["title"])
        lines = ""
        for one in ours:
            result, interval = one.result, one.result["interval"]
            span = f"{100 * interval['low']:.1f} to {100 * interval['high']:.1f}"
            mark = _mark(result["score"], interval["low"], interval["high"], _colour(one.run, names))
            lines += _row(one.run, mark, f"{percent(result['score'])}, {span}, n {result['n']}")
            rows += (f"<tr><td>{title}</td><td>{t(one.run)}</td><td class=\"n\">{percent(result['score'])}</td>"
                     f"<td class=\"n\">{span}</td><td class=\"n\">{result['n']} of {result['of']}</td>"
                     f"<td>{t(interval['method'])}; {t(', '.join(result['how']))}</td></tr>")
        for known in published(task):
            low, high = known.score - known.margin, known.score + known.margin
            span = f"{100 * low:.1f} to {100 * high:.1f}"
            lines += _row(f"{known.model}, published", _mark(known.score, low, high, "sp"),
                          f"{percent(known.score)}, {span}, n {known.n_items}")
            rows += (f'<tr class="known"><td>{title}</td><td>{t(known.model)}, published</td><td class="n">'
                     f'{percent(known.score)}</td><td class="n">{span}</td><td class="n">{known.n_items}</td>'
                     f"<td>{t(known.setting)}; {t(known.source)}</td></tr>")
        plots += f"<h3>{title}</h3>{lines}{_axis()}"
    return (f'<section aria-labelledby="scores"><h2 id="scores">Scores</h2>{plots}<details><summary>The same as a table'
            f'</summary><div class="wide" tabindex="0" role="region" aria-label="Table of scores"><table><thead><tr>'
            f'<th scope="col">Benchmark</th><th scope="col">Model</th><th scope="col" class="n">Score</th>'
            f'<th scope="col" class="n">Interval</th><th scope="col" class="n">n</th><th scope="col">How</th></tr>'
            f"</thead><tbody>{rows}</tbody></table></div></details></section>\n")


def _groups(runs: Sequence[TaskRun], names: Sequence[str]) -> str:
    parts = ""
    for task in tasks_of(runs):
        ours = [one for one in runs if one.task == task and one.result["groups"]]
        if not ours:
            continue
        scores = {g: v["score"] for one in reversed(ours) for g, v in one.result["groups"].items()}
        lines = ""
        for group in sorted(scores, key=lambda g: (-scores[g], g)):
            marks, said = "", []
            for i, one in enumerate(o for o in ours if group in o.result["groups"]):
                value = one.result["groups"][group]
                marks += _mark(value["score"], value["low"], value["high"], _colour(one.run, names), i, len(ours))
                said.append(f"{100 * value['score']:.0f} % of {value['n']}")
            lines += _row(group.replace("_", " "), marks, "; ".join(said))
        parts += f"<h3>{t(ours[0].result['title'])}</h3>{_key(ours, names)}{lines}{_axis()}"
    return f'<section aria-labelledby="groups"><h2 id="groups">By subject</h2>{parts}</section>\n' if parts else ""


def _outcomes(runs: Sequence[TaskRun]) -> str:
    ours = [one for one in runs if one.task in CODE_TASKS]
    if not ours:
        return ""
    lines = ""
    for one in ours:
        counts = {name: one.result["outcomes"].get(name, 0) for name in OUTCOMES}
        at, parts, total = 0.0, "", max(1, sum(counts.values()))
        for name, count in counts.items():
            if count:
                width = 100 * count / total
                parts += (f'<rect class="part {_outcome_class(name)}" x="{at:.2f}%" y="2" width="{width:.2f}%" '
                          f'height="80%"><title>{t(name)}: {count}</title></rect>')
                at += width
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        label = one.run if len({o.task for o in ours}) == 1 else f"{one.run}, {one.result['title'].split(' (')[0]}"
        lines += _row(label, parts, said)
    key = "".join(f'<li><i class="{_outcome_class(name)}"></i>{name}</li>' for name in OUTCOMES
                  if any(one.result["outcomes"].get(name) for one in ours))
    return (f'<section aria-labelledby="outcomes"><h2 id="outcomes">By outcome</h2><p class="soft">What became of the '
            f'programs that were written.</p><ul class="key">{key}</ul>{lines}</section>\n')


def _costs(runs: Sequence[TaskRun], names: Sequence[str]) -> str:
    middles = {id(one): _quantiles([item["seconds"] for item in one.items]) for one in runs}
    most = max((q[2] for q in middles.values()), default=0.0) or 1.0
    lines, rows = "", ""
    for one in runs:
        low, middle, high = middles[id(one)]
        mark = _mark(middle / most, low / most, high / most, _colour(one.run, names))
        label = f"{one.run}, {one.result['title'].split(' (')[0]}"
        lines += _row(label, mark, f"{_seconds(middle)}, {_span(low, high)}")
        tokens = sum(item["tokens"] for item in one.items) / max(1, len(one.items))
        dollars = one.result["dollars_per_item"]
        rows += (f"<tr><td>{t(one.result['title'])}</td><td>{t(one.run)}</td><td class=\"n\">{_seconds(middle)}</td>"
                 f'<td class="n">{tokens:.0f}</td>'
                 f"<td class=\"n\">{'-' if dollars is None else f'${dollars:.5f}'}</td></tr>")
    return (f'<section aria-labelledby="costs"><h2 id="costs">Time and cost an item</h2><p class="soft">The median '
            f"time of an answer, and where nine of ten lie; the full width is {_seconds(most)}.</p>{lines}"
            f'<div class="wide" tabindex="0" role="region" aria-label="Table of time and cost"><table><thead><tr>'
            f'<th scope="col">Benchmark</th><th scope="col">Model</th><th scope="col" class="n">Median time</th>'
            f'<th scope="col" class="n">Tokens</th><th scope="col" class="n">Cost</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div></section>\n")


def _answers(runs: Sequence[TaskRun]) -> str:
    parts = "".join(_task_answers(one) for one in runs)
    return (f'<section aria-labelledby="answers"><h2 id="answers">Every answer</h2><p class="soft">Prompts and answers '
            f"as they were, as text. What cannot be seen is written out, as &lt;U+200B&gt;.</p>{parts}</section>\n"
            f"</main>\n")


def _task_answers(one: TaskRun) -> str:
    prefixes = "".join(f"<details><summary>Beginning {number} of the prompts</summary><pre>{t(text)}</pre></details>"
                       for number, text in one.prefixes.items() if text)
    parts: list[str] = []
    groups = list(dict.fromkeys(item["group"] for item in one.items))
    for group in groups:
        items = "".join(_item(item) for item in one.items if item["group"] == group)
        n = sum(item["group"] == group for item in one.items)
        parts.append(f"<details><summary>{t(group.replace('_', ' '))} ({n})</summary>{items}</details>"
                     if group else items)
    return (f"<details><summary><strong>{t(one.run)}</strong>, {t(one.result['title'])}: {one.result['n']} answers"
            f"</summary>{_settings(one.result)}{prefixes}{''.join(parts)}</details>")


def _settings(result: dict[str, Any]) -> str:
    shown = {"model": result.get("model"), "settings": result.get("settings"), "sample's seed": result.get("seed"),
             "stopped": result["stopped"], "sha256 of the data": result.get("data")}
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{t(value)}</dd>" for name, value in shown.items()) + "</dl>"


def _item(item: dict[str, Any]) -> str:
    good = item["value"] >= 1
    word = item["outcome"] or ("right" if good else "wrong")
    mark = f'<span class="{"yes" if good else "no"}">{t(word)}</span>'
    return (f'<details class="item"><summary>{t(item["id"])}: {mark}, '
            f"{_seconds(item['seconds'])}</summary>{''.join(_fields(item))}</details>")


def _fields(item: dict[str, Any]) -> Iterator[str]:
    begins = f" (after beginning {item['prefix']})" if item["prefix"] >= 0 else ""
    yield f"<h4>Question{begins}</h4><pre>{t(item['question'])}</pre>"
    if item["options"]:
        chances = [*item["logprobs"], *[None] * len(item["options"])]
        yield "<h4>Options</h4><pre>" + "\n".join(
            f"{t(option)}{'' if p is None else f'   log-probability {p:.3f}'}"
            for option, p in zip(item["options"], chances, strict=False)) + "</pre>"
    if item["text"] or not item["options"]:
        yield f"<h4>Answer</h4><pre>{t(item['text'])}</pre>"
    read = f"read: {t(item['said'])}" if item["said"] else "nothing was read out of it"
    wanted = f"; wanted: {t(item['wanted'])}" if item["wanted"] else ""
    yield f"<p>Score {item['value']:g}; {read}{wanted}; {t(item['how'])}.</p>"
    if item["error"]:
        yield f"<p class=\"no\">{t(item['error'])}</p>"


def _row(label: str, marks: str, said: str) -> str:
    """A line of a plot: what, its marks over the grid, and the same in words, which is what a screen reader gets."""
    grid = "".join(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="100%"/>' for x in (0, 25, 50, 75, 100))
    plot = f'<svg aria-hidden="true" focusable="false">{grid}{marks}</svg>'
    return (f'<div class="row"><span>{t(label)}</span>{plot}'
            f"<span>{t(said)}</span></div>")


def _axis() -> str:
    ends = {0: "start", 100: "end"}
    marks = "".join(f'<text x="{x}%" y="1em" text-anchor="{ends.get(x, "middle")}">{x} %</text>'
                    for x in (0, 25, 50, 75, 100))
    return f'<div class="row" aria-hidden="true"><span></span><svg class="axis">{marks}</svg><span></span></div>'


def _mark(score: float | None, low: float, high: float, colour: str, i: int = 0, of: int = 1) -> str:
    """A point on its interval; several share a line, one under another."""
    if score is None:
        return ""
    y = f"{100 * (i + 1) / (of + 1):.0f}%"
    low, high, score = (100 * min(1.0, max(0.0, v)) for v in (low, high, score))
    return (f'<line class="span {colour}" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y}" y2="{y}"/>'
            f'<circle class="{colour}" cx="{score:.2f}%" cy="{y}" r="{5 if of == 1 else 4}" stroke-width="2"/>')


def _key(ours: Sequence[TaskRun], names: Sequence[str]) -> str:
    if len(ours) < 2:
        return ""
    dots = (f'<svg aria-hidden="true"><circle class="{_colour(one.run, names)}" cx="8" cy="8" r="5"/></svg>'
            f"{t(one.run)}" for one in ours)
    return '<ul class="key">' + "".join(f"<li>{dot}</li>" for dot in dots) + "</ul>"


def _colour(run: str, names: Sequence[str]) -> str:
    return f"s{list(names).index(run) % 4}"


def _outcome_class(name: str) -> str:
    return "good" if name in ("passed", "right") else f"o{min(6, OUTCOMES.index(name))}"


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 5th, 50th and 95th per cent, each a value that is there."""
    if not values:
        return 0.0, 0.0, 0.0
    ordered = sorted(values)
    low, middle, high = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.05, 0.5, 0.95))
    return low, middle, high


def _span(low: float, high: float) -> str:
    """Two times, the unit once where it is the same."""
    (number, unit), (_, unit_high) = _seconds(low).split(), _seconds(high).split()
    return f"{number} to {_seconds(high)}" if unit == unit_high else f"{_seconds(low)} to {_seconds(high)}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"
