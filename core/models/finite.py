"""Whether all numbers of a tensor, or of a file of weights, are numbers."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; types without such values, or of 8 bits, always are."""
    import torch

    wide = tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if not wide or not tensor.numel() or tensor.is_meta:
        return True
    # The same numbers over and over, as a pickle can say them: 10^11 of them out of one.
    tensor = tensor[tuple(slice(1) if step == 0 else slice(None) for step in tensor.stride())]
    low, high = tensor.aminmax()  # NaN comes out of it as NaN; ten times faster than isfinite
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def broken(file: Path) -> str:
    """The first tensor of a whole safetensors or ``.bin`` file that is not finite ('' if none).

    Raises:
        UserError: a ``.bin`` holds something else than tensors by name.
    """
    return next((name for name, tensor in _tensors(file) if not is_finite(tensor)), "")


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """One after the other, from the page cache."""
    import torch
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no dictionary)
                yield name, opened.get_tensor(name)
        return
    mapped = zipfile.is_zipfile(file)  # torch's older format cannot be
    stored = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(stored, dict):
        raise UserError(
            f"{file} holds a {type(stored).__name__}, no weights",
            fix="download the model or the adapter again",
        )
    yield from ((k, v) for k, v in stored.items() if isinstance(v, torch.Tensor))
