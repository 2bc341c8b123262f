"""The only seam between the network and the machine: a module with these functions is a backend.

embed, linear, rms_norm, rope, attention, route, feed_forward, moe: see reference.py for what each means.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch

from libremoe.errors import LibremoeError
from libremoe.ops import reference


def choose(device: torch.device | str = "cpu") -> ModuleType:
    """The backend for a device. LIBREMOE_OPS=reference forces plain torch; =cpu insists on the compiled kernels.

    Raises LibremoeError where LIBREMOE_OPS names no backend, or one that is not to be had here.
    """
    wanted = os.environ.get("LIBREMOE_OPS", "")
    if wanted not in ("", "reference", "cpu"):
        raise LibremoeError(f"LIBREMOE_OPS={wanted} is no backend; there are: reference, cpu")
    if wanted == "reference" or torch.device(device).type != "cpu":
        return reference
    try:
        import libremoe.ops.cpu as cpu
    except ImportError as error:
        if wanted == "cpu":
            raise LibremoeError(f"LIBREMOE_OPS=cpu, but there are no compiled kernels ({error}): run make") from error
        return reference
    return cpu
