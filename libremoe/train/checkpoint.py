"""The state of a run in one file: tensors and a JSON record, in the safetensors layout, parsed and never unpickled.

Written as NAME.partial, synced and renamed: after kill -9 the last whole one is there.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from libremoe.errors import CheckpointError
from libremoe.weights.native_writer import PARTIAL, sync_folder

_MAX_HEADER_BYTES = 64 << 20


def save(path: Path, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """tensors: float32, on any device. Raises OSError where the disk refuses; the file before is then still whole."""
    header: dict[str, Any] = {"__metadata__": {"record": json.dumps(record)}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + 4 * tensor.numel()]}
        at += 4 * tensor.numel()
    text = json.dumps(header).encode()
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What save wrote. Raises CheckpointError where the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            data = bytearray(os.fstat(file.fileno()).st_size - 8 - length)
            file.readinto(data)
        record = json.loads(header.pop("__metadata__")["record"])
        tensors = {name: _tensor(entry, data) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(path, f"is no checkpoint of a training run: {error}") from None
    return tensors, record


def _tensor(entry: dict[str, Any], data: bytearray) -> torch.Tensor:
    begin, end = entry["data_offsets"]
    count = math.prod(entry["shape"])
    if entry["dtype"] != "F32" or not 0 <= begin <= end <= len(data) or end - begin != 4 * count:
        raise ValueError("a tensor does not fit the file; is it truncated?")
    return torch.frombuffer(data, dtype=torch.float32, count=count, offset=begin).view(entry["shape"]).clone()
