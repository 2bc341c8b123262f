"""Sentences and words of English and French texts, just well enough to compare a claim with its source.

Nothing here knows a grammar: words are cut to stems by their endings, and short lists say what carries no meaning, what
is the same, and what excludes each other. The lists were written for this file.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache


def fold(text: str) -> str:
    """Lower case without accents."""
    text = text.lower().replace("œ", "oe").replace("æ", "ae").replace("’", "'")
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def word_set(text: str) -> set[str]:
    """The words of a list, folded."""
    return {fold(word) for word in text.split()}


_ABBREVIATIONS = word_set("""
mr mrs ms dr st prof sen rep gen gov lt col sgt jr sr inc ltd co corp vs etc no vol fig approx dept est m mm mme
mlle me p pp cf ex art av bd env jan feb mar apr jun jul aug sept sep oct nov dec janv févr avr juil déc e.g i.e u.s
u.k u.n a.m p.m""")
_END = re.compile(r"(?<![.!?…])[.!?…]++(?:\s?»|[\"'”’)\]])*"
                  r"(?:\s*(?:\[\^?\d[\d,;\s–-]*\]|【[^】]{1,20}】))*(?=\s|$)|\n+")
_OPENS = re.compile(r"[\"'“‘«(\[*_\s-]*(.)", re.DOTALL)
_LAST_WORD = re.compile(r"([^\s(\[«“\"]+)[.]$")

STOP = word_set("""
a an the this that these those it its he him his she her hers they them their we us our you your i me my who whom
whose which what when where why how there here is are was were be been being am has have had having do does did will
would shall should can of in on at by for from to with into onto over under about as than then so and or but if
while because since until during after before between among against through per also too very just only even still
already yet more most much many some any all both each every other another such same own up down out off again
according said says say saying told tells reported reports le la les un une des du de au aux ce cet cette ces il
elle ils elles on nous vous je tu moi toi lui leur leurs son sa ses mon ma mes ton ta tes notre nos votre vos qui
que quoi dont où quand comment pourquoi est sont était étaient être été fut furent sera seront serait suis es sommes
êtes a ont avait avaient avoir eu aura auront ai as avons avez y en dans sur sous par pour avec sans vers chez entre
contre depuis pendant avant après selon comme plus moins très trop aussi tout toute tous toutes même autre autres et
ou mais si car donc ni ne pas se sa s l d n c j m t qu ainsi alors encore déjà dit disent déclaré annoncé afin lors""")

# Cues that turn a clause round. "ne" alone is no cue: "ne ... que" means only.
NEGATIONS = word_set("""
not never no none nobody nothing neither nor without cannot denies denied deny denying refuses refused refuse unable
declined pas jamais aucun aucune rien nul nulle ni sans refuse refusé dément démenti nie nié""")
_NOT_NEGATIONS = re.compile(
    r"\b(?:not only|not just|no less than|no fewer than|no more than|no\. ?\d|no doubt|nothing but|"
    r"non seulement|pas moins de|pas seulement|un pas|premier pas|sans doute|ne manque pas)\b", re.IGNORECASE)
_PLUS = re.compile(r"\b(?:ne |n['’])(?:[\w’'-]+ ){1,3}(?:plus|guère|personne)\b(?! (?:que|de \d))", re.IGNORECASE)
_NE = re.compile(r"\b(?:ne\s|n['’])", re.IGNORECASE)
_CONTRACTED = re.compile(r"n['’]t\b|\bfail(?:s|ed)? to\b|\béchou\w+ à\b", re.IGNORECASE)

MODALS = word_set("""
may might could would reportedly allegedly supposedly possibly perhaps rumoured rumored pourrait pourraient serait
seraient aurait auraient devrait devraient peut-être possiblement éventuellement""")

# Sides of a line exclude each other: a claim with one, where the source has another and not this one, is not borne out.
_EXCLUSIVE = """
rise rose risen rising increase grow grew gain climb jump soar hausse augmente progresse grimpe accroît bondi | fall \
    fell fallen decrease decline drop shrink shrank sink plunge baisse diminue recule chute réduit
win won winner victory gagne remporte victoire vainqueur | lose lost defeat perd perdu défaite battu
approve accept adopt agree approuve accepte adopte | reject refuse oppose rejette refuse repousse
open opened ouvre ouvert | close closed shut ferme fermé
buy bought acquire achète acheté rachète | sell sold vend vendu
begin began begun start launch commence débute lance | end ended finish stop termine achève arrête cesse
north northern nord | south southern sud | east eastern est-allemand oriental | west western ouest occidental
above au-dessus supérieur | below au-dessous inférieur
alive survive vivant survit | dead died killed mort tué décède
born né née naît | buried enterré
guilty coupable | innocent acquitted acquitté
true vrai exact | false faux inexact
higher plus-haut | lower plus-bas
hire hired recruit embauche recrute | fire fired dismissed licencie renvoyé
arrive arrived arrivé | leave left depart quitte parti
legal légal | illegal illégal
male homme man men hommes | female femme woman women femmes
red rouge | blue bleu | green vert verte | yellow jaune | black noir | white blanc blanche | brown brun marron | \
    grey gray gris | pink rose-couleur | purple violet | orange
spring printemps | summer été-saison | autumn automne | winter hiver
morning matin | afternoon après-midi | evening soir | night nuit
"""
# Members of a line say the same.
_SAME = """
found founding foundation establish create date fonde fondation créé créa date
inhabitant people population live resident habitant personne population vit vivent
mayor led lead head dirige maire
cost price pay ticket coûte prix paie tarif
work worker employee staff job travaille employé salarié métier
make sell produce product known famous fabrique vend produit connu célèbre
birth born birthplace come né naissance vient
like favourite favorite prefer aime préféré
win victory gagne victoire remporte
die dead death kill meurt mort décès tué
raise increase hausse augmente
begin start launch commence débute lance
buy acquire acquisition achète rachète
president chief head président chef
company firm business entreprise société
vote ballot election scrutin élection
government cabinet gouvernement
announce unveil annonce dévoile
"""


_ENDINGS = ("issements", "issement", "atrices", "ations", "ateurs", "ements", "ation", "ateur", "ement", "ments",
            "ities", "aient", "erent", "ness", "ment", "ions", "ives", "ably", "ings", "iers", "iere", "ites", "ance",
            "ence", "ity", "ing", "ion", "ait", "ent", "ees", "ers", "ant", "ive", "ies", "eur", "ite", "ed", "er",
            "ly", "es", "ee", "ez", "ir", "al", "s", "e", "y", "a")
_IRREGULAR = {fold(form): base for base, forms in {
    "rise": "rose risen", "fall": "fell fallen", "win": "won", "lose": "lost", "grow": "grew grown", "buy": "bought",
    "sell": "sold", "lead": "led", "begin": "began begun", "become": "became", "hold": "held", "take": "took taken",
    "give": "gave given", "make": "made", "meet": "met", "pay": "paid", "leave": "left", "build": "built",
    "kill": "killed", "die": "died dying", "write": "wrote written", "speak": "spoke spoken", "come": "came",
    "go": "went gone", "see": "saw seen", "think": "thought", "bring": "brought", "shrink": "shrank shrunk",
    "man": "men", "woman": "women", "child": "children", "person": "people persons",
}.items() for form in forms.split()}


@lru_cache(65536)
def stem(word: str) -> str:
    """A word's first letters, without ending or accents: minister, ministre and ministers are one."""
    word = fold(word)
    word = _IRREGULAR.get(word, word)
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:6]


def _groups(lines: str) -> dict[str, set[tuple[int, int]]]:
    found: dict[str, set[tuple[int, int]]] = {}
    for i, line in enumerate(lines.strip().splitlines()):
        for j, side in enumerate(line.split("|")):
            for word in side.split():
                found.setdefault(stem(word), set()).add((i, j))
    return found


EXCLUSIVE = _groups(_EXCLUSIVE)  # stem -> (line, side)
SAME = _groups(_SAME)

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*\.?(?<!\.)")
_ELISION = re.compile(r"^(?:l|d|j|m|t|s|n|c|qu|jusqu|lorsqu|puisqu|quoiqu)['’]", re.IGNORECASE)


def words(text: str) -> list[tuple[str, int]]:
    """(word as written, where it begins), without French elisions (l'homme: homme) and English 's."""
    found = []
    for match in _WORD.finditer(text):
        word, start = match.group(), match.start()
        elision = _ELISION.match(word)
        if elision:
            word, start = word[elision.end():], start + elision.end()
        word = re.sub(r"['’]s$", "", word)
        if word:
            found.append((word, start))
    return found


def is_stop(word: str) -> bool:
    return fold(word) in STOP


def negation_scopes(text: str) -> list[tuple[int, int]]:
    """(start, end) of what each negation is about: from "ne", or else the cue, over the next words of its clause.

    Failing to is a negation; failing alone is not.
    """
    blanked = _NOT_NEGATIONS.sub(lambda m: " " * len(m.group()), text)
    tokens = words(blanked)
    cues = [start for word, start in tokens if fold(word) in NEGATIONS]
    cues += [m.start() for pattern in (_CONTRACTED, _PLUS) for m in pattern.finditer(blanked)]
    found = []
    for cue in cues:
        begin = max((m.start() for m in _NE.finditer(blanked, max(0, cue - 40), cue)), default=cue)
        stop = _CLAUSE.search(blanked, cue)
        end = stop.start() if stop else len(blanked)
        after = [start + len(word) for word, start in tokens if cue < start < end and not is_stop(word)]
        found.append((begin, after[:4][-1] if after else min(end, cue + 1)))
    return found


def hedged(text: str) -> bool:
    """Whether the text says only that something may be so."""
    return any(fold(word) in MODALS and word != "May" for word, _ in words(text))


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, without the space around it. A citation after the full stop belongs before it."""
    found: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if "\n" not in match.group() and not _ends(text, start, match):
            continue
        _keep(text, start, match.end(), found)
        start = match.end()
    _keep(text, start, len(text), found)
    return found


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether this full stop ends a sentence: not after an abbreviation or initial, nor before a small letter."""
    head = text[start: match.start() + 1]
    last = _LAST_WORD.search(head[-40:])
    if last and match.group()[0] == ".":
        word = last.group(1).lower()
        if re.fullmatch(r"[\s*>#-]*\d{1,3}\.", head[head.rfind("\n") + 1:]):
            return False  # the number of a list's item
        if fold(word) in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and last.group(1).isupper()):
            return False
    opening = _OPENS.match(text, match.end())
    return opening is None or not opening.group(1).islower()


def _keep(text: str, start: int, end: int, found: list[tuple[int, int]]) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        found.append((start, end))


_CLAUSE = re.compile(r"[;—]|[:,](?!\d)|\s(?:and|but|while|whereas|although|though|et|mais|tandis que|alors que|quoique|"
                     r"bien que)\s", re.IGNORECASE)


def clauses(text: str) -> list[tuple[int, int]]:
    """(start, end) of the parts between full stops, commas, semicolons and conjunctions."""
    found: list[tuple[int, int]] = []
    for begin, finish in sentences(text):
        start = begin
        for match in _CLAUSE.finditer(text, begin, finish):
            _keep(text, start, match.start(), found)
            start = match.end()
        _keep(text, start, finish, found)
    return found


_ENGLISH = word_set("""
the of and to in is was for that with on by from are were has have had it its this be been an at as which""")
_FRENCH = word_set("""
le la les des du de et à un une est en que qui dans pour sur par au aux sont été ont plus ne pas ce cette il""")


def language(text: str) -> str:
    """en, fr, or "" where the little words do not tell."""
    written = [fold(w) for w, _ in words(text)]
    english, french = sum(w in _ENGLISH for w in written), sum(w in _FRENCH for w in written)
    return "en" if english > french else "fr" if french > english else ""
