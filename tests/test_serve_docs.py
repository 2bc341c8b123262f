"""docs/serve.md, executed: each example against a running server, and its tables against what the server gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from serving import Running, served, tiny_engine

DOCUMENT = (Path(__file__).parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT, re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
SHELL = [text for kind, text in BLOCKS if kind == "sh"]
URL = "http://127.0.0.1:8000"
LIMIT_S = 120


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(tiny_engine(), model_id="grok-1") as running:
        yield running


def test_there_are_examples() -> None:
    assert len(PYTHON) == 6 and len(SHELL) == 4


@pytest.mark.parametrize("number", range(len(PYTHON)), ids=lambda n: PYTHON[n].split("import ")[1].split()[0] + str(n))
def test_python_examples(running: Running, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    source = PYTHON[number].replace(URL, running.url)
    exec(
        compile(source, f"docs/serve.md, example {number}", "exec", dont_inherit=True),
        {"__name__": f"example_{number}"},
    )
    assert capsys.readouterr().out.strip()


def shell(script: str, folder: Path) -> str:
    binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": binaries, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none",
                   "LIBREMOE_KEYS": str(folder / "keys.json")}
    done = subprocess.run(["sh", "-ec", script], env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llm_example(running: Running, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (models,) = (text for kind, text in BLOCKS if kind == "yaml")
    (tmp_path / "extra-openai-models.yaml").write_text(models.replace(URL, running.url))
    (script,) = (text for text in SHELL if text.startswith("llm"))
    assert shell(script, tmp_path).strip()


def test_curl_examples(running: Running, tmp_path: Path) -> None:
    (script,) = (text for text in SHELL if text.startswith("curl"))
    found = shell(script.replace(URL, running.url), tmp_path)
    assert '"template":"transcript"' in found and '"tokens":[' in found and '"status":"ok"' in found


def test_keys_examples(tmp_path: Path) -> None:
    (script,) = (text for text in SHELL if text.startswith("libremoe keys"))
    script = script.replace("libremoe keys", f"{sys.executable} -m libremoe.cli keys")
    found = shell(script, tmp_path)
    assert found.startswith("lm-") and "generate,tokenize" in found and "100000 tokens" in found


def test_metrics_are_those_of_the_table(running: Running) -> None:
    table = DOCUMENT.split("## Metrics")[1].split("##")[0]
    documented = set(re.findall(r"`(libremoe_[a-z_]+)", table))
    text = httpx2.get(f"{running.url}/metrics").text
    given = {name for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE) if not name.endswith("_created")}
    assert {name for name in documented if "expert" not in name} == given
