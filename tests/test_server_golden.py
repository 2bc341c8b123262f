"""The whole way: the official layout converted, `libremoe serve` as a process, and the openai client, against the
reference's tokens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serving import serving_command

from libremoe.tokenizer import open_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "tiny-grok1"


def test_openai_client_over_the_converted_golden_checkpoint(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    from libremoe.tiny import byte_tokenizer

    converted = tmp_path / "grok"
    convert = [sys.executable, "-m", "libremoe.cli", "convert", str(GOLDEN), str(converted), "--format", "int8"]
    subprocess.run(convert, check=True, capture_output=True)
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer(512))
    with (
        serving_command(tmp_path, str(converted), "--tokenizer", str(tmp_path / "tokenizer.json")) as url,
        np.load(GOLDEN / "golden.npz") as data, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        for name in ("p1", "p7", "p33"):
            prompt, wanted = data[f"f32/{name}/tokens"].tolist(), data[f"f32/{name}/dec_tokens"].tolist()
            found = client.completions.create(model="grok", prompt=prompt, max_tokens=len(wanted), temperature=0,
                                              logprobs=0)
            assert found.choices[0].text == open_tokenizer(tmp_path / "tokenizer.json").decode(wanted), name
            assert len(found.choices[0].logprobs.tokens) == len(wanted)
