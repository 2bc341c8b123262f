"""What a sentence claims: its numbers, dates, names, negation, quotations and the words that carry its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from libremoe.live.figures import Day, Figure, dates, figures, relative_days
from libremoe.live.words import NEGATIONS, SAME, clauses, fold, hedged, is_stop, negation_scopes, stem, word_set, words

# A country, its people and its adjective in both languages, and some cities: each side of a bar is one name.
_PLACES = """
france french français française francais française françaises
germany german germans allemagne allemand allemande allemands | england english angleterre anglais anglaise
britain british uk grande-bretagne britannique royaume-uni | spain spanish espagne espagnol espagnole
italy italian italians italie italien italienne | netherlands dutch pays-bas néerlandais néerlandaise
belgium belgian belgique belge | switzerland swiss suisse | greece greek grèce grec grecque
poland polish pologne polonais polonaise | turkey turkish turquie turc turque | china chinese chine chinois chinoise
japan japanese japon japonais japonaise | india indian inde indien indienne
russia russian russians russie russe russes | ukraine ukrainian ukrainien ukrainienne
usa us american americans états-unis américain américaine | canada canadian canadien canadienne
brazil brazilian brésil brésilien | mexico mexican mexique mexicain | europe european européen européenne européens
africa african afrique africain | london londres | brussels bruxelles | lisbon lisbonne | vienna vienne
geneva genève | moscow moscou | beijing pékin | rome roma | athens athènes | warsaw varsovie
"""
_PLACE = {fold(word): fold(side.split()[0]) for line in _PLACES.strip().splitlines()
          for side in line.split("|") for word in side.split()}
_TITLES = word_set("""
mr mrs ms dr sir lord lady president minister prime chancellor king queen prince princess pope senator governor
mayor general captain professor judge chairman chief executive m mme mlle monsieur madame maître président
présidente ministre premier première chancelier roi reine pape sénateur maire général capitaine professeur juge
company group museum university ministry council court party river lake mount street bank union city town""")
# A capital letter at the start of a sentence is a name's only where the word does not look like a plain one.
_PLAIN_ENDINGS = ("s", "ing", "ly", "ed", "tion", "sion", "ment", "ity", "ness", "ism", "ure", "ence", "ance")
_QUOTE = re.compile(r"[\"“«]\s*([^\"”»“«]{3,400}?)\s*[\"”»]")
_LIKE_SHE = word_set("""
he she it they his her its their this these that those there il elle ils elles son sa ses leur leurs ce cet cette
ces celui celle on""")


@dataclass(frozen=True)
class Name:
    """A word that names something, as it is compared. start: where it stands in the text."""

    key: str
    start: int
    written: str


@dataclass(frozen=True)
class Claim:
    """A sentence or clause taken apart. stems: words that carry meaning, neither names nor numbers."""

    text: str
    numbers: tuple[Figure, ...]
    days: tuple[Day, ...]
    names: tuple[Name, ...]
    stems: frozenset[str]
    everything: frozenset[str]  # stems of all words, names and little words too
    heads: frozenset[str]  # the first stem or name after each negation, what it is about
    affirmed: frozenset[str]  # stems and names that no negation is near
    negated: bool
    hedged: bool
    quotes: tuple[str, ...] = ()
    parts: tuple[tuple[int, int], ...] = ()  # its clauses
    relative: tuple[Day, ...] = ()
    keys: frozenset[str] = frozenset()  # of the names

    @property
    def leans_back(self) -> bool:
        """Whether it may speak of a name in the sentence before: it begins with he, this or son, or has no name."""
        first = words(self.text)[:1]
        return not self.names or bool(first and fold(first[0][0]) in _LIKE_SHE)


@lru_cache(4096)
def claim(text: str, published: float | None = None, initial: bool = True) -> Claim:
    """Takes a sentence apart. initial: its first word begins a sentence, so that its capital says little."""
    numbers, days = tuple(figures(text)), tuple(dates(text))
    relative = tuple(relative_days(text, published))
    taken = [(f.start, f.end) for f in numbers] + [(d.start, d.end) for d in days]
    scopes = negation_scopes(text)
    names: list[Name] = []
    stems, affirmed, heads = set[str](), set[str](), dict[tuple[int, int], set[str]]()
    tokens = words(text)
    for i, (word, start) in enumerate(tokens):
        if any(a <= start < b for a, b in taken):
            continue
        meant = set[str]()
        if word[0].isupper() and _is_name(text, tokens, i, initial):
            parts = [Name(_name_key(part), start, part) for part in re.split(r"[-'’]", word) if len(part) > 1]
            names += parts
            meant = {n.key for n in parts}
        elif not is_stop(word) and len(word) > 1 and fold(word) not in NEGATIONS:
            meant = {stem(word)}
            stems |= meant
        inside = [scope for scope in scopes if scope[0] <= start < scope[1]]
        for scope in inside if meant else []:
            heads.setdefault(scope, meant)
        affirmed |= meant if not inside else set()
    return Claim(text, numbers, days, tuple(names), frozenset(stems), frozenset(stem(w) for w, _ in tokens),
                 frozenset().union(*heads.values()), frozenset(affirmed), bool(scopes), hedged(text),
                 tuple(m.group(1) for m in _QUOTE.finditer(text)), tuple(clauses(text)), relative,
                 frozenset(n.key for n in names))


def _is_name(text: str, tokens: list[tuple[str, int]], i: int, initial: bool) -> bool:
    word, start = tokens[i]
    if fold(word) in _TITLES or fold(word) in NEGATIONS or len(word) < 2:
        return False
    before = text[:start].rstrip("«“\"'([ \n*_-")
    first = (initial and i == 0) or before.endswith((".", "!", "?", ":", "…")) or not before
    if not first:
        return not is_stop(word) or word.isupper()
    if is_stop(word) or fold(word) in _LIKE_SHE:
        return False
    if word.isupper() and len(word) > 1:
        return True
    if i + 1 < len(tokens) and tokens[i + 1][0][0].isupper() and text[start: tokens[i + 1][1]].strip().isalpha():
        return True  # Maria Lopez
    return not word.lower().endswith(_PLAIN_ENDINGS)


def _name_key(word: str) -> str:
    """How a name is compared: without accents, an adjective of a country as the country."""
    key = fold(word).rstrip(".")
    return _PLACE.get(key, key)


@lru_cache(4096)
def acronyms(text: str) -> frozenset[str]:
    """First letters of runs of capital words, two and longer: ecb for European Central Bank."""
    letters = "".join(w[0] for w, _ in words(text) if not is_stop(w))
    runs = re.findall(r"[A-ZÀ-Þ]{2,}", letters)
    return frozenset(run[i:j].lower() for run in runs for i in range(len(run))
                     for j in range(i + 2, min(i + 6, len(run)) + 1))


def shared(stems: frozenset[str], others: frozenset[str]) -> set[str]:
    """Those of stems that the others have, or a word that says the same."""
    lines = {line for other in others for line, _ in SAME.get(other, ())}
    return {s for s in stems if s in others or any(line in lines for line, _ in SAME.get(s, ()))}
