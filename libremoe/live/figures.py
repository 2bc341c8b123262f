"""Numbers and dates in English and French texts, with what they may mean: 1,234 or 1 234, $3bn, vingt-trois, 14 July.

A number is a set of values, because "1,234" is one thing in English and another in French; two numbers agree where the
sets meet and the units do not differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from libremoe.live.words import fold

_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "cent": 100,
           "cents": 100, "mille": 1000, "millier": 1000, "milliard": 10**9, "bn": 10**9, "m": 10**6, "k": 1000,
           "md": 10**9, "dozen": 12, "douzaine": 12}
_UNITS = {fold(word): unit for unit, words in {
    "%": "% percent pourcent", "$": "$ dollar dollars usd", "€": "€ euro euros eur", "£": "£ pound pounds gbp sterling",
    "km": "km kilometre kilometres kilometer kilometers kilomètre kilomètres", "mile": "mile miles",
    "m": "metre metres meter meters mètre mètres", "kg": "kg kilo kilos kilogram kilograms kilogrammes",
    "t": "tonne tonnes ton tons", "°C": "°c celsius", "°F": "°f fahrenheit", "hour": "hour hours heure heures h",
    "minute": "minute minutes min", "second": "seconds secondes", "day": "day days jour jours journée journées",
    "week": "week weeks semaine semaines", "month": "month months mois", "year": "year years an ans année années",
    "point": "point points", "am": "am a.m", "pm": "pm p.m", "degree": "degree degrees degré degrés °",
}.items() for word in words.split()}
_ONES_EN = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_ONES_FR = "zero un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize"
_ORDINALS_EN = "first second third fourth fifth sixth seventh eighth ninth tenth"
_ORDINALS_FR = "premier deuxieme troisieme quatrieme cinquieme sixieme septieme huitieme neuvieme dixieme"
_MONTH_NAMES = """january february march april may june july august september october november december
janvier fevrier mars avril mai juin juillet aout septembre octobre novembre decembre
jan feb mar apr may jun jul aug sep oct nov dec"""
_DAY_NAMES = """monday tuesday wednesday thursday friday saturday sunday
lundi mardi mercredi jeudi vendredi samedi dimanche"""
_MONTHS = {name: i % 12 + 1 for i, name in enumerate(_MONTH_NAMES.split())} | {"sept": 9, "janv": 1, "fevr": 2,
                                                                                  "juil": 7}
_DAYS = {name: i % 7 for i, name in enumerate(_DAY_NAMES.split())}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
         "vingt": 20, "vingts": 20, "trente": 30, "quarante": 40, "cinquante": 50, "soixante": 60, "septante": 70,
         "huitante": 80, "octante": 80, "nonante": 90}
_SMALL = {w: i for names in (_ONES_EN, _ONES_FR) for i, w in enumerate(names.split())} | {"une": 1} | _TENS
_ORDINALS = {w: i for names in (_ORDINALS_EN, _ORDINALS_FR) for i, w in enumerate(names.split(), 1)} | {
    "premiere": 1, "seconde": 2, "half": 0.5, "moitie": 0.5}
HEDGES = re.compile(r"\b(?:about|around|roughly|nearly|almost|over|approximately|some|more than|less than|fewer than|"
                    r"at least|up to|environ|près de|presque|plus d[e’']|moins d[e’']|au moins|quelque|autour de|"
                    r"jusqu[’']à)\s*$", re.IGNORECASE)

_DIGITS = re.compile(
    r"(?P<currency>[$€£]\s?)?(?P<sign>(?<![\w\d])[-−–](?=\d))?"
    r"(?P<digits>\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,'’]\d+)*)"
    r"(?P<ordinal>(?:st|nd|rd|th|er|ère|e|ème|ième)\b)?"
    r"(?:(?P<clock>[h:])(?P<minutes>[0-5]\d)(?!\d))?")
_AFTER = re.compile(r"[ \u00a0\u202f-]?(?:(?P<scale>hundred|thousand|millions?|billions?|trillions?|mille|milliers?|"
                    r"milliards?|bn|md|[mk](?![\w²])|dozens?|douzaines?)\b(?:\s(?:de|d[’']|of)\s?)?)?\s?"
                    r"(?P<unit>%|[$€£]|°[cf]?|per ?cents?|pour ?cents?|[^\W\d_]+(?:\.m\b)?)?", re.IGNORECASE)
_WORD_RUN = re.compile(r"[^\W\d_]+(?:[-\s][^\W\d_]+)*")


@dataclass(frozen=True)
class Figure:
    """A number in a text, text[start:end]. values: what it may mean. kind: its unit, "" where none is known.

    step: how finely it is given, the value of its last digit, so that 3.2 million may round 3,214,000. hedged: "about".
    """

    start: int
    end: int
    values: frozenset[Decimal]
    kind: str
    step: Decimal
    hedged: bool


@dataclass(frozen=True)
class Day:
    """A date in a text: what of it is given. weekday: 0 is Monday."""

    start: int
    end: int
    year: int | None = None
    month: int | None = None
    day: int | None = None
    weekday: int | None = None


def figures(text: str) -> list[Figure]:
    """All numbers that are no part of a date, in the order of the text."""
    days = dates(text)
    found = [f for f in _digit_figures(text) if not any(d.start < f.end and f.start < d.end for d in days)]
    taken = [(f.start, f.end) for f in found] + [(d.start, d.end) for d in days]
    found += [f for f in _word_figures(text) if not any(s < f.end and f.start < e for s, e in taken)]
    return sorted(found, key=lambda f: f.start)


def _digit_figures(text: str) -> list[Figure]:
    found = []
    for match in _DIGITS.finditer(text):
        if match.start() and (text[match.start() - 1].isalpha() and not match["currency"]):
            continue  # a name such as A320 or GPT4
        values, step = _read_digits(match["digits"], bool(re.search(r"[ \u00a0\u202f]", match["digits"])))
        if not values:
            continue
        end, kind = match.end(), ""
        if match["clock"] and len(match["digits"]) <= 2:
            values, step = {60 * v + int(match["minutes"]) for v in values}, Decimal(1)
            kind = "time"
        elif match["ordinal"]:
            kind = "ordinal"
        else:
            end = end if match["clock"] is None else match.end("digits")
            after = _AFTER.match(text, end)
            scale, kind, end = _after(after, bool(match["currency"]), end) if after else (1, "", end)
            values, step = {v * scale for v in values}, step * scale
        if match["currency"]:
            kind = match["currency"].strip()
        if match["sign"]:
            values = {-v for v in values}
        hedged = HEDGES.search(text[max(0, match.start() - 24): match.start()]) is not None
        found.append(Figure(match.start(), end, frozenset(values), kind, step, hedged))
    return found


def _read_digits(digits: str, spaced: bool) -> tuple[set[Decimal], Decimal]:
    """The values that digits with separators may have, and the value of the last digit."""
    digits = re.sub(r"[ \u00a0\u202f'’]", "", digits)
    marks = re.findall(r"[.,]", digits)
    if len(digits) > 40:
        return set(), Decimal(1)
    if not marks:
        value = Decimal(digits)
        return {value}, Decimal(1)
    groups = re.split(r"[.,]", digits)
    grouped = all(len(g) == 3 for g in groups[1:]) and 1 <= len(groups[0]) <= 3
    whole = Decimal("".join(groups))
    if len(marks) == 1:
        decimal = Decimal(digits.replace(",", "."))
        step = Decimal(1).scaleb(-len(groups[1]))
        if grouped and not spaced and groups[0] != "0":
            return {whole, decimal}, Decimal(1)
        return {decimal}, step
    if len(set(marks)) == 1:
        # 3.5.1 is a version: below zero, so that it equals no number that is written as one
        return ({whole}, Decimal(1)) if grouped else ({Decimal(-1) - whole}, Decimal(1))
    if marks.count(marks[-1]) == 1 and all(len(g) == 3 for g in groups[1:-1]):
        return {Decimal("".join(groups[:-1]) + "." + groups[-1])}, Decimal(1).scaleb(-len(groups[-1]))
    return {whole}, Decimal(1)


def _after(match: re.Match[str], currency: bool, end: int) -> tuple[int, str, int]:
    """(scale, unit, end) of what follows a number."""
    scale, unit = 1, ""
    if match["scale"]:
        word = fold(match["scale"])
        short = word in ("m", "k", "md", "bn")
        if not short or currency or (match["unit"] or "") in ("$", "€", "£", "euros", "dollars"):
            scale, end = _SCALES.get(word, _SCALES.get(word.rstrip("s"), 1)), match.end("scale")
        elif word == "m":
            return 1, "m", match.end("scale")
    if match["unit"]:
        word = fold(match["unit"]).replace(" ", "")
        unit = "%" if word.startswith(("percent", "pourcent")) else _UNITS.get(word, "")
        if unit:
            end = match.end("unit")
    return scale, unit, end


def _word_figures(text: str) -> list[Figure]:
    """Numbers in words. A lone one, un or une is left out: it is nearly always an article or a pronoun."""
    found = []
    tokens = [(fold(m.group()), m.start(), m.end()) for m in re.finditer(r"[^\W\d_]+", text)]
    i = 0
    while i < len(tokens):
        j, value = _word_number(tokens, i, text)
        if j == i:
            word, start, end = tokens[i]
            if word in _ORDINALS and not (word == "second" and i and tokens[i - 1][0] in ("per", "a")):
                number = Decimal(str(_ORDINALS[word]))
                found.append(Figure(start, end, frozenset({number}), "ordinal" if number >= 1 else "share",
                                    Decimal(1), False))
            i += 1
            continue
        start, end = tokens[i][1], tokens[j - 1][2]
        after = _AFTER.match(text, end)
        scale, kind, end = _after(after, False, end) if after and not _is_word_scale(after) else (1, "", end)
        hedged = HEDGES.search(text[max(0, start - 24): start]) is not None
        found.append(Figure(start, end, frozenset({Decimal(value * scale)}), kind, Decimal(1), hedged))
        i = j
    return found


def _is_word_scale(match: re.Match[str]) -> bool:
    return bool(match["scale"]) and fold(match["scale"]) in ("m", "k", "md", "bn")


def _word_number(tokens: list[tuple[str, int, int]], i: int, text: str) -> tuple[int, int]:
    """(index after the number's last word, its value); the index is i where no number begins."""
    total = current = 0
    j, last_small, seen = i, "", False
    while j < len(tokens):
        word, start, _ = tokens[j]
        if j > i and text[tokens[j - 1][2]: start] not in (" ", "-", "\u00a0"):
            break
        if word in ("and", "et") and seen and j + 1 < len(tokens) and tokens[j + 1][0] in _SMALL:
            if word == "and" and last_small != "hundred":
                break
            j += 1
            continue
        if word in _SMALL and not (word in ("un", "une", "one") and not seen and not _scale_next(tokens, j)):
            small = _SMALL[word]
            if seen and last_small in _SMALL and not _joins(last_small, word):
                break
            # quatre-vingt is a product; every other pair adds up
            current = current * 20 if last_small == "quatre" and small == 20 else current + small
        elif _is_scale(word) and (seen or word == "mille"):
            scale = int(_SCALES.get(word, _SCALES.get(word.rstrip("s"), 1)))
            if scale == 100:
                current, word = max(current, 1) * 100, "hundred"
            else:
                total, current = total + max(current, 1) * scale, 0
        else:
            break
        last_small, seen = word, True
        j += 1
    while j > i and tokens[j - 1][0] in ("and", "et"):
        j -= 1
    return (j, total + current) if seen else (i, 0)


def _is_scale(word: str) -> bool:
    return (word in _SCALES or word.rstrip("s") in _SCALES) and word not in ("m", "k", "md", "bn")


def _scale_next(tokens: list[tuple[str, int, int]], j: int) -> bool:
    return j + 1 < len(tokens) and _is_scale(tokens[j + 1][0])


def _joins(before: str, word: str) -> bool:
    """Whether two small number words make one: twenty-three, soixante-dix, dix-sept, quatre-vingt."""
    if before == "quatre" and word.startswith("vingt"):
        return True
    if before in ("vingts", "vingt", "soixante") and 0 < _SMALL[word] < 20:
        return True
    return (before in _TENS and 0 < _SMALL[word] < 10) or (before == "dix" and word in ("sept", "huit", "neuf"))


_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATE = re.compile(
    r"(?P<iso>(?<!\d)(\d{4})-(\d{2})-(\d{2})(?!\d))|(?P<slashed>(?<!\d)(\d{1,2})[/.](\d{1,2})[/.](\d{4})(?!\d))"
    rf"|(?<!\d)(?P<d1>\d{{1,2}})(?:st|nd|rd|th|er)?\s(?:of\s)?(?P<m1>{_MONTH})\b\.?(?:,?\s(?P<y1>\d{{4}})(?!\d))?"
    rf"|\b(?P<m2>{_MONTH})\.?\s(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?(?!\d)(?:,?\s(?P<y2>\d{{4}})(?!\d))?"
    rf"|\b(?P<m3>{_MONTH})\.?\s(?P<y3>\d{{4}})(?!\d)"
    rf"|\b(?P<m4>{_MONTH})\b|\b(?P<weekday>{'|'.join(_DAYS)})s?\b")


def dates(text: str) -> list[Day]:
    """All dates, months and weekdays. "may" and "march" alone are months only when written with a capital."""
    plain = _fold_same_length(text)
    found = []
    for match in _DATE.finditer(plain):
        start, end = match.span()
        if match["iso"]:
            found.append(Day(start, end, int(match[2]), int(match[3]), int(match[4])))
        elif match["slashed"]:
            found.append(Day(start, end, int(match[8]), int(match[7]), int(match[6])))
        elif match["weekday"]:
            found.append(Day(start, end, weekday=_DAYS[match["weekday"]]))
        elif match["m4"]:
            if _is_month_alone(text[start:end], match["m4"]):
                found.append(Day(start, end, month=_MONTHS[match["m4"]]))
        else:
            month = match["m1"] or match["m2"] or match["m3"]
            year, day = match["y1"] or match["y2"] or match["y3"], match["d1"] or match["d2"]
            if day and not 1 <= int(day) <= 31:
                continue
            found.append(Day(start, end, int(year) if year else None, _MONTHS[month], int(day) if day else None))
    return found


def _is_month_alone(written: str, month: str) -> bool:
    """Not the verbs may and march, nor the planet, nor an abbreviation."""
    if month in ("may", "march"):
        return written[0].isupper()
    return written == "mars" or month in ("juin", "aout", "june", "july", "mai") or len(month) > 4


def _fold_same_length(text: str) -> str:
    """Folded letter by letter, so that places in it are places in the text."""
    return "".join(f if len(f := fold(c)) == 1 else c for c in text)


def agree(claim: Figure, source: Figure) -> bool:
    """Whether the source's number bears out the claim's: equal, or rounded where the claim says "about"."""
    if claim.kind and source.kind and claim.kind != source.kind:
        return False
    if claim.values & source.values:
        return True
    if not claim.hedged and claim.step <= 1:
        return False
    # 3.2 million for 3,214,000: at most half of the last digit that is given, or a whole one after "about" or "over"
    if claim.hedged:
        value = max(claim.values)  # where a comma may be either, of both the same
        return abs(value - max(source.values)) <= max(claim.step, _last_place(value))
    fine = any(abs(v) >= 10 * claim.step for v in claim.values)
    return fine and claim.step > source.step and any(
        abs(v - w) <= claim.step / 2 for v in claim.values for w in source.values)


def _last_place(value: Decimal) -> Decimal:
    """What the last digit that is not 0 stands for: 1,000 in 5,000."""
    digits = value.normalize().as_tuple()
    return Decimal(1).scaleb(int(digits.exponent)) if value else Decimal(0)


def same_day(claim: Day, source: Day, published: float | None) -> bool:
    """Whether all that the claim's date gives is in the source's; its year is that of publication if it has none."""
    year = source.year
    if year is None and published is not None:
        year = datetime.fromtimestamp(published, UTC).year
    if claim.weekday is not None:
        if source.weekday is not None:
            return claim.weekday == source.weekday
        return _weekday(year, source) == claim.weekday
    if source.weekday is not None:
        if published is None or claim.day is None or claim.month is None:
            return False
        near = datetime.fromtimestamp(published, UTC).date()  # "on Monday": one of the seven days before, or after
        days = [near + timedelta(days=n) for n in range(-7, 8)]
        return any(d.weekday() == source.weekday and _is_day(claim, d) for d in days)
    return ((claim.year is None or claim.year == year) and (claim.month is None or claim.month == source.month)
            and (claim.day is None or claim.day == source.day))


def relative_days(text: str, published: float | None) -> list[Day]:
    """What today, yesterday and tomorrow mean in a text of that time."""
    if published is None:
        return []
    near = datetime.fromtimestamp(published, UTC).date()
    found = []
    for words, shift in (("today|this morning|tonight|aujourd'hui|ce matin|ce soir", 0), ("yesterday|hier", -1),
                         ("tomorrow|demain", 1)):
        for match in re.finditer(rf"\b(?:{words})\b", _fold_same_length(text)):
            day = near + timedelta(days=shift)
            found.append(Day(match.start(), match.end(), day.year, day.month, day.day))
    return found


def _weekday(year: int | None, day: Day) -> int | None:
    try:
        return date(year, day.month, day.day).weekday() if year and day.month and day.day else None
    except ValueError:
        return None


def _is_day(claim: Day, day: date) -> bool:
    return claim.day == day.day and claim.month == day.month and claim.year in (None, day.year)
