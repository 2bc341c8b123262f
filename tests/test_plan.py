"""The planner: numbers that a person can work out, sizes that are those of converted files, and a command that plans
for machines and models that are not here."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LLAMA, MIXTRAL

from libremoe import cli, plan
from libremoe.config import PRESETS
from libremoe.convert import convert
from libremoe.direct_read import Piece
from libremoe.errors import CheckpointError, LibremoeError
from libremoe.forecast import PROCESS_BYTES, Sizes, distinct_experts, forecast, total
from libremoe.language_model import RunStats
from libremoe.loading import MARGIN, working_bytes
from libremoe.machine import PER_CORE, RESERVE, Machine, Rates, amount, disk_rate, from_file, to_toml
from libremoe.routing import Routing
from libremoe.weights import open_checkpoint
from libremoe.weights.native_layout import ALIGN

CKPT = Path(__file__).parent / "golden" / "tiny-grok1" / "ckpt-0"
GB = 10**9
FAST = Rates(decode=50e9, prefill=1e12)
# 2 layers of 4 experts, 2 active; every expert 1 GB, 1 GB of the rest with a parameter a byte.
SIZES = Sizes(MIXTRAL, "int4", GB, {"int8": GB}, {"int8": GB}, GB, 9 * GB)
MACHINE = Machine("paper", 4, "avx2", 20e9, read=100e9, disk=1e9, watts=100, layer_s=1e-3,
                  rates={"int4": FAST, "int8": FAST})
KV = 2 * 2 * 2 * 16 * 4 * 100  # both, layers, heads, size of a head, bytes, tokens
PROCESS = PROCESS_BYTES + MARGIN + working_bytes(MIXTRAL)
WHOLE = KV // 100 * 512  # of the whole context, which is less than a tenth of the memory in these tests
AROUND = GB + WHOLE + PROCESS
TOML = """name = "box"
cores = 8
isa = "avx2"
ram = "34G"
read = "40G/s"
disk = "2G/s"
"""


def test_a_step_that_is_all_in_memory() -> None:
    one = forecast(SIZES, MACHINE, context=100, prompt=100)
    assert one.placement == "resident" and one.hit_rate == 1 and one.slots == one.n_experts == 8
    by_name = {term.name: term.seconds for term in one.terms}
    assert by_name["shared weights, int8"] == pytest.approx(1 / 50)
    assert by_name["experts, int4"] == pytest.approx(2 * 2 / 50)  # layers x active
    assert by_name["keys and values"] == pytest.approx(KV / 45e9)
    assert by_name["small operations"] == pytest.approx(2 * 1e-3 + 1e-3)
    assert one.tokens_per_s == one.cold_tokens_per_s == pytest.approx(1 / (0.02 + 0.08 + KV / 45e9 + 0.003))
    assert one.joules_per_token == pytest.approx(100 / one.tokens_per_s)
    assert one.load_s == pytest.approx(9)


@pytest.mark.parametrize(("kv", "item", "rate"), [(torch.bfloat16, 2, 30e9), (torch.int8, 1 + 4 / 16, 20e9)])
def test_narrower_keys_and_values_take_their_bytes(kv: torch.dtype, item: float, rate: float) -> None:
    """int8: a byte each, and a scale of four for a head of 16."""
    one = forecast(SIZES, MACHINE, context=100, kv_dtype=kv)
    assert {term.name: term.seconds for term in one.terms}["keys and values"] == pytest.approx(KV / 4 * item / rate)
    assert one.kv_bytes == WHOLE / 4 * item


def test_a_step_with_half_of_the_experts_on_disk() -> None:
    one = forecast(SIZES, MACHINE, AROUND + 4 * GB, context=100)
    assert (one.placement, one.slots, one.hit_rate, one.cache_bytes) == ("streamed", 4, 0.5, 4 * GB)
    compute = 0.02 + 0.08 + KV / 45e9 + 0.003
    # Each layer lacks one of its two experts, and the other one's computing, half of 0.08 s, hides behind the reading.
    assert total(one.terms) == pytest.approx(2 * 2 * 0.5 + compute - 0.04)
    assert total(one.cold_terms) == pytest.approx(2 * 2 + compute - 0.04)
    assert forecast(SIZES, MACHINE, AROUND + 4 * GB, context=100, hit_rate=0.75).slots == 4
    known = forecast(SIZES, MACHINE, 2 * GB, context=100, slots=6)
    assert total(known.terms) == pytest.approx(1 + compute - 0.02)  # every other layer lacks one


def test_a_prompt_reads_what_the_run_begins_without() -> None:
    """100 tokens touch all experts, whose reading is longer than computing and hides it."""
    half = AROUND + 4 * GB
    assert forecast(SIZES, MACHINE, half, context=100, prompt=100).first_token_s == pytest.approx(4)
    assert forecast(SIZES, MACHINE, half, context=100, prompt=100, run_steps=9).first_token_s == pytest.approx(8)


def test_what_earlier_runs_chose_gives_the_hit_rate() -> None:
    """Two experts of each layer, always the same: four slots hold them, three lack one or two a step."""
    steady = Routing(2, 4, 2, [[[0, 1], [2, 3]]] * 10)
    one = forecast(SIZES, MACHINE, AROUND + 4 * GB, context=100, routing=steady)
    assert one.hit_rate == 1 and one.measured_routing and "experts from disk" not in {t.name for t in one.terms}
    short = forecast(SIZES, MACHINE, context=100, slots=3, routing=steady)
    assert 0 < short.hit_rate < 1
    assert "earlier runs" in {t.name: t.formula for t in short.terms}["experts from disk"]
    many = forecast(SIZES, MACHINE, AROUND + 4 * GB, context=100, batch=8, routing=steady)
    assert many.hit_rate == many.slots / 8 and not many.measured_routing
    run = forecast(SIZES, MACHINE, AROUND + 4 * GB, context=100, routing=steady, run_steps=5)
    assert 0.5 < run.hit_rate < 1  # the prompt has left others in the slots


def test_the_least_memory_is_the_least() -> None:
    least = AROUND + GB  # one expert at a time
    assert forecast(SIZES, MACHINE, least, context=100).least == least
    short = forecast(SIZES, MACHINE, least - 1, context=100)
    assert short.placement == "does not fit" and not short.terms and not short.tokens_per_s
    whole = dataclasses.replace(SIZES, streams=False)
    assert forecast(whole, MACHINE, AROUND + 8 * GB - 1, context=100).placement == "does not fit"
    assert forecast(whole, MACHINE, AROUND + 8 * GB, context=100).placement == "resident"


def test_many_tokens_are_bound_by_arithmetic() -> None:
    one = forecast(SIZES, MACHINE, context=100, prompt=100)
    by_name = {term.name: term.seconds for term in one.first_terms}
    n_head = MIXTRAL.vocab_size * MIXTRAL.dim
    reads = GB / 50e9 * (1 - 99 / 127)  # of a weight for 100 tokens instead of 128, with which computing is measured
    assert by_name["shared weights, int8"] == pytest.approx(2 * 100 * (GB - 0.99 * n_head) / 1e12 + reads)
    whole = forecast(SIZES, MACHINE, context=100, prompt=128)
    assert whole.first_terms[0].seconds == pytest.approx(2 * 128 * (GB - 127 / 128 * n_head) / 1e12)
    eight = forecast(SIZES, MACHINE, context=100, batch=8)
    assert distinct_experts(MIXTRAL, 8) == pytest.approx(4 * (1 - 0.5**8))
    assert {t.name: t.seconds for t in eight.terms}["experts, int4"] == pytest.approx(2 * 4 * (1 - 0.5**8) / 50)
    assert eight.tokens_per_s > 4 * one.tokens_per_s


def test_a_dense_model_streams_its_layers() -> None:
    dense = Sizes(LLAMA, "int4", GB, {"int8": GB}, {"int8": GB}, GB, 3 * GB)
    assert distinct_experts(LLAMA, 1) == distinct_experts(LLAMA, 500) == 1
    one = forecast(dense, MACHINE, context=100)
    assert one.n_experts == 2 and {t.name for t in one.terms} >= {"feed-forwards, int4"}
    with pytest.raises(LibremoeError, match="context must be from 1 to 512"):
        forecast(dense, MACHINE, context=513)


@given(st.floats(1e9, 40e9), st.floats(1, 3), st.integers(1, 500), st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_more_of_anything_is_never_slower(memory: float, more: float, context: int, batch: int) -> None:
    one = forecast(SIZES, MACHINE, memory, context, batch)
    roomier = forecast(SIZES, MACHINE, memory * more, context, batch)
    assert roomier.tokens_per_s >= one.tokens_per_s and roomier.first_token_s <= one.first_token_s
    assert one.tokens_per_s >= one.cold_tokens_per_s
    quicker = forecast(SIZES, dataclasses.replace(MACHINE, disk=MACHINE.disk * more), memory, context, batch)
    assert quicker.tokens_per_s >= one.tokens_per_s
    if one.placement != "does not fit":
        assert one.tokens_per_s == pytest.approx(batch / total(one.terms))
        assert one.shared_bytes + one.kv_bytes + one.process_bytes + one.cache_bytes <= memory
    assert (one.placement == "does not fit") == (memory < one.least)


@pytest.mark.parametrize("format", ["int4", "int2", "bf16"])
def test_sizes_are_those_of_the_converted_files(tmp_path: Path, format: str) -> None:
    source = open_checkpoint(CKPT)
    convert(CKPT, tmp_path / "made", format, shown=False)
    made = open_checkpoint(tmp_path / "made")
    planned = plan.sizes_of(source.config, source.entry, format)
    assert planned == plan.sizes_of(made.config, made.entry, None)
    assert planned.disk <= sum(f.stat().st_size for f in (tmp_path / "made").glob("*.safetensors")) + 4096
    assert planned.disk <= planned.weights < planned.disk + planned.n_experts * ALIGN  # of whole pages


def test_grok_1_is_as_large_as_it_is() -> None:
    _, config, entry_of, reader = plan.find_model(Path("grok-1"))
    offered = plan.offered_sizes(config, entry_of, reader)
    assert list(offered) == ["int8", "int4", "int3", "int2"]
    assert offered["int8"].disk == pytest.approx(318e9, rel=0.01)  # docs/grok-1.md
    assert offered["int4"].disk == pytest.approx(178e9, rel=0.01)
    assert offered["int4"].expert == pytest.approx(340e6, rel=0.01)
    touched = sum(offered["int4"].touched.values()) + 128 * offered["int4"].expert
    assert touched == pytest.approx(48e9, rel=0.02)
    assert all(plan.find_model(Path(name))[1] == PRESETS[name] for name in PRESETS)


def test_amounts() -> None:
    assert amount("24G", "x") == 24e9 and amount("22GiB", "x") == 22 * 2**30 and amount("1.2G/s", "x") == 1.2e9
    assert amount(5, "x") == 5 and amount("800MB/s", "x") == 8e8
    for wrong in ("", "G", "-1G", "1Q", "1 2", 0, True, "nan", "inf"):
        with pytest.raises(LibremoeError, match="--ram must be a size"):
            amount(wrong, "--ram")


def test_a_machine_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(TOML + 'gpus = ["a card, 24 GB"]\n[rates.int4]\ndecode = "9G/s"\nprefill = "0.5T/s"\n')
    machine = from_file(path)
    assert machine.ram == 34e9 - RESERVE and machine.rate("int4") == Rates(9e9, 0.5e12)
    assert machine.rate("int8").decode <= 0.85 * 40e9 and machine.power == 20 + 6 * 8
    path.write_text(to_toml(machine, 34e9))
    assert from_file(path) == machine


@pytest.mark.parametrize(("text", "complaint"), [
    ("name =", "not TOML"), ('name = "x"', "lacks cores, isa, ram"), (TOML + "colour = 1", "does not know colour"),
    (TOML.replace("avx2", "abacus"), "isa one of"), (TOML.replace("8", "0.5"), "cores must be"),
    (TOML.replace("34G", "1G"), "more than the 2 GB"), (TOML + "[rates.int9]\n", "named after formats"),
    (TOML + "[rates.int4]\ndecode = 1\n", "must have decode and prefill"), (TOML + "gpus = 1", "list of names"),
    (TOML.replace("2G/s", "fast"), "disk must be a size"),
])
def test_a_broken_machine_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(LibremoeError, match=complaint):
        from_file(path)


def test_the_disk_is_read(tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    big.write_bytes(os.urandom(32 << 20))
    small.write_bytes(b"x")
    rate = disk_rate([Piece(big, 4096 + 5, (20 << 20) + 1), Piece(small, 0, 1), Piece(big, 0, 32 << 20)])
    assert rate is not None and rate > 1e6
    assert disk_rate([Piece(small, 0, 1)]) is None and disk_rate([]) is None
    with pytest.raises(CheckpointError, match="too early"):
        disk_rate([Piece(big, 0, 33 << 20)])


def command(capsys, *args: object) -> tuple[int, str, str]:
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(("ram", "verdict", "code"), [
    ("400G", "fits: int8", 0), ("200G", "fits: int4", 0), ("24G", "streams: int4", 0), ("3G", "does not fit", 1)])
def test_the_command_plans_for_what_is_not_here(capsys, tmp_path, ram, verdict, code) -> None:
    path = tmp_path / "m.toml"
    path.write_text(TOML)
    flags = ("--machine", path, "--ram", ram)
    got, out, err = command(capsys, "plan", "grok-1", *flags, "--json")
    answer = json.loads(out)
    assert (got, err) == (code, "") and answer["verdict"].startswith(verdict)
    assert {one["format"] for one in answer["forecasts"]} == {"int8", "int4", "int3", "int2"}
    _, out, _ = command(capsys, "plan", "grok-1", *flags, "--kv", "int8", "--json")
    kv = [[one["kv_bytes"] for one in each["forecasts"]] for each in (answer, json.loads(out))]
    assert all(narrow <= exact for exact, narrow in zip(*kv, strict=True))
    got, out, _ = command(capsys, "plan", "grok-1", *flags)
    assert got == code and verdict in out.splitlines()[-1] and "W (assumed" in out


def test_a_gpu_is_named_and_said_to_be_idle(capsys, tmp_path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(TOML + 'gpus = ["a card, 24 GB"]\n')
    _, out, _ = command(capsys, "plan", "llama-2-7b", "--machine", path)
    assert "a card, 24 GB: not used" in out


def test_mistakes_have_a_sentence(capsys) -> None:
    for args, complaint in (((CKPT, "--ram", "much"), "--ram must be a size"), (("grok-2",), "no preset; there are"),
                            ((CKPT, "--format", "bf16"), "not narrower than the int8"),
                            ((CKPT, "--machine", "nowhere.toml"), "nowhere.toml: No such file")):
        code, _, err = command(capsys, "plan", *args)
        assert code == 2 and complaint in err and err.count("\n") == 1


def test_there_are_rates_for_whatever_the_kernels_choose() -> None:
    """Each instruction set of kernels/dispatch.cpp, those too that this processor lacks."""
    source = (Path(__file__).parent.parent / "kernels" / "dispatch.cpp").read_text()
    named = set(re.findall(r"namespace (\w+) { extern const Kernels table; }", source)) - {"amx_emulated"}
    assert named == set(PER_CORE)


def test_this_machine_is_measured_and_a_run_is_compared_with_it(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = ("run", CKPT, "--ids", "5,6", "--temperature", 0, "--max-tokens", 4, "--stats")
    assert "run `libremoe plan PATH` once" in command(capsys, *run)[2]
    code, out, _ = command(capsys, "plan", CKPT, "--format", "int8", "--json")
    machine = json.loads(out)["machine"]
    assert code == 0 and machine["read"] > 1e8 and machine["rates"]["int8"]["decode"] > 1e6 and machine["layer_s"] > 0
    assert from_file(tmp_path / "libremoe" / "machine.toml").cores == machine["cores"]
    assert "forecast: first token after" in command(capsys, *run)[2]
    config = open_checkpoint(CKPT).config
    assert len(plan.routing_of(CKPT, config).steps) == 2 * 3  # of both runs, without their first tokens
    answer = json.loads(command(capsys, *run, "--json")[1].splitlines()[-1])
    assert answer["forecast"]["tokens_per_s"] > 0
    for flag in (("--experts", 1), ("--draft", 2)):  # not the model's own choice
        command(capsys, *run, *flag)
    assert len(plan.routing_of(CKPT, config).steps) == 3 * 3


def test_the_comparison_is_a_ratio() -> None:
    one = forecast(SIZES, MACHINE, context=100)
    stats = RunStats(prompt_tokens=100, tokens=11, first_token_s=1.0, seconds=1.0 + 20 / one.tokens_per_s)
    assert "0.50 of it" in plan.comparison(one, stats)
    assert "of it" not in plan.comparison(one, RunStats(prompt_tokens=100, tokens=1, first_token_s=1, seconds=1))


def test_the_tables_of_the_documents_are_what_the_planner_says() -> None:
    done = subprocess.run([sys.executable, str(Path(__file__).parent.parent / "bench" / "hardware.py"), "--check"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
