"""``torch.load`` that builds data and runs no code, for every caller in the process.

A ``.pth`` is a pickle, and a pickle may name any function to call. mmengine, XTuner and DeepSpeed
open checkpoints by plain ``torch.load``, the latter two with ``weights_only=False``. Inside
``data_only`` all of them get torch's restricted reader, which knows tensors, containers and the
few types listed here, and stops at any other name. Nobody in this program unpickles otherwise.
"""

from __future__ import annotations

import errno
import importlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.pickled import require_small

#: What mmengine's message hub and optimizers hold, and DeepSpeed's states with their settings.
#: Read in mmengine 0.10.7 and DeepSpeed 0.19.4. Each is a plain record; calling it with any
#: argument does nothing but make one. A type that is not installed cannot occur.
_TYPES = (
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("mmengine.config.config", "ConfigDict"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)
_STATISTICS = ("min", "max", "current", "mean")


def _statistic(owner: Any, name: Any) -> Any:
    """Stands in for ``getattr``: a HistoryBuffer pickles its four statistics as attributes."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"it asks for the attribute {name!r:.60} of {owner!r:.60}")
    return getattr(HistoryBuffer, name)


def _empty(*_: Any) -> Any:
    """Stands in for numpy's ``_reconstruct``, which makes an array of any size that it is told.

    Every pickled array begins empty; its size comes with its bytes.
    """
    import numpy as np

    return np.empty(0, "b")


def _allowed() -> list[Any]:
    import numpy as np

    found: list[Any] = [
        (_statistic, "builtins.getattr"),
        (_empty, "numpy._core.multiarray._reconstruct"),
    ]
    found += [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    for module, name in _TYPES:
        try:
            found.append((getattr(importlib.import_module(module), name), f"{module}.{name}"))
        except ImportError:
            continue
    return found


@contextmanager
def data_only() -> Iterator[None]:
    """Let every ``torch.load`` of this process read data only, whatever its caller asks for.

    Raises:
        UserError: out of ``torch.load``, for a file that names anything else; nothing of it ran.
    """
    import torch

    original = torch.load
    allowed = _allowed()

    def load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, str | os.PathLike):
            require_small(Path(f))
        kwargs |= {"weights_only": True}
        kwargs.pop("pickle_module", None)
        try:
            with torch.serialization.safe_globals(allowed):
                return original(f, *args[:1], **kwargs)
        except Exception as error:  # a damaged pickle makes the reader raise nearly anything
            if not _of_the_file(error):
                raise
            raise UserError(
                f"{f if isinstance(f, str) else getattr(f, 'name', f)} is refused",
                why="a checkpoint is a pickle, which can run code, and this one is damaged or "
                f"holds more than a training run's data: {_reason(error)}",
                fix="use a checkpoint that your own training run wrote",
            ) from error

    torch.load = load
    try:
        yield
    finally:
        torch.load = original


def _of_the_file(error: Exception) -> bool:
    """Whether the file is at fault, not the disk, the device or the memory."""
    if isinstance(error, OSError):  # what the reader says where an archive leads outside itself
        return error.errno == errno.EINVAL
    if isinstance(error, RuntimeError):
        return "PytorchStreamReader" in str(error)
    return not isinstance(error, MemoryError)


def _reason(error: BaseException) -> str:
    """The line of torch's long message that names what was found."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
    return (lines[0] if lines else str(error).strip())[:300]
