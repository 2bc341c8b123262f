"""What runs chose is kept and replayed: reads that a person can count, and files that are wrong, foreign or not to be
written."""

from pathlib import Path

import pytest

from libremoe import routing
from libremoe.routing import Routing, reads_per_step, record, recorded, routing_path

SIZES = (2, 4, 2)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_reads_are_those_that_a_person_counts() -> None:
    same = Routing(*SIZES, [[[0, 1], [2, 3]]] * 5)
    assert reads_per_step(same, 4) == 0 and reads_per_step(same, 8, 3) == 0
    turns = Routing(*SIZES, [[[0, 1], [0, 1]], [[2, 3], [2, 3]]])
    assert reads_per_step(turns, 8) == 0
    assert reads_per_step(turns, 2) == 4  # two slots: each layer's pair drives out the other's
    first = reads_per_step(same, 4, 1)
    assert 0 < first <= 4 and reads_per_step(same, 4, 40) == first / 40  # read once, after the prompt


def test_more_slots_never_read_more_of_a_steady_text() -> None:
    steps = [[[i % 3, 3], [i // 5 % 4, (i // 5 + 1) % 4]] for i in range(60)]
    reads = [reads_per_step(Routing(*SIZES, steps), n) for n in (2, 4, 6, 8)]
    assert reads[-1] == 0 and reads == sorted(reads, reverse=True) and reads[0] <= 4


def test_runs_are_added_and_the_oldest_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "STEPS_KEPT", 3)
    model = tmp_path / "model"
    assert recorded(model, SIZES) is None
    record(model, SIZES, [((1, 0), (2, 3))])
    record(model, SIZES, [((0, 1), (2, 3)), ((3, 1), (2, 0)), ((2, 1), (0, 1))])
    found = recorded(model, SIZES)
    assert found is not None and found.steps == [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[1, 2], [0, 1]]]
    assert recorded(tmp_path / "other", SIZES) is None and recorded(model, (2, 8, 2)) is None
    assert len(list(routing_path(model).parent.iterdir())) == 1


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe", b"[]\n", b'{"n_layers": 2, "n_experts": 4, "n_active": 2}\n'])
def test_a_broken_file_is_as_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = routing_path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert recorded(tmp_path, SIZES) is None
    record(tmp_path, SIZES, [((0, 1), (2, 3))])
    assert recorded(tmp_path, SIZES) is not None


def test_where_nothing_can_be_written_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, no folder")
    record(tmp_path, SIZES, [((0, 1), (2, 3))])
    assert recorded(tmp_path, SIZES) is None
