"""Personas: open text, a policy that none of them changes, and prompts that are found again by their digest."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libremoe.chat import persona as personas
from libremoe.chat.persona import PERSONAS, Version, history, load_personas, policy, read_persona, system_prompt
from libremoe.chat.tool_box import local_tools
from libremoe.errors import LibremoeError

OWN = """
tools = ["calculator"]
[title]
en = "Pirate"
[[versions]]
date = 2026-01-01
[versions.prompt]
en = "Arr."
[[versions]]
date = 2026-12-01
note = "louder"
[versions.prompt]
en = "ARR."
"""


@pytest.mark.parametrize("name", ["regular", "fun", "coder", "teacher"])
@pytest.mark.parametrize("language", ["en", "fr"])
def test_each_is_complete_in_both_languages_and_ends_with_the_policy(name: str, language: str) -> None:
    one = load_personas()[name]
    assert one.title[language] and one.description[language] and one.versions[-1].prompts[language]
    served = system_prompt(one, language)
    assert served.text.endswith("\n\n" + policy()[-1].prompts[language])
    assert served.sha256 == hashlib.sha256(served.text.encode()).hexdigest()
    assert len(served.text) < 700  # a small model's context must hold it with room to answer
    known = {entry.tool.name for entry in local_tools()} | {"search", "open_page", "run_python", "mcp"}
    assert set(one.tools) <= known


def test_ones_own_is_a_copied_file(tmp_path: Path) -> None:
    (tmp_path / "pirate.toml").write_text(OWN)
    (tmp_path / "regular.toml").write_text((PERSONAS / "regular.toml").read_text().replace("helpful", "salty"))
    found = load_personas(tmp_path)
    assert list(found)[0] == "regular" and found["regular"].own and not found["fun"].own
    assert "salty" in system_prompt(found["regular"], "en").text
    assert system_prompt(found["pirate"], "fr").text.startswith("ARR.\n\n")  # English where there is no French
    assert load_personas(tmp_path / "nowhere").keys() == load_personas().keys()


def test_history_has_every_prompt_that_was_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pirate.toml").write_text(OWN)
    days = [datetime.date(2026, 6, 1), datetime.date(2026, 12, 1), datetime.date(2027, 1, 1)]
    rules = tuple(Version(day, "", {"en": f"Policy of {day}."}) for day in days)
    monkeypatch.setattr(personas, "policy", lambda: rules)
    found = history(read_persona(tmp_path / "pirate.toml"), "en")
    assert [(str(one.since), one.text) for one in found] == [
        ("2027-01-01", "ARR.\n\nPolicy of 2027-01-01."), ("2026-12-01", "ARR.\n\nPolicy of 2026-12-01."),
        ("2026-01-01", "Arr.\n\nPolicy of 2026-06-01.")]
    assert len({one.sha256 for one in found}) == 3


@pytest.mark.parametrize(("text", "says"), [
    ("", "versions"), ("x = [", "TOML"), (OWN + "\n[policy]\nen = 'none'", "policy"), ("versions = 3", "versions"),
    (OWN.replace("2026-12-01", "2025-12-01"), "order"), (OWN.replace('en = "Arr."', 'de = "Arr."'), "prompt"),
    (OWN.replace('en = "Arr."', ""), "prompt.en"), (OWN.replace('["calculator"]', '"all"'), "tools"),
    (OWN.replace("[title]", "[sampling]\ntemperature = 9\n[title]"), "temperature"),
    (OWN.replace("[title]", "[sampling]\nseed = 9\n[title]"), "seed"),
    (OWN.replace("[title]", "[sampling]\nmax_tokens = 1.5\n[title]"), "whole"),
])
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "pirate.toml"
    path.write_text(text)
    with pytest.raises(LibremoeError, match=says) as raised:
        read_persona(path)
    assert str(path) in str(raised.value)


def test_files_are_bounded_and_named(tmp_path: Path) -> None:
    (tmp_path / "Bad Name.toml").write_text(OWN)
    with pytest.raises(LibremoeError, match="small letters"):
        load_personas(tmp_path)
    (tmp_path / "Bad Name.toml").rename(tmp_path / "long.toml")
    (tmp_path / "long.toml").write_text(OWN + "#" * (1 << 17))
    with pytest.raises(LibremoeError, match="longer"):
        load_personas(tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_persona_or_a_sentence(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        path.write_bytes(content)
        with pytest.raises(LibremoeError):
            read_persona(path)
