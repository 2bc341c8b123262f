"""Writing the official Grok-1 layout: a shard per parameter, byte for byte as CPython pickles numpy arrays.

For models of other sizes in the release's format (`libremoe make-tiny --as ckpt`) and for tests. The opcodes
are written here, not by `pickle`, so that a shard of 1.6 GB goes to the disk expert by expert without ever
being held. Formats: docs/grok-1.md, "Checkpoint format"; PEP 3154 for frames; CPython's Modules/_pickle.c for
where it cuts them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from libremoe.config import ModelConfig
from libremoe.errors import LibremoeError
from libremoe.experts import Weight
from libremoe.quant import QuantTensor
from libremoe.weights.grok_layout import Parameter, config_json, parameters
from libremoe.weights.pickle_grammar import DTYPE_STATES, ITEM_BYTES

_FRAME_TARGET = 64 * 1024  # a frame of this size is closed; bytes of this size stand outside frames
_FRAME_MIN = 4  # anything shorter gets no frame


def write_checkpoint(folder: Path, config: ModelConfig, read: Callable[[str], Weight]) -> None:
    """Write folder/ckpt-0/tensorNNNNN_000 and folder/config.json; neither may exist.

    read gives a tensor by our name, as a reader's `read` does: float for norms, router and embedding, int8
    QuantTensor for the rest, whose groups must divide their inputs evenly (the release has 8 groups in attn.o
    and down, 1 in all others). One tensor is held at a time. The folder of tensors appears under its name
    only when it is complete. Raises LibremoeError for what the format cannot hold, and where the disk
    refuses.
    """
    text = config_json(config)
    target, partial = folder / "ckpt-0", folder / f"ckpt-0.partial-{os.getpid()}"
    for path in (target, folder / "config.json"):
        if os.path.lexists(path):
            raise LibremoeError(f"{path} exists already; choose another folder")
    try:
        partial.mkdir(parents=True)
        for parameter in parameters(config):
            with open(partial / parameter.file, "xb") as file:
                _write_parameter(file, parameter, config.n_experts, read)
                _sync(file)
        with open(partial / "config.json", "x", encoding="utf-8") as config_file:
            config_file.write(text)
            _sync(config_file)
        os.replace(partial / "config.json", folder / "config.json")
        _sync_folder(partial)
        os.replace(partial, target)
        _sync_folder(folder)
    except OSError as e:
        raise LibremoeError(f"{folder}: cannot be written: {e.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_parameter(
    file: BinaryIO, parameter: Parameter, n_experts: int, read: Callable[[str], Weight]
) -> None:
    pickler = _Pickler(file)
    if not parameter.quantised:
        values = read(parameter.name)
        if isinstance(values, QuantTensor):
            raise LibremoeError(f"{parameter.name}: the official format has float32, not {values.format}")
        values = values.t() if parameter.module.endswith("router") else values
        _check_shape(parameter, tuple(values.shape))
        pickler.plain_array(_ArrayPlan("float32", parameter.shape, [values.float()]))
        return
    stacked = len(parameter.shape) == 3
    names = [parameter.name]
    if stacked:
        names = [parameter.name.replace(".experts.", f".experts.{e}.") for e in range(n_experts)]
    scales: list[torch.Tensor] = []  # filled while the codes are written, and then written themselves

    def codes() -> Iterator[torch.Tensor]:
        for name in names:
            code, scale = _columns(name, read(name))
            _check_shape(parameter, (n_experts, *code.shape) if stacked else tuple(code.shape))
            if scales and (scales[0].shape, scales[0].dtype) != (scale.shape, scale.dtype):
                raise LibremoeError(f"{name}: experts of one layer must have the same groups")
            scales.append(scale)
            yield code

    def scales_plan() -> _ArrayPlan:
        shape = (len(scales), *scales[0].shape) if stacked else tuple(scales[0].shape)
        return _ArrayPlan(str(scales[0].dtype).removeprefix("torch."), shape, scales)

    pickler.quantised(_ArrayPlan("int8", parameter.shape, codes()), scales_plan)


def _check_shape(parameter: Parameter, shape: tuple[int, ...]) -> None:
    if shape != parameter.shape:
        raise LibremoeError(f"{parameter.name} has shape {shape}, the configuration says {parameter.shape}")


def _columns(name: str, weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (in, out) int8 and scales (in / group, out) bfloat16 or float32."""
    if not isinstance(weight, QuantTensor) or weight.format != "int8":
        raise LibremoeError(f"{name}: the official format holds int8 weights only")
    if weight.shape[1] % weight.group:
        raise LibremoeError(f"{name}: groups of {weight.group} do not divide {weight.shape[1]} inputs")
    if weight.layout == "columns":
        return weight.data, weight.scales
    return weight.codes().t().to(torch.int8), weight.group_scales().t().to(weight.scales.dtype)


@dataclass(frozen=True)
class _ArrayPlan:
    """An array to be written: its bytes are those of the parts, one after the other."""

    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[torch.Tensor]

    @property
    def nbytes(self) -> int:
        return ITEM_BYTES[self.dtype] * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class _Global:
    module: str
    name: str


_RECONSTRUCT = _Global("numpy.core.multiarray", "_reconstruct")
_CODES = {"float32": "f4", "int8": "i1", "bfloat16": _Global("ml_dtypes", "bfloat16")}


class _Pickler:
    """The part of pickle protocol 4 that shards need, with the memo and the frames of CPython's C pickler."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.frame = bytearray()
        self.memo: dict[Any, int] = {}  # of what may come twice: texts, globals, short bytes
        self.n_memo = 0
        file.write(b"\x80\x04")

    def plain_array(self, plan: _ArrayPlan) -> None:
        self.array(plan)
        self.frame += b"."
        self.close_frame()

    def quantised(self, weight: _ArrayPlan, scales: Callable[[], _ArrayPlan]) -> None:
        """A QuantizedWeight8bit; scales is called when the weight has been written."""
        self.save(_Global("__main__", "QuantizedWeight8bit"))
        self.frame += b")\x81"
        self.memoise()
        self.frame += b"}"
        self.memoise()
        self.frame += b"("
        self.save("weight")
        self.array(weight)
        self.save("scales")
        self.array(scales())
        self.frame += b"ub."
        self.close_frame()

    def array(self, plan: _ArrayPlan) -> None:
        self.close_full_frame()
        self.save(_RECONSTRUCT)
        self.save((_Global("numpy", "ndarray"), (0,), b"b"))
        self.frame += b"R"
        self.memoise()
        self.frame += b"("
        self.save(1)
        self.save(plan.shape)
        self.save(_Global("numpy", "dtype"))
        self.save((_CODES[plan.dtype], False, True))
        self.frame += b"R"
        self.memoise()
        self.save(DTYPE_STATES[plan.dtype])
        self.frame += b"b"
        self.save(False)
        self.payload(plan)
        self.frame += b"t"
        self.memoise()
        self.frame += b"b"

    def payload(self, plan: _ArrayPlan) -> None:
        self.close_full_frame()
        n = plan.nbytes
        head = b"C" + bytes([n]) if n < 1 << 8 else b"B" + n.to_bytes(4, "little") if n < 1 << 32 else \
            b"\x8e" + n.to_bytes(8, "little")
        outside = n >= _FRAME_TARGET
        if outside:
            self.close_frame()
        write = self.file.write if outside else self.frame.extend
        write(head)
        for part in plan.parts:
            write(part.contiguous().view(-1).view(torch.uint8).numpy().data)
        self.memoise()

    def save(self, term: Any) -> None:
        """A constant: None, bool, int, text, one byte, a global, or a tuple of these."""
        self.close_full_frame()
        if isinstance(term, (str, bytes, _Global)) and term in self.memo:
            self.frame += b"h" + bytes([self.memo[term]])
        elif isinstance(term, tuple):
            short = len(term) <= 3
            self.frame += b"" if short else b"("
            for item in term:
                self.save(item)
            self.frame += bytes([0x84 + len(term)]) if short else b"t"
            self.memoise()
        elif isinstance(term, _Global):
            self.save(term.module)
            self.save(term.name)
            self.frame += b"\x93"
            self.memoise(term)
        elif isinstance(term, (str, bytes)):
            raw = term.encode() if isinstance(term, str) else term
            self.frame += (b"\x8c" if isinstance(term, str) else b"C") + bytes([len(raw)]) + raw
            self.memoise(term)
        elif term is None or isinstance(term, bool):
            self.frame += {None: b"N", True: b"\x88", False: b"\x89"}[term]
        elif 0 <= term < 1 << 8:
            self.frame += b"K" + bytes([term])
        elif 0 <= term < 1 << 16:
            self.frame += b"M" + term.to_bytes(2, "little")
        else:
            self.frame += b"J" + term.to_bytes(4, "little", signed=True)

    def memoise(self, term: Any = None) -> None:
        self.frame += b"\x94"
        if term is not None:
            self.memo[term] = self.n_memo
        self.n_memo += 1

    def close_full_frame(self) -> None:
        """Called where CPython looks: before each object that it saves."""
        if len(self.frame) >= _FRAME_TARGET:
            self.close_frame()

    def close_frame(self) -> None:
        if len(self.frame) >= _FRAME_MIN:
            self.file.write(b"\x95" + len(self.frame).to_bytes(8, "little"))
        self.file.write(self.frame)
        self.frame = bytearray()
