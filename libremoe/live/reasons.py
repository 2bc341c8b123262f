"""Why a sentence is not borne out by what it cites, in words. server/web/words.js has the same ones for the page
(a test joins them)."""

from __future__ import annotations

REASONS = {  # {about}: the number, name or words in question, as they stand in the answer
    "en": {
        "dangling": "there is no excerpt {about}", "empty": "it says nothing that can be compared",
        "silent": "the excerpt says nothing of this", "unrelated": "[{about}] does not speak of this",
        "quote": "“{about}” does not stand there", "number": "the source does not give {about}",
        "date": "the source does not give the date {about}", "name": "the source does not say this of {about}",
        "negation": "one of them has a negation that the other has not",
        "opposite": "it says the opposite of the source, or something that excludes it",
        "hedged": "the source says only that it may be so", "words": "the source has too few of its words",
        "elsewhere": "the source gives {about} for something else",
        "other_date": "the source gives {about} for another date", "swapped": "{about} have changed places",
    },
    "fr": {
        "dangling": "il n’y a pas d’extrait {about}", "empty": "elle ne dit rien que l’on puisse comparer",
        "silent": "l’extrait n’en dit rien", "unrelated": "[{about}] ne parle pas de cela",
        "quote": "« {about} » ne s’y trouve pas", "number": "la source ne donne pas {about}",
        "date": "la source ne donne pas la date {about}", "name": "la source ne dit pas cela de {about}",
        "negation": "l’une des deux a une négation que l’autre n’a pas",
        "opposite": "elle dit le contraire de la source, ou quelque chose qui l’exclut",
        "hedged": "la source dit seulement que c’est possible", "words": "la source a trop peu de ses mots",
        "elsewhere": "la source donne {about} pour autre chose",
        "other_date": "la source donne {about} pour une autre date", "swapped": "{about} ont échangé leurs places",
    },
}


def worded(reason: str, about: str, language: str) -> str:
    """A reason for people. Answers that were kept before reasons had codes carry an English sentence: that one."""
    text = REASONS.get(language, REASONS["en"]).get(reason)
    return reason if text is None else text.replace("{about}", about)
