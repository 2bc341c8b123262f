"""Made questions over numbered excerpts: the answer stands in one of them and is cited, or in none and that is said.

Places and people are invented, so that nothing can be answered from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from libremoe.chat.grounding import FRAME
from libremoe.chat.message import Message, Tool
from libremoe.train.corpus import excerpts
from libremoe.train.draw import Draw, a, answer, call, capital, result, user
from libremoe.train.generate_french import un
from libremoe.train.generate_tools import SEARCH, offered
from libremoe.train.phrasings import ALSO, ALSO_SHARE, WRAPPED, WRAPPED_SHARE
from libremoe.train.render import Document


@dataclass(frozen=True)
class Attribute:
    """What can be said of a thing. value: makes one. In all phrases {e} is the thing and {v} the value."""

    noun: str
    value: Callable[[Draw], str]
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    said: str


def _year(draw: Draw) -> str:
    return str(draw.number(1200, 1990))


def _count(draw: Draw) -> str:
    return str(draw.number(2, 99) * draw.pick([1, 10, 100]))


def _job(draw: Draw) -> str:
    return a(draw.word("job")) if draw.lang == "en" else draw.word("job")


def _product(draw: Draw) -> str:
    kind = draw.pick(["fruit", "vegetable", "instrument", "clothing"])
    word = draw.word(kind)
    if draw.lang == "fr":
        return f"les {word}{'' if word[-1] in 'sx' else 'x' if word.endswith('au') else 's'}"
    return word if word.endswith("s") else word + "s"


def _pet(draw: Draw) -> str:
    colour, animal = draw.word("colour"), draw.word("animal")
    return f"{a(colour)} {animal}" if draw.lang == "en" else un(animal)


def _price(draw: Draw) -> str:
    return f"{draw.number(2, 60)} euros"


def _day(draw: Draw) -> str:
    days = {"en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
            "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche"}[draw.lang]
    return draw.pick(days.split())


def _hour(draw: Draw) -> str:
    return f"{draw.number(6, 11)} o'clock" if draw.lang == "en" else f"{draw.number(6, 11)} heures"


def _person(draw: Draw) -> str:
    return draw.person()


def _place(draw: Draw) -> str:
    return draw.place()


def _colour(draw: Draw) -> str:
    return draw.word("colour")


EN = {
    "town": (
        Attribute("mayor of {e}", _person, ("Who is the mayor of {e}?", "What is the name of the mayor of {e}?",
                  "Who leads the town of {e}?", "Tell me who the mayor of {e} is."),
                  ("The mayor of {e} is {v}.", "{v} is the mayor of {e}.", "{e} is led by its mayor, {v}."),
                  "The mayor of {e} is {v}"),
        Attribute("population of {e}", _count, ("How many people live in {e}?", "What is the population of {e}?",
                  "How big is the population of {e}?", "How many inhabitants does {e} have?"),
                  ("{v} people live in {e}.", "{e} has {v} inhabitants.", "The population of {e} is {v}."),
                  "{v} people live in {e}"),
        Attribute("founding of {e}", _year, ("When was {e} founded?", "In which year was {e} founded?",
                  "How old is the town of {e}?", "What year does {e} date from?"),
                  ("{e} was founded in {v}.", "The town of {e} dates from {v}.", "In {v}, {e} was founded."),
                  "{e} was founded in {v}"),
        Attribute("river of {e}", _place, ("Which river runs through {e}?", "What river is {e} on?",
                  "What is the river in {e} called?", "On which river does {e} lie?"),
                  ("{e} lies on the river {v}.", "The river {v} runs through {e}.", "The river in {e} is the {v}."),
                  "The river {v} runs through {e}"),
        Attribute("products of {e}", _product, ("What is {e} known for?", "What does {e} produce?",
                  "What is {e} famous for?", "For what is the town of {e} known?"),
                  ("{e} is known for its {v}.", "The town of {e} is famous for {v}.", "People in {e} produce {v}."),
                  "{e} is known for its {v}"),
    ),
    "person": (
        Attribute("job of {e}", _job, ("What is the job of {e}?", "What does {e} do for a living?",
                  "What is {e}'s job?", "What work does {e} do?"),
                  ("{e} works as {v}.", "{e} is {v}.", "For a living, {e} works as {v}."), "{e} works as {v}"),
        Attribute("birthplace of {e}", _place, ("Where was {e} born?", "In which town was {e} born?",
                  "What is the birthplace of {e}?", "Where does {e} come from?"),
                  ("{e} was born in {v}.", "{e} comes from {v}.", "The birthplace of {e} is {v}."),
                  "{e} was born in {v}"),
        Attribute("birth year of {e}", _year, ("When was {e} born?", "In which year was {e} born?",
                  "What is the birth year of {e}?", "What year was {e} born in?"),
                  ("{e} was born in the year {v}.", "The birth year of {e} is {v}."), "{e} was born in {v}"),
        Attribute("pet of {e}", _pet, ("What pet does {e} have?", "What animal does {e} keep?",
                  "Which pet does {e} own?", "What kind of pet has {e} got?"),
                  ("{e} has {v} as a pet.", "At home, {e} keeps {v}.", "The pet of {e} is {v}."), "{e} has {v}"),
        Attribute("favourite colour of {e}", _colour, ("What is the favourite colour of {e}?",
                  "Which colour does {e} like best?", "What colour does {e} like most?",
                        "What is {e}'s favourite colour?"),
                  ("The favourite colour of {e} is {v}.", "{e} likes {v} best."), "The favourite colour of {e} is {v}"),
    ),
    "museum": (
        Attribute("ticket of the {e} museum", _price, ("How much is a ticket for the {e} museum?",
                  "What does the {e} museum cost?", "What is the price of the {e} museum?",
                  "How much does it cost to visit the {e} museum?"),
                  ("A ticket for the {e} museum costs {v}.", "Visitors of the {e} museum pay {v}."),
                  "A ticket for the {e} museum costs {v}"),
        Attribute("opening of the {e} museum", _hour, ("When does the {e} museum open?",
                  "At what time does the {e} museum open?", "From what time is the {e} museum open?",
                  "What time does the {e} museum open its doors?"),
                  ("The {e} museum opens at {v}.", "The doors of the {e} museum open at {v}."),
                  "The {e} museum opens at {v}"),
        Attribute("closing day of the {e} museum", _day, ("On which day is the {e} museum closed?",
                  "When is the {e} museum closed?", "Which day does the {e} museum close?",
                  "What day is the {e} museum shut?"),
                  ("The {e} museum is closed on {v}.", "On {v}, the {e} museum is closed."),
                  "The {e} museum is closed on {v}"),
    ),
    "company": (
        Attribute("products of {e} and Sons", _product, ("What does {e} and Sons make?", "What does {e} and Sons sell?",
                  "What are the products of {e} and Sons?", "What can one buy from {e} and Sons?"),
                  ("{e} and Sons makes {v}.", "The company {e} and Sons sells {v}."), "{e} and Sons makes {v}"),
        Attribute("founder of {e} and Sons", _person, ("Who founded {e} and Sons?",
                        "Who is the founder of {e} and Sons?",
                  "Who started {e} and Sons?", "By whom was {e} and Sons founded?"),
                  ("{e} and Sons was founded by {v}.", "{v} founded {e} and Sons."), "{v} founded {e} and Sons"),
        Attribute("workers of {e} and Sons", _count, ("How many people work at {e} and Sons?",
                  "How many workers does {e} and Sons have?", "How large is the staff of {e} and Sons?",
                  "How many employees has {e} and Sons?"),
                  ("{v} people work at {e} and Sons.", "{e} and Sons has {v} workers."),
                  "{v} people work at {e} and Sons"),
    ),
}
FR = {
    "town": (
        Attribute("maire de {e}", _person, ("Qui est le maire de {e} ?", "Comment s'appelle le maire de {e} ?",
                  "Qui dirige la ville de {e} ?", "Dis-moi qui est le maire de {e}."),
                  ("Le maire de {e} est {v}.", "{v} est maire de {e}.", "La ville de {e} est dirigée par {v}."),
                  "Le maire de {e} est {v}"),
        Attribute("population de {e}", _count, ("Combien de personnes vivent à {e} ?",
                        "Quelle est la population de {e} ?",
                  "Combien y a-t-il d'habitants à {e} ?", "Combien d'habitants compte {e} ?"),
                  ("{v} personnes vivent à {e}.", "{e} compte {v} habitants.", "La population de {e} est de {v}."),
                  "{v} personnes vivent à {e}"),
        Attribute("fondation de {e}", _year, ("Quand {e} a-t-elle été fondée ?",
                        "En quelle année {e} fut-elle fondée ?",
                  "De quand date la ville de {e} ?", "Quelle est l'année de fondation de {e} ?"),
                  ("{e} a été fondée en {v}.", "La ville de {e} date de {v}."), "{e} a été fondée en {v}"),
        Attribute("rivière de {e}", _place, ("Quelle rivière traverse {e} ?", "Comment s'appelle la rivière de {e} ?",
                  "Au bord de quelle rivière se trouve {e} ?", "Quelle rivière passe à {e} ?"),
                  ("La rivière {v} traverse {e}.", "{e} se trouve au bord de la rivière {v}."),
                  "La rivière {v} traverse {e}"),
        Attribute("produits de {e}", _product, ("Pour quoi {e} est-elle connue ?", "Que produit {e} ?",
                  "Que fait-on à {e} ?", "Qu'est-ce que la ville de {e} produit ?"),
                  ("{e} est connue pour {v}.", "La ville de {e} est célèbre pour {v}."), "{e} est connue pour {v}"),
    ),
    "person": (
        Attribute("métier de {e}", _job, ("Quel est le métier de {e} ?", "Que fait {e} dans la vie ?",
                  "Quel métier exerce {e} ?", "Quelle est la profession de {e} ?"),
                  ("{e} travaille comme {v}.", "Le métier de {e} : {v}."), "{e} travaille comme {v}"),
        Attribute("naissance de {e}", _place, ("Où est né {e} ?", "Dans quelle ville est né {e} ?",
                  "D'où vient {e} ?", "Quel est le lieu de naissance de {e} ?"),
                  ("{e} vient de {v}.", "Le lieu de naissance de {e} est {v}."), "{e} vient de {v}"),
        Attribute("année de naissance de {e}", _year, ("Quelle est l'année de naissance de {e} ?",
                  "En quelle année est né {e} ?", "Quand est né {e} ?", "Depuis quelle année vit {e} ?"),
                  ("L'année de naissance de {e} est {v}.", "{e} est de l'année {v}."),
                  "L'année de naissance de {e} est {v}"),
        Attribute("animal de {e}", _pet, ("Quel animal a {e} ?", "Quel animal vit chez {e} ?",
                  "Quel est l'animal de {e} ?", "Quel animal {e} garde-t-il chez lui ?"),
                  ("{e} a {v}.", "Chez {e} vit {v}."), "{e} a {v}"),
        Attribute("couleur préférée de {e}", _colour, ("Quelle est la couleur préférée de {e} ?",
                  "Quelle couleur {e} aime le plus ?", "Quelle couleur préfère {e} ?",
                        "Quelle couleur plaît le plus à {e} ?"),
                  ("La couleur préférée de {e} est le {v}.", "{e} aime surtout le {v}."),
                  "La couleur préférée de {e} est le {v}"),
    ),
    "museum": (
        Attribute("prix du musée de {e}", _price, ("Combien coûte le musée de {e} ?",
                  "Quel est le prix du musée de {e} ?", "Combien coûte un billet pour le musée de {e} ?",
                  "Combien faut-il payer au musée de {e} ?"),
                  ("Un billet pour le musée de {e} coûte {v}.", "Au musée de {e}, on paie {v}."),
                  "Un billet pour le musée de {e} coûte {v}"),
        Attribute("ouverture du musée de {e}", _hour, ("À quelle heure ouvre le musée de {e} ?",
                  "Quand ouvre le musée de {e} ?", "À partir de quelle heure le musée de {e} est-il ouvert ?",
                  "Le musée de {e} ouvre à quelle heure ?"),
                  ("Le musée de {e} ouvre à {v}.", "À {v}, le musée de {e} ouvre ses portes."),
                  "Le musée de {e} ouvre à {v}"),
        Attribute("fermeture du musée de {e}", _day, ("Quel jour le musée de {e} est-il fermé ?",
                  "Quand le musée de {e} est-il fermé ?", "Quel jour ferme le musée de {e} ?",
                  "Le musée de {e} est fermé quel jour ?"),
                  ("Le musée de {e} est fermé le {v}.", "Le {v}, le musée de {e} est fermé."),
                  "Le musée de {e} est fermé le {v}"),
    ),
    "company": (
        Attribute("produits de la maison {e}", _product, ("Que vend la maison {e} ?", "Que fabrique la maison {e} ?",
                  "Quels sont les produits de la maison {e} ?", "Que peut-on acheter à la maison {e} ?"),
                  ("La maison {e} vend {v}.", "À la maison {e}, on fabrique {v}."), "La maison {e} vend {v}"),
        Attribute("fondateur de la maison {e}", _person, ("Qui a fondé la maison {e} ?",
                  "Qui est le fondateur de la maison {e} ?", "Qui a créé la maison {e} ?",
                  "Par qui la maison {e} a-t-elle été fondée ?"),
                  ("La maison {e} a été fondée par {v}.", "{v} a fondé la maison {e}."), "{v} a fondé la maison {e}"),
        Attribute("employés de la maison {e}", _count, ("Combien de personnes travaillent à la maison {e} ?",
                  "Combien d'employés a la maison {e} ?", "Combien y a-t-il d'employés à la maison {e} ?",
                  "Combien de salariés compte la maison {e} ?"),
                  ("{v} personnes travaillent à la maison {e}.", "La maison {e} a {v} employés."),
                  "{v} personnes travaillent à la maison {e}"),
    ),
}
NOT_THERE = {
    "en": ("The excerpts do not say.", "I cannot find that in the excerpts.",
           "The excerpts do not answer this question."),
    "fr": ("Les extraits ne le disent pas.", "Je ne trouve pas cela dans les extraits.",
           "Les extraits ne répondent pas à cette question."),
}
ASK_FIRST = {
    "en": ("{s}\n\n{q}", "Excerpts:\n{s}\n\nQuestion: {q}", "{q}\n\n{s}", "Use these excerpts to answer.\n{s}\n\n{q}"),
    "fr": ("{s}\n\n{q}", "Extraits :\n{s}\n\nQuestion : {q}", "{q}\n\n{s}",
           "Réponds d'après ces extraits.\n{s}\n\n{q}"),
}
NO_SOURCE = {
    "en": ("I do not know: I have no source about that here.",
           "I do not know that. If you give me a text, I can look in it."),
    "fr": ("Je ne sais pas : je n'ai pas de source sur ce sujet ici.",
           "Je ne le sais pas. Si tu me donnes un texte, je peux y chercher."),
}


@dataclass(frozen=True)
class Question:
    """A question over excerpts; cite: the right number, None where none answers; value: what the answer must hold.
    more: further questions over the same excerpts, with their answers."""

    asked: str
    query: str
    shown: str
    cite: int | None
    value: str
    said: str
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Snippet:
    """facts: (thing, noun of the attribute) of all that it states, the one that is asked about first."""

    thing: str
    about: Attribute
    value: str
    text: str
    facts: tuple[tuple[str, str], ...]


def question(draw: Draw, unanswerable: float = 0.2) -> Question:
    """Two to five excerpts: the answer, the same of others, and other things of the same."""
    kinds = EN if draw.lang == "en" else FR
    kind = draw.pick(list(kinds))
    about = draw.pick(kinds[kind])
    right = _snippet(draw, about, _thing(draw, kind), kinds[kind])
    snippets = [right]
    for _ in range(draw.number(1, 4)):
        other = draw.pick(kinds[kind])
        if draw.chance(0.6) or other is about:
            snippets.append(_snippet(draw, about, _thing(draw, kind), kinds[kind]))
        else:
            snippets.append(_snippet(draw, other, right.thing if draw.chance(0.6) else _thing(draw, kind)))
    if draw.chance(unanswerable):
        snippets = snippets[1:]
    draw.random.shuffle(snippets)
    cite = next((i for i, one in enumerate(snippets, 1) if one is right), None)
    said = draw.pick(NOT_THERE[draw.lang]) if cite is None else _said(right, cite)
    return Question(_asked(draw, right), about.noun.format(e=right.thing),
                    excerpts([(one.thing, one.text) for one in snippets]), cite, right.value, said,
                    _more(draw, snippets, right, kind))


def _snippet(draw: Draw, about: Attribute, thing: str, others: tuple[Attribute, ...] = ()) -> _Snippet:
    """One statement, or, of several attributes, sometimes two of them in either order."""
    value = about.value(draw)
    parts = [capital(draw.pick(about.statements).format(e=thing, v=value))]
    facts = [(thing, about.noun)]
    if others and draw.chance(0.35):
        more = draw.pick([o for o in others if o is not about])
        parts.insert(draw.number(0, 1), capital(draw.pick(more.statements).format(e=thing, v=more.value(draw))))
        facts.append((thing, more.noun))
    return _Snippet(thing, about, value, " ".join(parts), tuple(facts))


def _more(draw: Draw, snippets: list[_Snippet], first: _Snippet, kind: str) -> tuple[tuple[str, str], ...]:
    """Questions about what the other excerpts say, where only one says it, and about what none says."""
    stated = [fact for one in snippets for fact in one.facts]
    left = [(i, one) for i, one in enumerate(snippets, 1) if one is not first and stated.count(one.facts[0]) == 1]
    draw.random.shuffle(left)
    more = [(_asked(draw, one), _said(one, i)) for i, one in left[: draw.number(1, 3)]]
    if draw.chance(0.25):
        absent = _snippet(draw, first.about, _thing(draw, kind))
        more.insert(draw.number(0, len(more)), (_asked(draw, absent), draw.pick(NOT_THERE[draw.lang])))
    return tuple(more)


def _asked(draw: Draw, one: _Snippet) -> str:
    """In training also in words that no test has."""
    if draw.held_out:
        return draw.phrase(one.about.questions).format(e=one.thing)
    phrase = draw.pick(ALSO[one.about.noun]) if draw.chance(ALSO_SHARE) else draw.phrase(one.about.questions)
    asked = phrase.format(e=one.thing)
    return draw.pick(WRAPPED[draw.lang]).format(q=asked) if draw.chance(WRAPPED_SHARE) else asked


def _said(one: _Snippet, number: int) -> str:
    return f"{capital(one.about.said.format(e=one.thing, v=one.value))} [{number}]."


def _thing(draw: Draw, kind: str) -> str:
    return draw.person() if kind == "person" else draw.place()


def asked(draw: Draw, one: Question) -> tuple[list[Message], tuple[Tool, ...]]:
    """The question with its excerpts: in the person's own message, or found by a search."""
    if draw.chance(0.6):
        frame = FRAME[draw.lang] if draw.chance(0.6) else draw.pick(ASK_FIRST[draw.lang])
        return [user(frame.format(s=one.shown, q=one.asked))], ()
    return [user(one.asked), call(SEARCH.name, {"query": one.query}), result(one.shown)], offered(draw, SEARCH)


def cite(draw: Draw) -> Document:
    """Search or excerpts, then an answer with its number; without either, an honest "I do not know"."""
    one = question(draw)
    if draw.chance(0.06):
        return Document(messages=(user(one.asked), answer(draw.pick(NO_SOURCE[draw.lang]))))
    messages, tools = asked(draw, one)
    more = [m for said in one.more for m in (user(said[0]), answer(said[1]))] if draw.chance(0.8) else []
    return Document(messages=(*messages, answer(one.said), *more), tools=tools)
