"""The arithmetic of a merge, one tensor at a time. Imports torch."""

from __future__ import annotations

import torch

from core.errors import UserError
from core.weights.adapter import LoraWeights
from core.weights.plan import Op
from core.weights.tensors import TensorRef

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def load(ref: TensorRef) -> torch.Tensor:
    """The tensor in its own dtype."""
    data = ref.read()
    if not data:
        return torch.empty(ref.shape, dtype=TORCH_DTYPES[ref.dtype])
    return torch.frombuffer(data, dtype=TORCH_DTYPES[ref.dtype]).reshape(ref.shape)


def raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes, row-major, without a copy if it is contiguous."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def nf4_round_trip(weight: torch.Tensor) -> torch.Tensor:
    """What QLoRA's frozen base computed with: NF4, block 64, double quantization (2305.14314)."""
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return bnb.dequantize_4bit(packed, state).to(weight.dtype).reshape(weight.shape)


def _delta(lora: LoraWeights, transpose: bool) -> torch.Tensor:
    """scaling * B @ A in float32, turned to the weight's layout; the order is PEFT's own."""
    # PEFT keeps 16-bit adapters in float32 while they are attached (autocast_adapter_dtype), so
    # float32 here is what merge_and_unload computes, bit for bit.
    product = load(lora.b).float() @ load(lora.a).float()
    return (product.T if transpose else product).mul_(lora.scaling)


def merged(op: Op, *, nf4: bool = False) -> torch.Tensor:
    """The tensor that ``op`` writes.

    W + delta is computed in float32 and rounded once to the written dtype.

    Args:
        nf4: start from the NF4 round trip of the base weight.

    Raises:
        UserError: the result does not fit the dtype, or the inputs hold values that are not finite.
    """
    weight = load(op.base)
    if nf4:
        weight = nf4_round_trip(weight)
    if op.lora is not None:
        delta = _delta(op.lora, op.transpose)
        if op.lora.magnitude is not None:
            weight = _dora(weight, delta, load(op.lora.magnitude).float(), op.transpose)
        else:
            weight = delta.add_(weight)
    out = weight.to(TORCH_DTYPES[op.dtype])
    if op.kind != "copy" and not torch.isfinite(out).all():
        raise UserError(
            f"{op.name} would hold values that are not finite",
            why=f"adapter or base is broken, or {op.dtype} cannot hold the values",
            fix="use an earlier checkpoint, or write float32",
        )
    return out


def _dora(
    weight: torch.Tensor, delta: torch.Tensor, magnitude: torch.Tensor, transpose: bool
) -> torch.Tensor:
    """magnitude * (W + delta) / norm of its output rows (DoRA, arXiv 2402.09353)."""
    total = weight + delta
    norm = torch.linalg.norm(total.T if transpose else total, dim=1)
    factor = (magnitude / norm).view(-1, 1)
    return (factor.T if transpose else factor) * total
