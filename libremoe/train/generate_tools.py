"""Made conversations with tools: calculator, units, dates. All results are worked out here, exactly."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from libremoe.chat.message import Message, Tool
from libremoe.train.draw import Draw, answer, call, result, user
from libremoe.train.render import Document


def tool(name: str, description: str, **properties: str) -> Tool:
    schema = {"type": "object", "properties": {k: {"type": v} for k, v in properties.items()}}
    return Tool(name, description, schema | {"required": list(properties)})


CALCULATOR = tool("calculator", "Works out an arithmetic expression.", expression="string")
CONVERT = tool("convert_unit", "Converts a quantity to another unit.", value="number", unit="string", to="string")
ADD_DAYS = tool("add_days", "The date some days later.", date="string", days="integer")
DAYS_BETWEEN = tool("days_between", "Days from one date to another.", start="string", end="string")
WEEKDAY = tool("weekday", "The day of the week of a date.", date="string")
SEARCH = tool("search", "Searches the documents and gives numbered excerpts.", query="string")
ALL_TOOLS = (CALCULATOR, CONVERT, ADD_DAYS, DAYS_BETWEEN, WEEKDAY, SEARCH)
NEVER_CALLED = (tool("clock", "The date and time now.", time_zone="string"),
                tool("open_page", "Reads a web page.", url="string"))  # of chat/tool_box.py: they are only offered


def offered(draw: Draw, needed: Tool) -> tuple[Tool, ...]:
    """The tool, alone or among others, in any order."""
    others = [t for t in ALL_TOOLS if t.name != needed.name]
    tools = [needed, *draw.random.sample(others, draw.pick([0, 0, 1, 2, 3]))]
    draw.random.shuffle(tools)
    return tuple(tools)


def with_call(draw: Draw, needed: Tool, asked: str, arguments: dict[str, Any], found: str, said: str) -> Document:
    """Question, call, result, answer."""
    messages = (user(asked), call(needed.name, arguments), result(found), answer(said))
    return Document(messages=messages, tools=offered(draw, needed))


@dataclass(frozen=True)
class Sum:
    """A sum as it is asked, as an expression, its value, and the sentence that answers ({r} is the result)."""

    asked: str
    expression: str
    value: Fraction
    said: str


def shown(value: Fraction, lang: str = "en") -> str:
    """Up to four decimals; French writes a comma."""
    text = f"{float(value):.4f}".rstrip("0").rstrip(".") if value.denominator > 1 else str(value.numerator)
    return text.replace(".", ",") if lang == "fr" else text


OPERATORS: dict[str, tuple[Callable[[Fraction, Fraction], Fraction], dict[str, list[str]]]] = {
    "+": (lambda a, b: a + b, {"en": ["+", "+", "plus"], "fr": ["+", "+", "plus"]}),
    "-": (lambda a, b: a - b, {"en": ["-", "-", "minus"], "fr": ["-", "-", "moins"]}),
    "*": (lambda a, b: a * b, {"en": ["*", "x", "times", "multiplied by"], "fr": ["*", "x", "fois", "multiplié par"]}),
    "/": (lambda a, b: a / b, {"en": ["/", "divided by"], "fr": ["/", "divisé par"]}),
}
ASK = {
    "en": ["What is {q}?", "Calculate {q}.", "How much is {q}?", "Please work out {q}.", "Compute {q}", "{q} = ?",
           "Can you tell me what {q} is?", "I need the result of {q}.", "{q}", "What does {q} make?", "Solve {q}.",
           "Can you compute {q} for me?", "What's {q}?", "Tell me {q}.", "Could you calculate {q}?",
           "Find the value of {q}."],
    "fr": ["Combien font {q} ?", "Calcule {q}.", "Quel est le résultat de {q} ?", "Peux-tu calculer {q} ?", "{q} = ?",
           "Combien fait {q} ?", "Donne-moi le résultat de {q}.", "J'ai besoin de savoir combien font {q}.", "{q}",
           "Calcule pour moi {q}, s'il te plaît.", "Que vaut {q} ?", "Pouvez-vous calculer {q} ?",
           "Ça fait combien, {q} ?",
           "Effectue {q}.", "Dis-moi combien font {q}.", "Quelle est la valeur de {q} ?"],
}
SAY = {
    "en": ["{q} is {r}.", "The result is {r}.", "The answer is {r}.", "That makes {r}.", "{q} = {r}"],
    "fr": ["{q} font {r}.", "Le résultat est {r}.", "La réponse est {r}.", "Cela fait {r}.", "{q} = {r}"],
}


def _operand(draw: Draw) -> Fraction:
    digits = draw.pick([1, 2, 2, 3, 3, 4, 5])
    value = Fraction(draw.number(10 ** (digits - 1), 10**digits - 1))
    return value / draw.pick([10, 100]) if draw.chance(0.2) else value


def plain_sum(draw: Draw) -> Sum:
    """Two or three numbers and their operators."""
    a, b, op = _operand(draw), _operand(draw), draw.pick("++--**/")
    if op == "/":
        a, b = (a * draw.number(2, 99), a) if draw.chance(0.7) else (a, Fraction(draw.pick([2, 4, 5, 8, 10, 20])))
    apply, words = OPERATORS[op]
    value, asked = apply(a, b), f"{shown(a, draw.lang)} {draw.pick(words[draw.lang])} {shown(b, draw.lang)}"
    expression = f"{shown(a)} {op} {shown(b)}"
    if draw.chance(0.15):
        c, op2 = _operand(draw), draw.pick("+-")
        value = OPERATORS[op2][0](value, c)
        asked, expression = f"{asked} {op2} {shown(c, draw.lang)}", f"{expression} {op2} {shown(c)}"
    return Sum(draw.phrase(ASK[draw.lang]).format(q=asked), expression, value,
               draw.pick(SAY[draw.lang]).replace("{q}", asked))


SPECIAL_ASK = {  # wording, expression over a, b, c
    "en": [("What is {a}% of {b}?", "{b} * {a} / 100"), ("Add {a}, {b} and {c}.", "{a} + {b} + {c}"),
           ("What is the square of {a}?", "{a} * {a}"), ("What is half of {b}?", "{b} / 2"),
           ("Take {a} away from {b}.", "{b} - {a}"), ("What is the average of {a} and {b}?", "({a} + {b}) / 2"),
           ("Multiply {a} by {b}.", "{a} * {b}"), ("Divide {b} by 4.", "{b} / 4"), ("How much is {a} percent of {b}?",
           "{b} * {a} / 100"), ("What is the sum of {a}, {b} and {c}?", "{a} + {b} + {c}"), ("Double {a}.", "{a} * 2"),
           ("What is the double of {b}?", "{b} * 2"), ("What is the difference between {b} and {a}?", "{b} - {a}"),
           ("What is the product of {a} and {b}?", "{a} * {b}"), ("What is a quarter of {b}?", "{b} / 4"),
           ("Subtract {a} from {b}.", "{b} - {a}")],
    "fr": [("Combien font {a} % de {b} ?", "{b} * {a} / 100"), ("Additionne {a}, {b} et {c}.", "{a} + {b} + {c}"),
           ("Quel est le carré de {a} ?", "{a} * {a}"), ("Quelle est la moitié de {b} ?", "{b} / 2"),
           ("Enlève {a} à {b}.", "{b} - {a}"), ("Quelle est la moyenne de {a} et {b} ?", "({a} + {b}) / 2"),
           ("Multiplie {a} par {b}.", "{a} * {b}"), ("Divise {b} par 4.", "{b} / 4"),
           ("Combien représentent {a} pour cent de {b} ?", "{b} * {a} / 100"),
           ("Quelle est la somme de {a}, {b} et {c} ?", "{a} + {b} + {c}"), ("Double {a}.", "{a} * 2"),
           ("Quel est le double de {b} ?", "{b} * 2"), ("Quelle est la différence entre {b} et {a} ?", "{b} - {a}"),
           ("Quel est le produit de {a} et {b} ?", "{a} * {b}"), ("Quel est le quart de {b} ?", "{b} / 4"),
           ("Soustrais {a} de {b}.", "{b} - {a}")],
}
WORD_ASK = {  # problem, expression, answer; {n} a name, {t} things in the plural; a < b
    "en": [("{n} has {b} {t} and gets {a} more. How many {t} does {n} have now?", "{b} + {a}", "{n} has {r} {t} now."),
           ("{n} had {b} {t} and gave away {a}. How many {t} are left?", "{b} - {a}", "{n} has {r} {t} left."),
           ("One box holds {a} {t}. How many {t} are in {b} boxes?", "{a} * {b}", "There are {r} {t}."),
           ("{n} picked {b} {t} in the morning and {a} in the evening. How many in all?", "{b} + {a}",
            "{n} picked {r} {t}."),
           ("A ticket costs {a} euros. How much do {b} tickets cost?", "{a} * {b}", "They cost {r} euros."),
           ("There are {b} {t} on the table. {n} eats {a} of them. How many are left?", "{b} - {a}",
            "{r} {t} are left."),
           ("{n} walks {a} km every day. How far does {n} walk in {b} days?", "{a} * {b}", "{n} walks {r} km."),
           ("{n} buys {a} bags with {b} {t} in each. How many {t} does {n} buy?", "{a} * {b}", "{n} buys {r} {t}."),
           ("{n} saved {b} dollars and spent {a}. How much money is left?", "{b} - {a}", "{n} has {r} dollars left."),
           ("A farmer has {b} cows and buys {a} cows. How many cows are there?", "{b} + {a}", "There are {r} cows."),
           ("{n} reads {a} pages a day. How many pages is that in {b} days?", "{a} * {b}", "{n} reads {r} pages."),
           ("There were {b} {t} in the shop and {a} were sold. How many {t} remain?", "{b} - {a}", "{r} {t} remain.")],
    "fr": [("{n} a {b} {t} et en reçoit encore {a}. Combien {n} en a maintenant ?", "{b} + {a}",
            "{n} en a {r} maintenant."),
           ("{n} avait {b} {t} et en donne {a}. Combien en reste-t-il ?", "{b} - {a}", "Il en reste {r}."),
           ("Une boîte contient {a} {t}. Combien y en a-t-il dans {b} boîtes ?", "{a} * {b}", "Il y en a {r}."),
           ("{n} cueille {b} {t} le matin et {a} le soir. Combien en tout ?", "{b} + {a}", "{n} en cueille {r}."),
           ("Un billet coûte {a} euros. Combien coûtent {b} billets ?", "{a} * {b}", "Ils coûtent {r} euros."),
           ("Il y a {b} {t} sur la table. {n} en mange {a}. Combien en reste-t-il ?", "{b} - {a}", "Il en reste {r}."),
           ("{n} marche {a} km par jour. Combien en {b} jours ?", "{a} * {b}", "{n} marche {r} km."),
           ("{n} achète {a} sacs de {b} {t}. Combien de {t} cela fait-il ?", "{a} * {b}", "Cela fait {r} {t}."),
           ("{n} avait {b} euros et en a dépensé {a}. Combien lui reste-t-il ?", "{b} - {a}", "Il reste {r} euros."),
           ("Un fermier a {b} vaches et en achète {a}. Combien a-t-il de vaches ?", "{b} + {a}", "Il a {r} vaches."),
           ("{n} lit {a} pages par jour. Combien de pages en {b} jours ?", "{a} * {b}", "{n} lit {r} pages."),
           ("Le magasin avait {b} {t} et en a vendu {a}. Combien en reste-t-il ?", "{b} - {a}", "Il en reste {r}.")],
}


def plural(word: str, lang: str) -> str:
    if lang == "fr":
        return word if word[-1] in "sxz" else word + ("x" if word.endswith(("eau", "ou")) else "s")
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def worded_sum(draw: Draw) -> Sum:
    """A sum in words, or a small problem."""
    low, high = draw.pick([(2, 12), (3, 40), (10, 120)]), draw.pick([60, 250, 990])
    a, b, c = draw.number(*low), draw.number(low[1] + 1, low[1] + high), draw.number(2, 200)
    if draw.chance(0.5):
        asked, expression = draw.phrase(SPECIAL_ASK[draw.lang])
        said = draw.pick(SAY[draw.lang][1:4])
    else:
        asked, expression, said = draw.phrase(WORD_ASK[draw.lang])
    words = {"a": a, "b": b, "c": c, "n": draw.word("name"), "t": plural(draw.word("fruit"), draw.lang)}
    expression = expression.format(**words)
    return Sum(asked.format(**words), expression, evaluate(expression), said.replace("{n}", str(words["n"])).replace(
        "{t}", str(words["t"])))


_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|[-+*/()]")
_SUM = re.compile(r"(?:\s*(?:[0-9]+(?:\.[0-9]+)?|[-+*/()]))+\s*")
_DEEPEST = 200  # brackets


def evaluate(expression: str) -> Fraction:
    """The exact value of numbers, + - * / and brackets. Raises ValueError for anything else, and for division by 0."""
    if not _SUM.fullmatch(expression) or expression.count("(") > _DEEPEST:
        raise ValueError(f"{expression!r} is no sum of numbers")
    value, rest = _terms(_TOKEN.findall(expression))
    if rest:
        raise ValueError(f"{expression!r} goes on after its end")
    return value


def _terms(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _factors(tokens)
    while tokens and tokens[0] in "+-":
        other, rest = _factors(tokens[1:])
        value, tokens = OPERATORS[tokens[0]][0](value, other), rest
    return value, tokens


def _factors(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _atom(tokens)
    while tokens and tokens[0] in "*/":
        other, rest = _atom(tokens[1:])
        if tokens[0] == "/" and other == 0:
            raise ValueError("division by zero")
        value, tokens = OPERATORS[tokens[0]][0](value, other), rest
    return value, tokens


def _atom(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if not tokens:
        raise ValueError("an operand is missing")
    if tokens[0] in "+-*/)":
        raise ValueError(f"{tokens[0]!r} stands where a number should")
    if tokens[0] == "(":
        value, rest = _terms(tokens[1:])
        if rest[:1] != [")"]:
            raise ValueError("a bracket is not closed")
        return value, rest[1:]
    return Fraction(tokens[0]), tokens[1:]


def calculator(draw: Draw) -> Document:
    """One sum by a call, or two; without a calculator small sums from memory, and no guess at others."""
    if draw.chance(0.12):
        return _by_heart(draw)
    one = worded_sum(draw) if draw.chance(0.45) else plain_sum(draw)
    found = shown(one.value)
    said = one.said.replace("{r}", shown(one.value, draw.lang))
    document = with_call(draw, CALCULATOR, one.asked, {"expression": one.expression}, found, said)
    if not draw.chance(0.12):
        return document
    two = plain_sum(draw)
    more = with_call(draw, CALCULATOR, two.asked, {"expression": two.expression}, shown(two.value),
                     two.said.replace("{r}", shown(two.value, draw.lang)))
    return Document(messages=document.messages + more.messages, tools=document.tools)


NO_CALCULATOR = {
    "en": "I have no calculator here, and I make mistakes with large numbers, so I would rather not guess.",
    "fr": "Je n'ai pas de calculatrice ici et je me trompe avec les grands nombres : je préfère ne pas deviner.",
}


def _by_heart(draw: Draw) -> Document:
    if draw.chance(0.25):
        a, b = draw.number(100, 9999), draw.number(100, 9999)
        asked = draw.phrase(ASK[draw.lang]).format(q=f"{a} * {b}")
        return Document(messages=(user(asked), answer(NO_CALCULATOR[draw.lang])))
    op = draw.pick("+-*")
    a, b = draw.number(1, 10), draw.number(1, 10)
    a, b = (max(a, b), min(a, b)) if op == "-" else (a, b)
    apply, words = OPERATORS[op]
    asked = f"{a} {draw.pick(words[draw.lang])} {b}"
    said = draw.pick(SAY[draw.lang]).format(q=asked, r=shown(apply(Fraction(a), Fraction(b))))
    return Document(messages=(user(draw.phrase(ASK[draw.lang]).format(q=asked)), answer(said)))


UNITS = {  # unit -> (kind, size in the kind's first unit, English, French)
    "km": ("length", Fraction(1000), "kilometres", "kilomètres"), "m": ("length", Fraction(1), "metres", "mètres"),
    "cm": ("length", Fraction(1, 100), "centimetres", "centimètres"),
    "mile": ("length", Fraction(1609344, 1000), "miles", "miles"), "foot": ("length", Fraction(3048, 10000), "feet",
                        "pieds"),
    "inch": ("length", Fraction(254, 10000), "inches", "pouces"), "kg": ("mass", Fraction(1), "kilograms", "kilos"),
    "g": ("mass", Fraction(1, 1000), "grams", "grammes"), "lb": ("mass", Fraction(45359237, 10**8), "pounds", "livres"),
    "l": ("volume", Fraction(1), "litres", "litres"), "ml": ("volume", Fraction(1, 1000), "millilitres", "millilitres"),
    "h": ("time", Fraction(3600), "hours", "heures"), "min": ("time", Fraction(60), "minutes", "minutes"),
    "s": ("time", Fraction(1), "seconds", "secondes"), "day": ("time", Fraction(86400), "days", "jours"),
}
CONVERT_ASK = {
    "en": ["How many {to} are {v} {u}?", "Convert {v} {u} to {to}.", "What is {v} {u} in {to}?", "{v} {u} in {to}?",
           "Change {v} {u} into {to}.", "How much is {v} {u} in {to}?", "I have {v} {u}. How many {to} is that?",
           "Please give me {v} {u} in {to}."],
    "fr": ["Combien de {to} font {v} {u} ?", "Convertis {v} {u} en {to}.", "{v} {u}, cela fait combien de {to} ?",
           "{v} {u} en {to} ?", "Combien font {v} {u} en {to} ?", "Peux-tu convertir {v} {u} en {to} ?",
           "J'ai {v} {u}. Combien de {to} cela fait-il ?", "Donne-moi {v} {u} en {to}."],
}


def units(draw: Draw) -> Document:
    """A conversion by a call."""
    unit = draw.pick(list(UNITS))
    kind, size, *names = UNITS[unit]
    to = draw.pick([u for u, other in UNITS.items() if other[0] == kind and u != unit])
    which = 0 if draw.lang == "en" else 1
    value = Fraction(draw.number(2, draw.pick([20, 200, 3000])), draw.pick([1, 1, 1, 10]))
    found = value * size / UNITS[to][1]
    u, to_name = names[which], UNITS[to][2 + which]
    asked = draw.phrase(CONVERT_ASK[draw.lang]).format(v=shown(value, draw.lang), u=u, to=to_name)
    verb = {"en": "are", "fr": "font"}[draw.lang]
    said = f"{shown(value, draw.lang)} {u} {verb} {shown(found, draw.lang)} {to_name}."
    arguments = {"value": int(value) if value.denominator == 1 else float(value), "unit": unit, "to": to}
    return with_call(draw, CONVERT, asked, arguments, f"{shown(found)} {to}", said)


MONTHS = {
    "en": ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December"],
    "fr": ["janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre", "novembre",
           "décembre"],
}
DAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "fr": ["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"],
}
DATE_ASK = {
    "weekday": {"en": ["What day of the week is {d}?", "Which weekday is {d}?", "On what day does {d} fall?",
                       "What day is {d}?"],
                "fr": ["Quel jour de la semaine est le {d} ?", "Le {d} tombe quel jour ?", "Quel jour tombe le {d} ?",
                       "Quel jour sera le {d} ?"]},
    "add_days": {"en": ["What date is {n} days after {d}?", "What is the date {n} days after {d}?",
                        "Add {n} days to {d}.", "Which date comes {n} days after {d}?"],
                 "fr": ["Quelle date vient {n} jours après le {d} ?", "Quelle est la date {n} jours après le {d} ?",
                        "Ajoute {n} jours au {d}.", "Quelle date sera-t-on {n} jours après le {d} ?"]},
    "days_between": {"en": ["How many days are there from {d} to {e}?", "How many days between {d} and {e}?",
                            "How long is it from {d} to {e}, in days?", "Count the days from {d} to {e}."],
                     "fr": ["Combien de jours y a-t-il du {d} au {e} ?", "Combien de jours entre le {d} et le {e} ?",
                            "Combien de jours séparent le {d} du {e} ?", "Compte les jours du {d} au {e}."]},
}


def dates(draw: Draw) -> Document:
    """A question about the calendar by a call."""
    day = datetime.date(2000, 1, 1) + datetime.timedelta(days=draw.number(0, 12000))
    later = day + datetime.timedelta(days=(n := draw.number(2, draw.pick([20, 100, 400]))))
    needed = draw.pick([WEEKDAY, ADD_DAYS, DAYS_BETWEEN])
    asked = draw.phrase(DATE_ASK[needed.name][draw.lang]).format(d=_said(day, draw.lang), e=_said(later, draw.lang),
                        n=n)
    the = {"en": "", "fr": "le "}[draw.lang]
    if needed is WEEKDAY:
        arguments: dict[str, Any] = {"date": day.isoformat()}
        found = DAYS["en"][day.weekday()]
        verb = {"en": "is a", "fr": "est un"}[draw.lang]
        said = f"{the}{_said(day, draw.lang)} {verb} {DAYS[draw.lang][day.weekday()]}."
    elif needed is ADD_DAYS:
        arguments, found = {"date": day.isoformat(), "days": n}, later.isoformat()
        said = {"en": "That is {d}.", "fr": "C'est le {d}."}[draw.lang].format(d=_said(later, draw.lang))
    else:
        arguments, found = {"start": day.isoformat(), "end": later.isoformat()}, str(n)
        said = {"en": "There are {n} days.", "fr": "Il y a {n} jours."}[draw.lang].format(n=n)
    return with_call(draw, needed, asked, arguments, found, said[:1].upper() + said[1:])


def _said(day: datetime.date, lang: str) -> str:
    return f"{day.day} {MONTHS[lang][day.month - 1]} {day.year}"


def calculator_items(draw: Draw) -> tuple[list[Message], tuple[Tool, ...], Fraction]:
    """A held-out question for the behaviour test: messages, tools, and the value that a right call has."""
    one = worded_sum(draw) if draw.chance(0.45) else plain_sum(draw)
    return [user(one.asked)], offered(draw, CALCULATOR), one.value
