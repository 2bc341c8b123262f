"""French articles for the words of draw.FRENCH."""

from __future__ import annotations

_FEMININE = """
    pomme poire banane cerise fraise orange pêche prune mangue figue framboise mûre pastèque clémentine carotte tomate
    courgette aubergine salade betterave chemise robe jupe écharpe veste chaussette guitare flûte harpe trompette
    clarinette lampe clé montre bague boîte tasse cuillère corde valise carte poupée maison porte table chaise lune
    pluie route rivière montagne forêt école ville
"""
FEMININE = frozenset(_FEMININE.split())
_ELIDED = "aeiouéèêâôîû"  # an h of these lists is never silent: le hibou, la harpe


def un(word: str) -> str:
    return f"{'une' if word in FEMININE else 'un'} {word}"


def le(word: str) -> str:
    if word[0] in _ELIDED:
        return f"l'{word}"
    return f"{'la' if word in FEMININE else 'le'} {word}"


def de(word: str) -> str:
    return f"d'{word}" if word[0] in _ELIDED else f"de {word}"
