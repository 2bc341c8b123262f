"""Seeded choices for the generators, with whole templates and words held out for validation and tests.

A phrase list keeps every fourth phrase, a word list every tenth word, for validation: neither is seen in training.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from libremoe.chat.message import Message, ToolCall, ToolResult, said
from libremoe.train.corpus import WordLists

T = TypeVar("T")
Lang = Literal["en", "fr"]
PHRASE_EVERY, WORD_EVERY, SMALL_LIST = 4, 10, 30

LISTS = {
    "animal": ("animals/common.json", "animals"), "fruit": ("foods/fruits.json", "fruits"),
    "vegetable": ("foods/vegetables.json", "vegetables"), "job": ("humans/occupations.json", "occupations"),
    "object": ("objects/objects.json", "objects"), "clothing": ("objects/clothing.json", "clothes"),
    "instrument": ("music/instruments.json", "instruments"), "metal": ("materials/metals.json", "metals"),
    "gem": ("materials/gemstones.json", "gemstones"), "body": ("humans/bodyParts.json", "bodyParts"),
    "noun": ("words/nouns.json", "nouns"), "verb": ("words/infinitive_verbs.json", ""),
    "bread": ("foods/breads_and_pastries.json", "breads"), "fabric": ("materials/fabrics.json", "fabrics"),
}
COLOURS = {
    "en": ["red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "silver"],
    "fr": ["rouge", "bleu", "vert", "jaune", "orange", "violet", "rose", "marron", "noir", "blanc", "gris",
           "turquoise"],
}
FRENCH = {  # the lists of the mix are English only
    "animal": "chat chien lapin renard ours loup mouton cheval canard hibou écureuil hérisson lion tigre singe "
              "éléphant "
              "zèbre crocodile serpent poisson oiseau pigeon coq cochon âne castor cerf dauphin requin papillon",
    "fruit": "pomme poire banane cerise fraise orange pêche prune mangue figue citron melon abricot raisin kiwi ananas "
             "framboise mûre pastèque clémentine",
    "vegetable": "carotte tomate oignon poireau chou navet radis salade concombre courgette aubergine épinard haricot "
                 "poivron betterave artichaut",
    "job": "boulanger médecin jardinier pompier facteur peintre pilote vendeur cuisinier coiffeur plombier musicien "
           "professeur avocat dentiste menuisier pêcheur berger tailleur libraire",
    "object": "livre vélo ballon parapluie chapeau panier crayon sac tambour cerf-volant miroir bateau marteau coussin "
              "verre vase lampe clé montre bague boîte tasse cuillère flûte corde valise carte poupée",
    "clothing": "pantalon chemise robe jupe manteau pull écharpe gant bonnet chaussette chapeau veste",
    "instrument": "piano violon guitare flûte tambour harpe trompette violoncelle accordéon clarinette",
    "metal": "fer cuivre or argent plomb zinc étain nickel aluminium",
    "noun": "maison jardin porte table chaise soleil lune pluie route rivière montagne forêt pain lait école ville",
}
FIRST_NAMES = {
    "en": "",  # from the lists of the mix
    "fr": "Camille Louis Chloé Jules Emma Hugo Léa Lucas Manon Nathan Inès Paul Sarah Théo Alice Gabriel Jeanne Arthur "
          "Lina Raphaël Rose Adam Anna Maël Zoé Simon Clara Victor Nina Martin Louise Antoine Élise Benoît Margot Rémi "
          "Pauline Bastien Céline Damien Odile Fabrice Hélène Gilles Irène Yves Maud Serge Agnès Luc",
}
_STARTS = "Bel Bram Cal Cor Dor El Fen Gar Hol Is Jar Kel Lor Mar Nor Or Pel Quin Ras Sel Tor Ul Val Wes Yar Zel Ash"
_MIDDLES = "a e i o u an en ar er ol in or ad im es al"
_ENDS = "ford ton ville mora dale mont ria vik na by field lin port stad sund wick burg ley nis dor"
_FAMILY = "son er ez ard in eau sen ov man ley is ini ault ard ell etti aud"
_ONSETS = "b br c ch cl d dr f fl g gl gr h j k kr l m n p ph pl pr qu r s sc sh sl sp st t th tr v w y z"
_VOWELS = "a e i o u a e i o ai au ea ee ie oa oo ou y"
_CODAS = "n r s l m t k d g p x z ck nd ng nt rd rn rt ss st th"
UNUSUAL = 0.4  # of the names of training: letters by lot, so that a name is copied and not guessed from its beginning


class Draw:
    """The choices that make one document. held_out: from the phrases and words that training never sees."""

    def __init__(self, seed: str, lists: WordLists, lang: Lang, held_out: bool):
        self.random = random.Random(seed)
        self.lists, self.lang, self.held_out = lists, lang, held_out

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def phrase(self, options: Sequence[T]) -> T:
        """One of a list of phrasings that has held-out members where it is long enough."""
        if len(options) < PHRASE_EVERY:
            return self.pick(options)
        rest = PHRASE_EVERY - 1
        return self.pick([o for i, o in enumerate(options) if (i % PHRASE_EVERY == rest) == self.held_out])

    def word(self, kind: str) -> str:
        return self.pick(self.words(kind))

    def some(self, kind: str, count: int) -> list[str]:
        """Different words of one kind."""
        known = self.words(kind)
        return self.random.sample(known, min(count, len(known)))

    def words(self, kind: str) -> list[str]:
        """All words of a kind that this document may use."""
        key = (id(self.lists), self.lang, kind, self.held_out)
        if key not in _WORDS:
            _WORDS[key] = self._side(self._all_words(kind))
        return _WORDS[key]

    def _all_words(self, kind: str) -> list[str]:
        if kind == "colour":
            return COLOURS[self.lang]
        if kind == "name":
            names = FIRST_NAMES[self.lang].split()
            return names or self.lists.names("humans/firstNames.json", "firstNames")
        if self.lang == "fr":
            return FRENCH[kind].split()
        return self.lists.words(*LISTS[kind])

    def _side(self, words: list[str]) -> list[str]:
        if len(words) < SMALL_LIST:
            return words
        return [w for w in words if _is_held_out(w) == self.held_out]

    def place(self) -> str:
        """An invented place: nobody can know it by heart, so what is said of it must be read."""
        if self._is_unusual():
            return self.spelled()
        return self._invented(lambda: self.pick(_STARTS.split()) + self.middle() + self.pick(_ENDS.split()))

    def person(self) -> str:
        """A first name and an invented family name."""
        if self._is_unusual():
            return f"{self.spelled() if self.chance(0.5) else self.word('name')} {self.spelled()}"
        family = self._invented(lambda: self.pick(_STARTS.split()) + self.middle() + self.pick(_FAMILY.split()))
        return f"{self.word('name')} {family}"

    def spelled(self) -> str:
        """A name of one to three syllables that no list has."""
        return capital("".join(self._syllable() for _ in range(self.number(1, 3))))

    def _syllable(self) -> str:
        coda = self.pick(_CODAS.split()) if self.chance(0.8) else ""
        return self.pick(_ONSETS.split()) + self.pick(_VOWELS.split()) + coda

    def _is_unusual(self) -> bool:
        return not self.held_out and self.chance(UNUSUAL)

    def middle(self) -> str:
        return self.pick(_MIDDLES.split()) if self.chance(0.5) else ""

    def _invented(self, make) -> str:  # type: ignore[no-untyped-def]
        while True:
            name = make()
            if _is_held_out(name) == self.held_out:
                return name


_WORDS: dict[tuple[int, str, str, bool], list[str]] = {}


def _is_held_out(word: str) -> bool:
    return zlib.crc32(word.encode()) % WORD_EVERY == 0


def a(word: str) -> str:
    """The word with a or an."""
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def user(text: str) -> Message:
    return said("user", text)


def answer(text: str) -> Message:
    return said("assistant", text)


def call(name: str, arguments: dict[str, Any]) -> Message:
    return Message("assistant", (ToolCall("call_1", name, json.dumps(arguments, ensure_ascii=False)),))


def result(text: str) -> Message:
    return Message("tool", (ToolResult("call_1", text),))
