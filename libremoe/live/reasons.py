"""What the live mode says to people, in English and French: why a sentence is not borne out by what it cites
(server/web/words.js has the same for the page, and a test joins them), and what a search has to say of itself."""

from __future__ import annotations

import re

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
        "date": "la source ne donne pas la date {about}", "name": "la source ne dit pas cela à propos de « {about} »",
        "negation": "l’une des deux a une négation que l’autre n’a pas",
        "opposite": "elle dit le contraire de la source, ou quelque chose qui l’exclut",
        "hedged": "la source dit seulement que c’est possible", "words": "la source a trop peu de ses mots",
        "elsewhere": "la source donne {about} pour autre chose",
        "other_date": "la source donne {about} pour une autre date", "swapped": "{about} ont échangé leurs places",
    },
}

NOTES = {  # said with a search's findings. What an error says of itself is English in both.
    "en": {
        "no_words": "the question has no word that could be searched by",
        "offline": "offline: only the archive was searched",
        "no_sources": "no source is configured: libremoe live add URL", "nothing": "nothing was found about “{query}”",
        "stale": "nothing fresh found", "stale_since": "nothing fresh found, the newest is of {date}",
        "late": "{name} did not answer in {seconds} s", "failed": "{name}: {error}", "slow": "the search took too long",
        "stripped": "{name}: letters that nobody would have seen were taken out ({n})",
    },
    "fr": {
        "no_words": "la question n’a aucun mot par lequel chercher",
        "offline": "hors ligne : seule l’archive a été consultée",
        "no_sources": "aucune source n’est configurée : libremoe live add URL",
        "nothing": "rien n’a été trouvé au sujet de « {query} »",
        "stale": "rien de récent n’a été trouvé",
        "stale_since": "rien de récent n’a été trouvé, le plus récent date du {date}",
        "late": "{name} n’a pas répondu en {seconds} s", "failed": "{name} : {error}",
        "slow": "la recherche a pris trop de temps",
        "stripped": "{name} : des lettres que personne n’aurait vues ont été retirées ({n})",
    },
}


def noted(note: str, language: str, **about: object) -> str:
    """A note for people, about what it names."""
    return _spaced(NOTES.get(language, NOTES["en"])[note], language).format(**about)


def worded(reason: str, about: str, language: str) -> str:
    """A reason for people. Answers that were kept before reasons had codes carry an English sentence: that one."""
    text = REASONS.get(language, REASONS["en"]).get(reason)
    return reason if text is None else _spaced(text, language).replace("{about}", about)


def _spaced(text: str, language: str) -> str:
    """With the no-break spaces of French typography, narrow but for the colon's; the words above have plain ones."""
    if language != "fr":
        return text
    return re.sub(r" ([;!?»])", "\u202f\\1", text.replace(" :", "\u00a0:")).replace("« ", "«\u202f")
