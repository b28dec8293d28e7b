"""The arithmetic of a merge, one tensor at a time. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from core.errors import UserError
from core.models.finite import is_finite
from core.weights.adapter import LoraWeights
from core.weights.merge_plan import Op
from core.weights.tensors import TensorRef

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


#: Elements of a weight that are merged at a time: their float32 sum stays in the processor's cache.
_BLOCK = 1 << 18


class Workspace:
    """Buffers that are used again for every tensor.

    Fresh memory costs a page fault every 4 kB, more than the arithmetic on it. Outputs go round a
    ring of ``in_flight`` + 1, because the writing thread may still hold the ones before.
    """

    def __init__(self, in_flight: int = 2) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._ring = in_flight + 1
        self._turn = 0

    def take(self, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of undefined content, valid until the next ``take`` of the same role."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(role)
        if buffer is None or buffer.numel() < size:
            self._buffers[role] = buffer = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype).view(shape)

    def output(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that stays valid while ``in_flight`` later ones are made."""
        self._turn = (self._turn + 1) % self._ring
        return self.take(f"output {self._turn}", shape, dtype)

    def load(self, role: str, ref: TensorRef) -> torch.Tensor:
        """The tensor in its own dtype, in the buffer of ``role``."""
        tensor = self.take(role, ref.shape, TORCH_DTYPES[ref.dtype])
        if tensor.numel():
            ref.read_into(raw(tensor))
        return tensor


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def nf4_round_trip(weight: torch.Tensor) -> torch.Tensor:
    """What QLoRA's frozen base computed with: NF4, block 64, double quantization (2305.14314)."""
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return bnb.dequantize_4bit(packed, state).to(weight.dtype).reshape(weight.shape)


def merged(op: Op, space: Workspace, *, nf4: Sequence[Any] = ()) -> torch.Tensor:
    """The tensor that ``op`` writes, contiguous, in an output buffer of ``space``.

    W + delta is computed in float32 and rounded once to the written dtype.

    Args:
        nf4: start from the NF4 round trip of the base weight, made for each of these selections
            of its rows by itself, as they were quantized.

    Raises:
        UserError: the result does not fit the dtype, or the inputs hold values that are not finite.
    """
    if _by_rows(op) and not nf4:
        return _merged_by_rows(op, space)
    weight = space.load("base", op.base)
    for rows in nf4:
        weight[rows] = nf4_round_trip(weight[rows])
    out = space.output(op.base.shape, TORCH_DTYPES[op.dtype])
    if op.lora is None:
        out.copy_(weight)
    elif op.lora.magnitude is not None:
        out.copy_(_dora(weight, _delta(op, space), op.lora, op.transpose, space))
    elif weight.dtype == torch.float64:
        out.copy_(weight + _delta(op, space))
    else:
        out.copy_(_delta(op, space).add_(weight))
    if op.kind != "copy" and not is_finite(out):
        raise _not_finite(op)
    return out


def _not_finite(op: Op) -> UserError:
    return UserError(
        f"{op.name} would hold values that are not finite",
        why=f"adapter or base is broken, or {op.dtype} cannot hold the values",
        fix="use an earlier checkpoint, or write float32",
    )


def _by_rows(op: Op) -> bool:
    """Whether rows can be merged one by one: DoRA needs the whole, so does a transposed layout."""
    return (
        op.lora is not None
        and op.lora.magnitude is None
        and not op.transpose
        and op.base.dtype != "F64"
    )


def _merged_by_rows(op: Op, space: Workspace) -> torch.Tensor:
    """``merged`` for plain LoRA, a block of rows after the other.

    A whole weight is read and written five times on its way (base, product, sum, rounding, check),
    and memory, not arithmetic, is what that costs. A block makes the way within the cache. Threads
    take every other block, each with one core: they need not wait for each other at every
    operation, as the threads of one operation do, while the writer takes cores from them.
    """
    a, b, scaling = _factors(op, space)
    out = space.output(op.base.shape, TORCH_DTYPES[op.dtype])
    rows, width = op.base.shape
    step = max(1, _BLOCK // width)

    def work(worker: int, starts: Sequence[int]) -> None:
        for start in starts:
            part = b[start : start + step]
            shape = (len(part), width)
            weight = space.take(f"rows {worker}", shape, TORCH_DTYPES[op.base.dtype])
            op.base.read_into(raw(weight), start * width)
            delta = torch.mm(part, a, out=space.take(f"delta {worker}", shape, torch.float32))
            if scaling != 1.0:
                delta.mul_(scaling)
            if not is_finite(out[start : start + step].copy_(delta.add_(weight))):
                raise _not_finite(op)

    blocks, workers = range(0, rows, step), torch.get_num_threads()
    if len(blocks) == 1 or workers == 1:
        work(0, blocks)
        return out
    # OpenMP keeps the number of threads per thread.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        shares = [pool.submit(work, i, blocks[i::workers]) for i in range(workers)]
    for share in shares:
        share.result()
    return out


def _factors(op: Op, space: Workspace) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A and B in float32, and the scaling that is left to apply."""
    assert op.lora is not None
    # PEFT keeps 16-bit adapters in float32 while they are attached (autocast_adapter_dtype), so
    # float32 here is what merge_and_unload computes, bit for bit.
    a, b = space.load("a", op.lora.a).float(), space.load("b", op.lora.b).float()
    scaling = op.lora.scaling
    if math.frexp(scaling)[0] == 0.5:
        # A power of two can go into the small factor: the same bits for one pass less.
        b, scaling = b * scaling, 1.0
    return a, b, scaling


def _delta(op: Op, space: Workspace) -> torch.Tensor:
    """scaling * B @ A in float32, in the layout of the weight."""
    assert op.lora is not None
    a, b, scaling = _factors(op, space)
    delta = torch.mm(b, a, out=space.take("delta", op.lora.delta_shape, torch.float32))
    if op.transpose:
        delta = space.take("turned", op.base.shape, torch.float32).copy_(delta.T)
    return delta if scaling == 1.0 else delta.mul_(scaling)


def _dora(
    weight: torch.Tensor,
    delta: torch.Tensor,
    lora: LoraWeights,
    transpose: bool,
    space: Workspace,
) -> torch.Tensor:
    """magnitude * (W + delta) / norm of its output rows (DoRA, arXiv 2402.09353)."""
    assert lora.magnitude is not None
    magnitude = space.load("magnitude", lora.magnitude).float()
    total = weight + delta
    norm = torch.linalg.norm(total.T if transpose else total, dim=1)
    factor = (magnitude / norm).view(-1, 1)
    return (factor.T if transpose else factor) * total
