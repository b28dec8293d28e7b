"""The NF4 base, dequantized once and kept: the numbers of bitsandbytes' forward, without its work.

``bitsandbytes.autograd.MatMul4Bit`` turns the same blocks into the same numbers in every forward
and again in every backward. On two CPU cores that is a third of a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_quantized(linear: Any) -> bool:
    """Whether this linear layer holds bitsandbytes' 4-bit blocks."""
    return getattr(getattr(linear, "weight", None), "quant_state", None) is not None


def dense(linear: Any, dtype: torch.dtype) -> Tensor:
    """The weight (out_features, in_features) that the layer multiplies with.

    As ``MatMul4Bit`` computes it: dequantized to the type that was quantized, then cast to the
    type of the input. A layer that is not quantized gives its own weight in ``dtype``.
    """
    weight = linear.weight
    if not is_quantized(linear):
        return weight.detach().to(dtype)
    import bitsandbytes.functional as bnb

    state = weight.quant_state
    full: Tensor = bnb.dequantize_4bit(weight.data.view(-1, 1), state)
    return full.to(dtype).reshape(state.shape)


class HeldLinear(nn.Linear):
    """A held layer takes and gives the type of its input, as ``Linear4bit`` does.

    The step computes in one type; sample replies, and steps of families that XTuner's own step
    trains, come with float32 from norms that were raised for training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in_features) -> (..., out_features), in the type of ``x``."""
        kind = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return nn.functional.linear(x.to(kind), self.weight, bias).to(x.dtype)


def hold(model: nn.Module, dtype: torch.dtype) -> int:
    """Put a ``HeldLinear`` in the place of every 4-bit one; returns how many.

    The blocks are freed. LoRA layers around them, and with them the checkpoints, stay as they are.
    """
    from bitsandbytes.nn import modules

    quantized = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, modules.Linear4bit)
    ]
    for parent, name, child in quantized:
        plain = HeldLinear(child.in_features, child.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dense(child, dtype), requires_grad=False)
        plain.bias = child.bias
        setattr(parent, name, plain.train(child.training))
    return len(quantized)


def take_any_type(model: nn.Module) -> None:
    """Let frozen 16-bit linear layers, of a base without NF4, take what raised norms give them."""
    for child in model.modules():
        if (
            type(child) is nn.Linear
            and not child.weight.requires_grad
            and child.weight.dtype in (torch.bfloat16, torch.float16)
        ):
            child.__class__ = HeldLinear


def leave_file(model: nn.Module) -> None:
    """Copy the frozen weights on a CPU out of the file that they are mapped from.

    One that was stored in the type it is used in stays a view of the file, and with it all the
    pages that were read while the base was quantized: 0.4 GB of the 135M model.
    """
    for parameter in model.parameters():
        plain = parameter.is_floating_point() and not parameter.requires_grad
        if plain and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
