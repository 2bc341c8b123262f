"""What independent sources say alike, what people think, and where two give different numbers for the same.

Copies are not independent: the same host, or a text that is nearly another's, counts once. A copy whose numbers were
changed is where conflicts are looked for first, since such pages are common among search results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from libremoe.live.claims import Claim, claim, shared
from libremoe.live.figures import Day, agree
from libremoe.live.values import Agreement, Conflict, Excerpt, Fact, Opinion
from libremoe.live.words import fold, sentences, word_set, words

SOCIAL = ("mastodon", "bluesky", "x")
_SECOND_LEVEL = ("co", "com", "org", "net", "gov", "ac", "gouv", "asso")
SAME_SUBJECT = 0.6  # share of the shorter sentence's words and names that the other has
NEAR_COPY = 0.5  # share of three-word runs, numbers left out
MOST = 40  # excerpts that are compared; a question has fewer

_OPINION = word_set("""
think thinks thought believe believes feel feels opinion opinions hope hopes fear fears love hate great terrible
awful wonderful best worst disgraceful excellent brilliant stupid amazing disappointing should must ought ridiculous
overrated underrated beautiful ugly favourite favorite prefer unfair shameful pense penses pensent crois croit
croient estime estiment juge jugent avis espère espèrent crains craint adore déteste génial géniale scandaleux
scandaleuse honteux honteuse excellent formidable nul pire meilleur devrait devraient faut dommage magnifique
ridicule décevant décevante injuste préfère trouve""")
_SAYS = re.compile(r"\b(?:said|says|thinks?|believes?|argues?|argued|called|wrote|estime|juge|pense|croit|affirme|"
                   r"déclare|a déclaré|a dit|dit)\b", re.IGNORECASE)
_ACCORDING = re.compile(r"\b(?:according to|selon|d['’]après|pour)\s+((?:[A-ZÀ-Þ][\w'’-]+\s?){1,4})")


@dataclass(frozen=True)
class _Said:
    """One sentence of one excerpt."""

    excerpt: Excerpt
    text: str
    made: Claim
    opinion: bool


def agreement(excerpts: Sequence[Excerpt]) -> Agreement:
    """Sorts what the excerpts say into facts of several independent sources, opinions, and contradicting numbers."""
    shown = list(excerpts)[:MOST]
    said = [_Said(e, e.text[a:b], made, _is_opinion(e, made)) for e in shown for a, b in sentences(e.text)
            if (made := claim(e.text[a:b], e.published)).stems or made.names]
    copies = _copies(shown)
    return Agreement(tuple(_facts(said, copies)), tuple(_opinions(said)), tuple(_conflicts(said)))


def independent(one: Excerpt, other: Excerpt) -> bool:
    """Of different hosts, and no near-copies of each other."""
    return site(one.url) != site(other.url) and not near_copy(one.text, other.text)


def site(url: str) -> str:
    """The part of a host's name that somebody registered, roughly: its last two labels, or three before a short one."""
    host = (urlsplit(url).hostname or url).lower().rstrip(".")
    labels = host.split(".")
    if labels[-1].isdigit() or ":" in host:
        return host
    deep = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL
    return ".".join(labels[-3 if deep else -2:])


def near_copy(one: str, other: str) -> bool:
    """Whether the texts share most runs of three words, whatever their numbers."""
    a, b = _runs(one), _runs(other)
    return bool(a and b) and len(a & b) >= NEAR_COPY * min(len(a), len(b))


def _runs(text: str) -> set[tuple[str, ...]]:
    plain = [fold(w) for w, _ in words(text)]
    return {tuple(plain[i: i + 3]) for i in range(len(plain) - 2)}


def _copies(excerpts: list[Excerpt]) -> dict[int, int]:
    """Excerpt number -> the number that stands for it and all that depend on the same source."""
    stands: dict[int, int] = {}
    for i, one in enumerate(excerpts):
        like = next((o for o in excerpts[:i] if not independent(one, o)), None)
        stands[one.number] = stands[like.number] if like else one.number
    return stands


def _same_subject(one: Claim, other: Claim) -> bool:
    """Whether two sentences speak of the same thing, whatever they say of it."""
    short, long = sorted((one, other), key=lambda c: len(c.stems) + len(c.keys))
    size = len(short.stems) + 2 * len(short.keys)
    common = len(shared(short.stems, long.stems)) + 2 * len(short.keys & long.keys)
    clash = bool(short.keys - long.keys) and bool(long.keys - short.keys)
    return size >= 3 and common >= max(3, SAME_SUBJECT * size) and not clash


def _facts(said: list[_Said], copies: dict[int, int]) -> list[Fact]:
    found: list[Fact] = []
    used: set[int] = set()
    for i, one in enumerate(said):
        if one.opinion or i in used:
            continue
        group = [i]
        for j in range(i + 1, len(said)):
            other = said[j]
            if not other.opinion and j not in used and other.excerpt.number != one.excerpt.number and _same_subject(
                    one.made, other.made) and _alike(one.made, other.made):
                group.append(j)
        if len({copies[said[j].excerpt.number] for j in group}) >= 2:
            used.update(group)
            found.append(Fact(one.text, tuple(dict.fromkeys(said[j].excerpt.number for j in group))))
    return found


def _alike(one: Claim, other: Claim) -> bool:
    """No number, date or negation of one contradicts the other."""
    return not _differing(one, other) and one.negated == other.negated and not _other_day(one.days, other.days)


def _other_day(ones: tuple[Day, ...], others: tuple[Day, ...]) -> bool:
    full = [{(d.month, d.day) for d in days if d.month and d.day} for days in (ones, others)]
    return bool(full[0] and full[1]) and not full[0] & full[1]


def _differing(one: Claim, other: Claim) -> tuple[str, str] | None:
    """A number of each, of the same kind and about the same, where the other gives nothing that agrees."""
    for n in one.numbers:
        if any(agree(n, m) or agree(m, n) for m in other.numbers):
            continue
        around = _around(one, n.start, n.end)
        for m in other.numbers:
            loose = any(agree(k, m) or agree(m, k) for k in one.numbers)
            if n.kind == m.kind and not loose and around & _around(other, m.start, m.end):
                return one.text[n.start:n.end], other.text[m.start:m.end]
    return None


def _around(made: Claim, start: int, end: int) -> set[str]:
    """Stems of the clause in which a number stands, and its unit."""
    clause = next(((a, b) for a, b in made.parts if a <= start < b), (0, len(made.text)))
    return set(claim(made.text[clause[0]:clause[1]], None, clause[0] == 0).everything)


def _conflicts(said: list[_Said]) -> list[Conflict]:
    found: list[Conflict] = []
    seen: set[tuple[int, int, str, str]] = set()
    for i, one in enumerate(said):
        for other in said[i + 1:]:
            if other.excerpt.number == one.excerpt.number or not _same_subject(one.made, other.made):
                continue
            if _other_day(one.made.days, other.made.days):
                continue  # each may be right, on its day
            values = _differing(one.made, other.made)
            key = (one.excerpt.number, other.excerpt.number, *(values or ("", "")))
            if values and key not in seen:
                seen.add(key)
                found.append(Conflict(((one.excerpt.number, values[0], one.text),
                                       (other.excerpt.number, values[1], other.text))))
    return found


def _is_opinion(excerpt: Excerpt, made: Claim) -> bool:
    marked = any(fold(w) in _OPINION for w, _ in words(made.text))
    return marked and (excerpt.kind in SOCIAL or bool(_SAYS.search(made.text) or _ACCORDING.search(made.text))
                       or re.search(r"\b(?:I|we|je|nous|à mon avis)\b", made.text) is not None)


def _who(said: _Said) -> str:
    according = _ACCORDING.search(said.text)
    if according:
        return according.group(1).strip()
    says = _SAYS.search(said.text)
    if says and said.excerpt.kind not in SOCIAL:
        named = [n.written for n in said.made.names if n.start < says.start()][-2:]
        if named:
            return " ".join(named)
    return said.excerpt.author or said.excerpt.source


def _opinions(said: list[_Said]) -> list[Opinion]:
    groups: list[list[_Said]] = []
    for one in said:
        if not one.opinion:
            continue
        for group in groups:
            if group[0].made.negated == one.made.negated and _same_subject(group[0].made, one.made):
                group.append(one)
                break
        else:
            groups.append([one])
    found = []
    for group in groups:
        who = tuple(dict.fromkeys(_who(s) for s in group))
        times = [s.excerpt.published for s in group if s.excerpt.published is not None]
        found.append(Opinion(group[0].text, who, max(times, default=None), len(who),
                             tuple(dict.fromkeys(s.excerpt.number for s in group))))
    return sorted(found, key=lambda o: -o.how_many)
