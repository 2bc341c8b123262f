"""Does the text that a sentence cites bear it out? Asked of every sentence of an answer, by rules that can be read.

A sentence is supported where some stretch of one to three sentences of a cited excerpt has all its numbers, dates,
names and quotations, bound to the same things, turned round by no negation, and enough of its words. This is no
understanding: a paraphrase in other words is called unsupported sooner than a changed number is let through.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import lru_cache

from libremoe.live.agreement import agreement
from libremoe.live.claims import Claim, acronyms, claim, shared
from libremoe.live.figures import Day, Figure, agree, same_day
from libremoe.live.values import Excerpt, Sentence
from libremoe.live.words import EXCLUSIVE, fold, language, sentences, stem

__all__ = ["agreement", "check", "cited_numbers"]

Problem = tuple[str, str]  # a key of reasons.REASONS, and what it is about

_MARK = re.compile(r"\[\^?(\d[\d,;\s–-]{0,80})\]|【(\d[^】【\[`\n]{0,40})】")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_DRESS = re.compile(r"^[\s>#*-]*(?:\d{1,3}[.)]\s)?|\*\*|__|(?<!\w)[*_]|[*_](?!\w)")
# A clause that begins so goes on about what was said before.
_ELLIPTIC = re.compile(r"(?:up|down|against|compared|from|than|contre|après)\b", re.IGNORECASE)
MAX_RANGE = 50  # [1-3] is three numbers; a longer range only its ends
MAX_WINDOW = 3  # sentences of an excerpt that may bear out one sentence together
STANDS_BESIDE = 0.75  # share of the best sentence's likeness to the claim that another must have to bear it out
# Share of a sentence's words that the source must have; less where names and numbers say already what it is about.
NEEDED_WORDS = {0: 0.6, 1: 0.5, 2: 0.34}


def cited_numbers(text: str) -> tuple[int, ...]:
    """Excerpt numbers in a text, in order, once each: [1], [2, 3], [4-6], [^7]. What cannot be a number is 10**9."""
    found: dict[int, None] = {}
    for match in _MARK.finditer(text):
        inner = match.group(1) or re.split(r"[^\d,;\s–-]", match.group(2))[0]
        for part in re.split(r"[,;\s]+", re.sub(r"\s*[–-]\s*", "-", inner)):
            ends = [int(d) if len(d) < 10 else 10**9 for d in re.findall(r"\d+", part)]
            if len(ends) == 2 and 0 < ends[1] - ends[0] <= MAX_RANGE:
                ends = list(range(ends[0], ends[1] + 1))
            found.update(dict.fromkeys(ends))
    return tuple(found)


def check(answer: str, excerpts: Sequence[Excerpt]) -> list[Sentence]:
    """Every sentence of an answer in order, with its verdict. A sentence with one dangling number is dangling."""
    by_number = {e.number: e for e in excerpts}
    plain = _CODE.sub(lambda m: " " * len(m.group()), answer)  # indices there are no citations
    marked = _CODE.sub(lambda m: "`" * len(m.group()), answer)  # and no citation goes on behind code
    found = []
    for start, end in sentences(plain):
        text = plain[start:end]
        numbers = cited_numbers(marked[start:end])
        strangers = [n for n in numbers if n not in by_number]
        if strangers:
            shown = ", ".join(str(n) for n in strangers[:5])
            found.append(Sentence(start, end, numbers, "dangling", None, "dangling", shown))
        elif not numbers:
            found.append(Sentence(start, end, (), "uncited"))
        else:
            found.append(_judge(Sentence(start, end, numbers, "unsupported"), _bare(text),
                                [by_number[n] for n in numbers]))
    return found


def _bare(text: str) -> str:
    """A sentence without citations and Markdown."""
    return re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\s+", " ", _DRESS.sub("", _MARK.sub("", text)))).strip()


def _judge(sentence: Sentence, text: str, cited: list[Excerpt]) -> Sentence:
    made = claim(text)
    if not (made.stems or made.names or made.numbers or made.days):
        return dataclasses.replace(sentence, reason="empty")
    best = [_best(made, excerpt) for excerpt in cited]
    good = [m for m in best if not m.problem] or _by_parts(made, cited)
    nearest = min(good or best, key=lambda m: -m.words)
    span = (nearest.excerpt.number, nearest.start, nearest.end)
    if not good:
        return dataclasses.replace(sentence, span=span, reason=nearest.problem, about=nearest.about)
    used = {m.excerpt.number for m in good}
    idle = [m.excerpt.number for m in best if m.excerpt.number not in used and not m.related]
    if idle:
        return dataclasses.replace(sentence, span=span, reason="unrelated", about=str(idle[0]))
    return dataclasses.replace(sentence, verdict="supported", span=span)


@dataclasses.dataclass(frozen=True)
class _Match:
    """How well a stretch of an excerpt bears out a claim. problem, about: those of reasons.py, "" where it does. words:
    share found there."""

    excerpt: Excerpt
    start: int
    end: int
    problem: str
    about: str
    words: float
    related: bool = True


def _by_parts(made: Claim, cited: list[Excerpt]) -> list[_Match]:
    """The claim's clauses, each borne out by some excerpt; [] where one is not, or there is only one."""
    if len(made.parts) < 2 or made.quotes:
        return []
    found, before, start = [], frozenset[str](), 0
    for _, end in made.parts:
        part = claim(made.text[start:end], None, start == 0)
        if len(part.stems) + len(part.names) + len(part.numbers) < 2 or not (part.stems or len(part.names) > 1):
            continue  # too little to stand alone, such as "in May": it goes with what follows
        before, start = part.keys or before, end
        matches = [_best(dataclasses.replace(part, keys=before), excerpt) for excerpt in cited]
        if all(m.problem for m in matches):
            return []
        found += [m for m in matches if not m.problem]
    return found if start == made.parts[-1][1] else []


def _best(made: Claim, excerpt: Excerpt) -> _Match:
    """The stretch with the fewest objections, then with the most of the claim's words, then the shortest."""
    spans = _sentences_of(excerpt.text)
    ranked = []
    for length in range(1, min(MAX_WINDOW, len(spans)) + 1):
        for i in range(len(spans) - length + 1):
            start, end = spans[i][0], spans[i + length - 1][1]
            source = claim(excerpt.text[start:end], excerpt.published)
            ranked.append((-_likeness(made, source), length, start, end, source))
    ranked.sort(key=lambda r: r[:3])
    closest = max((-r[0] for r in ranked if r[1] == 1), default=0.0)
    worst = _Match(excerpt, 0, 0, "silent", "", 0.0, False)
    nearest, fewest = worst, 100
    for likeness, _, start, end, source in ranked:
        if -likeness < STANDS_BESIDE * closest:
            break  # what stands in the sentence that is most like the claim counts, not one that says little
        problems = _problems(made, source, excerpt)
        match = _Match(excerpt, start, end, *(problems[0] if problems else ("", "")), -likeness, likeness < -0.3)
        if not problems:
            return match
        if len(problems) < fewest:
            nearest, fewest = match, len(problems)
    return nearest


@lru_cache(1024)
def _sentences_of(text: str) -> list[tuple[int, int]]:
    return sentences(text)


def _likeness(made: Claim, source: Claim) -> float:
    """Share of the claim's words, names and numbers that the source has, from 0 to 1."""
    has = len(shared(made.stems, source.everything)) + 2 * len(made.keys & source.keys) + 2 * sum(
        any(agree(n, m) for m in source.numbers) for n in made.numbers)
    return has / max(1, len(made.stems) + 2 * len(made.keys) + 2 * len(made.numbers))


def _problems(made: Claim, source: Claim, excerpt: Excerpt) -> list[Problem]:
    """What speaks against the source bearing out the claim; [] where nothing does."""
    whole = claim(f"{excerpt.title}. {excerpt.text}", excerpt.published)
    found = [("quote", q) for q in made.quotes if _flat(q) not in _flat(excerpt.text)]
    found += _numbers_missing(made, source, excerpt.published)
    missing = [n for n in made.keys if not _has_name(n, made, source)]
    if missing and not _from_before(missing, made, source, whole):
        found.append(("name", _written(missing[0], made)))
    found += _turned(made, source) + _opposite(made, source)
    if not made.hedged and any(there.hedged for _, there in _aligned(made, source)):
        found.append(("hedged", ""))
    found += _bound_elsewhere(made, source) + _swapped(made, source)
    if not found and not _enough_words(made, source, whole):
        found.append(("words", ""))
    return found


def _flat(text: str) -> str:
    return re.sub(r"[\W_]+", " ", fold(text)).strip()


def _written(key: str, made: Claim) -> str:
    return next((n.written for n in made.names if n.key == key), key)


def _numbers_missing(made: Claim, source: Claim, published: float | None) -> list[Problem]:
    years = {d.year for d in (*source.days, *source.relative) if d.year}
    found: list[Problem] = []
    for n in made.numbers:
        year = not n.kind and any(int(v) in years for v in n.values if 1000 <= v <= 2100)
        if not year and not any(agree(n, m) for m in source.numbers):
            found.append(("number", made.text[n.start:n.end]))
    for d in made.days:
        year_only = d.year and any(d.year in map(int, m.values) for m in source.numbers) and not d.month
        if not year_only and not any(same_day(d, s, published) for s in (*source.days, *source.relative)):
            found.append(("date", made.text[d.start:d.end]))
    return found


def _has_name(key: str, made: Claim, source: Claim) -> bool:
    written = _written(key, made)
    return (key in source.keys or stem(written) in source.everything or key in acronyms(source.text)
            or any(n.key in acronyms(made.text) and key[0] in n.key for n in source.names if n.written.isupper()))


def _from_before(missing: list[str], made: Claim, source: Claim, whole: Claim) -> bool:
    """Whether the missing names stand elsewhere in the excerpt or its title and this stretch may speak of them.

    It may where it begins with a pronoun, or has no names but those of the claim.
    """
    known = all(_has_name(n, made, whole) for n in missing)
    return known and (source.leans_back or source.keys <= made.keys)


def _turned(made: Claim, source: Claim) -> list[Problem]:
    """A clause with a negation, where the source's most like it has none about the same, or the reverse."""
    for part, there in _aligned(made, source):
        against = part.negated and not there.negated
        if not part.negated and there.negated:
            against = not there.heads or bool(there.heads & part.affirmed)
        if against and not _exclude(part.stems, there.stems):
            return [("negation", "")]
    return []


def _opposite(made: Claim, source: Claim) -> list[Problem]:
    """A word that excludes what the source says, such as rose and fell, in clauses that speak of the same."""
    for part, there in _aligned(made, source):
        if part.negated == there.negated and _exclude(part.stems, there.stems):
            return [("opposite", "")]
    return []


def _exclude(stems: frozenset[str], there: frozenset[str]) -> bool:
    """Whether one of the stems, not being there itself, excludes something that is there."""
    others = {side for o in there for side in EXCLUSIVE.get(o, ())}
    for s in stems - there:
        sides = EXCLUSIVE.get(s, set())
        if not sides & others and {line for line, _ in sides} & {line for line, _ in others}:
            return True
    return False


def _aligned(made: Claim, source: Claim) -> list[tuple[Claim, Claim]]:
    """Each clause of the claim with the source's clause, or clauses, that are most like it."""
    parts = [claim(source.text[a:b], None, a == 0) for a, b in source.parts]
    found = []
    for a, b in made.parts:
        piece = claim(made.text[a:b], None, a == 0)
        common = [_common(piece, p) for p in parts]
        found += [(piece, p) for p, n in zip(parts, common, strict=True) if n == max(common) > 0]
    return found


def _common(made: Claim, source: Claim) -> int:
    """How much two clauses share; a name counts least, since appositions repeat it."""
    figures = sum(any(agree(n, m) for m in source.numbers) for n in made.numbers)
    days = sum(any(same_day(d, e, None) for e in source.days) for d in made.days)
    return 2 * (len(shared(made.stems, source.everything)) + figures + days) + len(made.keys & source.keys)


@dataclasses.dataclass(frozen=True)
class _Clause:
    made: Claim
    words: frozenset[str]  # stems, and names, those of the clause before where it has none


def _clauses_with_names(made: Claim, whole: bool = False) -> list[_Clause]:
    """whole: as one clause."""
    found: list[_Clause] = []
    before, waiting = frozenset[str](), 0
    for a, b in [(0, len(made.text))] if whole else made.parts:
        piece = claim(made.text[a:b], None, a == 0)
        before = piece.keys or before
        own = piece.stems | before
        if found and _ELLIPTIC.match(piece.text):
            own |= found[-1].words
        found.append(_Clause(piece, own))
        waiting += not before
    if waiting and before:
        found = [_Clause(c.made, c.words | before) if i < waiting else c for i, c in enumerate(found)]
    return found


def _bound_elsewhere(made: Claim, source: Claim) -> list[Problem]:
    """A number or date that the source gives of something else: its clause is less like the claim's than another's."""
    there = _clauses_with_names(source)
    days = frozenset(map(_day_key, made.days))
    for part in _clauses_with_names(made, whole=len(made.numbers) < 2):
        for n in part.made.numbers:
            fits = [[agree(n, m) for m in c.made.numbers if m.kind == n.kind or agree(n, m)] for c in there]
            if _elsewhere(part, there, fits, days):
                return [("elsewhere", part.made.text[n.start:n.end])]
        for d in part.made.days:
            fits = [[same_day(d, e, None) for e in c.made.days] for c in there]
            if _elsewhere(part, there, fits, frozenset()):
                return [("elsewhere", part.made.text[d.start:d.end])]
    return _other_date(made, source)


def _day_key(day: Day) -> str:
    return f"{day.day} {day.month} {day.weekday}"


def _elsewhere(part: _Clause, there: list[_Clause], fits: list[list[bool]], days: frozenset[str]) -> bool:
    """fits: of each clause, whether each of its numbers (or dates) is the one. days: the claim's, counted as words."""
    own, other = -1, 0
    for c, found in zip(there, fits, strict=True):
        score = len(shared(part.words, c.words)) + any(_day_key(d) in days for d in c.made.days)
        if any(found):
            own = max(own, score)
        elif found:
            other = max(other, score)
    return own >= 0 and other > own


def _other_date(made: Claim, source: Claim) -> list[Problem]:
    """A number with a date where the source gives it beside another date, and another number beside this one."""
    if len(made.days) != 1 or len(source.days) < 2 or len(source.numbers) < 2:
        return []
    day = made.days[0]
    for n in made.numbers:
        beside = [_nearest(m, source.days) for m in source.numbers if agree(n, m)]
        taken = [_nearest(m, source.days) for m in source.numbers if m.kind == n.kind and not agree(n, m)]
        if beside and not any(same_day(day, d, None) for d in beside) and any(same_day(day, d, None) for d in taken):
            return [("other_date", made.text[n.start:n.end])]
    return []


def _nearest(number: Figure, days: Sequence[Day]) -> Day:
    return min(days, key=lambda d: d.start - number.end if d.start >= number.end else number.start - d.end + 3)


def _swapped(made: Claim, source: Claim) -> list[Problem]:
    """Two names that changed places around the same word: who beat whom."""
    first = {n.key: n for n in reversed(source.names)}
    passive = {text: bool(re.search(r"\b(?:by|par)\b", text, re.IGNORECASE)) for text in (made.text, source.text)}
    for i, a in enumerate(made.names):
        for b in made.names[i + 1:]:
            if a.key == b.key or a.key not in first or b.key not in first or first[a.key].start < first[b.key].start:
                continue
            here = _between(made.text, a.start + len(a.written), b.start)
            there = _between(source.text, first[b.key].start + len(b.written), first[a.key].start)
            if shared(here, there) and passive[made.text] == passive[source.text]:
                return [("swapped", f"{a.written}, {b.written}")]
    return []


def _between(text: str, start: int, end: int) -> frozenset[str]:
    return claim(text[start:end], None, False).stems


def _enough_words(made: Claim, source: Claim, whole: Claim) -> bool:
    given = sum(any(agree(n, m) for m in source.numbers) for n in made.numbers)
    here = len(made.keys & source.keys) + given + len(made.days)
    common = len(shared(made.stems, source.everything))
    if not here + common:
        return False  # only names that stand elsewhere in the excerpt
    languages = language(made.text), language(source.text)
    if languages[0] != languages[1] and "" not in languages:
        return here >= 2 or bool(here and common)
    if source.leans_back:
        common = len(shared(made.stems, source.everything | whole.everything))
    if len(made.stems) <= 2 and here >= 2:
        return True
    return common >= NEEDED_WORDS[min(here, 2)] * len(made.stems)
