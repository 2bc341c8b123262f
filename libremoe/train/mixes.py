"""What a model is trained on: for each mix and stage, tokens of each part and how often the part may be seen.

`cpu` is for a few million active parameters and about 20 million tokens: simple language and skills that so small a
model can learn. `gpu` takes everything. `tune` is for going on from the model that `gpu` made: fresh conversations, and
text again, which learning answers alone had driven out. `read` goes on once more: mostly questions over excerpts, more
of them in French, where the model read worst. A part is one of corpus.PARTS or gen/<generator>/<language>.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """At most so many tokens of a part, seen up to `repeat` times; 0 tokens: all there is."""

    tokens: int = 0
    repeat: int = 1


def _generated(thousands: dict[str, tuple[int, int]], times: float = 1) -> dict[str, Share]:
    """Thousands of tokens by generator, (English, French)."""
    return {f"gen/{kind}/{lang}": Share(int(amount * 1000 * times)) for kind, amounts in thousands.items()
            for lang, amount in zip(("en", "fr"), amounts, strict=True)}


SKILLS_FIRST = {  # in pretraining: the shape of conversations, and much reading of excerpts, which is slow to learn
    "story": (1300, 800), "story_chat": (200, 150), "calculator": (400, 320), "units": (100, 100), "dates": (100, 100),
    "cite": (2100, 1700), "memory": (200, 160), "forms": (180, 140), "who": (110, 110), "refuse": (50, 40),
    "small_talk": (80, 80), "know": (80, 60),
}
SKILLS = {
    "story_chat": (220, 180), "calculator": (420, 340), "units": (100, 100), "dates": (100, 100), "cite": (1300, 1100),
    "memory": (250, 200), "forms": (200, 170), "who": (220, 220), "refuse": (60, 50), "small_talk": (110, 110),
    "know": (100, 80),
}
SKILLS_TUNED = {
    "story_chat": (40, 30), "calculator": (60, 50), "units": (16, 16), "dates": (16, 16), "cite": (650, 600),
    "memory": (60, 50), "forms": (40, 30), "who": (50, 50), "refuse": (12, 10), "small_talk": (40, 40),
    "know": (40, 30),
}
SKILLS_READ = {
    "story_chat": (20, 20), "calculator": (40, 40), "units": (10, 10), "dates": (10, 10), "cite": (750, 1100),
    "memory": (30, 30), "forms": (20, 15), "who": (40, 40), "refuse": (8, 8), "small_talk": (25, 25),
    "know": (20, 20),
}
MIXES: dict[str, dict[str, dict[str, Share]]] = {
    "cpu": {
        "pretrain": {
            "storybooks_en": Share(repeat=2), "storybooks_fr": Share(repeat=3), "childrens_books": Share(2_600_000),
            "self_dialogue": Share(1_700_000), "word_definitions": Share(600_000), "recipes": Share(80_000),
            "open_english_wordnet": Share(300_000), "openstax_textbooks": Share(800_000),
            "openstax_key_terms": Share(300_000), "tatoeba_en_fr": Share(1_000_000), "small_talk_and_jokes": Share(),
            "world_factbook": Share(100_000), "chemical_elements": Share(), "grounded_answers": Share(700_000),
            **_generated(SKILLS_FIRST),
        },
        "chat": {  # with some text, so that its language is not lost while answers are learned
            "small_talk_and_jokes": Share(repeat=2), "word_definitions": Share(200_000),
            "openstax_key_terms": Share(100_000), "grounded_answers": Share(400_000), "tatoeba_en_fr": Share(150_000),
            "storybooks_en": Share(200_000), "childrens_books": Share(250_000), "storybooks_fr": Share(),
            **_generated(SKILLS),
        },
    },
    "gpu": {
        "pretrain": {
            "standard_ebooks": Share(7_000_000), "openstax_textbooks": Share(), "open_english_wordnet": Share(),
            "world_factbook": Share(), "tldr_pages": Share(), "storybooks_en": Share(repeat=2), "recipes": Share(),
            "storybooks_fr": Share(repeat=3), "chemical_elements": Share(), "schema_guided_dialogue": Share(5_000_000),
            "self_dialogue": Share(), "topical_chat": Share(), "gsm8k_train": Share(), "word_definitions": Share(),
            "openstax_key_terms": Share(), "multiple_choice": Share(), "openstax_review_answers": Share(),
            "self_instruct_human": Share(), "mbpp_train": Share(), "small_talk_and_jokes": Share(),
            "grounded_answers": Share(), "snips_requests": Share(), "clinc150_intents_train": Share(),
            "tatoeba_en_fr": Share(), **_generated(SKILLS_FIRST, 4),
        },
        "chat": {
            "small_talk_and_jokes": Share(repeat=2), "word_definitions": Share(400_000), "gsm8k_train": Share(),
            "openstax_key_terms": Share(), "openstax_review_answers": Share(), "self_instruct_human": Share(repeat=2),
            "mbpp_train": Share(), "grounded_answers": Share(), "schema_guided_dialogue": Share(2_500_000),
            "snips_requests": Share(200_000), "multiple_choice": Share(), "tatoeba_en_fr": Share(500_000),
            **_generated(SKILLS, 3),
        },
    },
    "tune": {
        "chat": {
            "standard_ebooks": Share(120_000), "openstax_textbooks": Share(330_000), "storybooks_en": Share(60_000),
            "open_english_wordnet": Share(120_000), "world_factbook": Share(60_000), "storybooks_fr": Share(40_000),
            "self_dialogue": Share(220_000), "word_definitions": Share(80_000), "openstax_key_terms": Share(100_000),
            "grounded_answers": Share(200_000), "gsm8k_train": Share(80_000), "small_talk_and_jokes": Share(),
            "tatoeba_en_fr": Share(60_000), "self_instruct_human": Share(), "multiple_choice": Share(40_000),
            **_generated(SKILLS_TUNED),
        },
    },
    "read": {
        "chat": {
            "standard_ebooks": Share(60_000), "openstax_textbooks": Share(120_000), "storybooks_en": Share(40_000),
            "open_english_wordnet": Share(60_000), "storybooks_fr": Share(60_000), "self_dialogue": Share(120_000),
            "word_definitions": Share(40_000), "openstax_key_terms": Share(50_000),
            "grounded_answers": Share(150_000), "gsm8k_train": Share(60_000), "small_talk_and_jokes": Share(),
            "tatoeba_en_fr": Share(60_000), "self_instruct_human": Share(),
            **_generated(SKILLS_READ),
        },
    },
}
