"""Linear layers of one input, with their LoRA: one product for the base, one for all the A."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.training.step.held import dense, is_quantized


class Group:
    """q, k and v, or gate and up, or one layer alone: ``out = x W^T + s (x A^T) B^T``.

    The base weights of a held group become views of one matrix, so that nothing is stored twice.
    Trained weights stay where they are: DeepSpeed writes every step into memory of its own.
    ``refresh`` copies them to the matrices, and to the type, that are computed with.

    Args:
        linears: PEFT's LoRA layers, or plain linear layers where LoRA is not applied.
        dtype: type of the inputs and of the products.
    """

    def __init__(self, linears: list[Any], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.bases = [_base(linear) for linear in linears]
        self.columns = _spans([base.out_features for base in self.bases])
        self.held = not any(is_quantized(base) for base in self.bases)
        self.weight = _joined([base.weight for base in self.bases], dtype) if self.held else None
        self.bias = self._biases(self.columns[-1].stop)
        self._adopt_lora(linears)

    def _biases(self, width: int) -> Tensor | None:
        if all(base.bias is None for base in self.bases):
            return None
        like = next(base.bias for base in self.bases if base.bias is not None)
        whole = torch.zeros(width, dtype=self.dtype, device=like.device)
        for columns, base in zip(self.columns, self.bases, strict=True):
            if base.bias is not None:
                whole[columns] = base.bias.detach().to(self.dtype)
        return whole

    def _adopt_lora(self, linears: list[Any]) -> None:
        with_lora = [
            (columns, linear)
            for columns, linear in zip(self.columns, linears, strict=True)
            if hasattr(linear, "lora_A")
        ]
        self.outputs = [columns for columns, _ in with_lora]
        name = with_lora[0][1].active_adapters[0] if with_lora else ""
        self.masters_a = [linear.lora_A[name].weight for _, linear in with_lora]
        self.masters_b = [linear.lora_B[name].weight for _, linear in with_lora]
        self.scale, self.dropout = next((_setting(one) for _, one in with_lora), (1.0, 0.0))
        self.ranks = _spans([a.shape[0] for a in self.masters_a])
        self.b: list[Tensor] = []
        self.copies: list[tuple[Tensor, Tensor]] = []
        if not with_lora:
            return
        self.a = torch.cat([a.detach().to(self.dtype) for a in self.masters_a])
        parts = [self.a[ranks] for ranks in self.ranks]
        self.copies = [*zip(parts, self.masters_a, strict=True)]  # (copy, trained)
        self.b = [b.detach().to(self.dtype) for b in self.masters_b]
        self.copies += [
            (copy, b)
            for copy, b in zip(self.b, self.masters_b, strict=True)
            if copy.data_ptr() != b.data_ptr()
        ]

    @property
    def parameters(self) -> list[Tensor]:
        """Trained weights, in the order of ``weight_gradients``."""
        return [*self.masters_a, *self.masters_b]

    def forward(self, x: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (tokens, sum of widths); the scaled ``x A^T``; the dropout mask (or empty).

        Args:
            into: what the outputs are added to (a residual); it is left as it was.
        """
        if into is not None:
            out = torch.addmm(into, x, self._whole().t())
            if self.bias is not None:
                out += self.bias
        else:
            out = F.linear(x, self._whole(), self.bias)
        if not self.outputs:
            return out, x.new_empty(0), x.new_empty(0)
        dropped, mask = x, x.new_empty(0)
        if self.dropout:
            dropped, mask = torch.native_dropout(x, self.dropout, True)
        low = x.new_empty(x.shape[0], self.a.shape[0])
        torch.addmm(low, dropped, self.a.t(), beta=0, alpha=self.scale, out=low)
        for columns, ranks, b in zip(self.outputs, self.ranks, self.b, strict=True):
            out[:, columns].addmm_(low[:, ranks], b.t())
        return out, low, mask

    def low_gradient(self, grad: Tensor) -> Tensor:
        """Gradient of the unscaled ``x A^T``, (tokens, sum of ranks)."""
        d_low = grad.new_empty(grad.shape[0], self.a.shape[0] if self.outputs else 0)
        for columns, ranks, b in zip(self.outputs, self.ranks, self.b, strict=True):
            part = d_low[:, ranks]
            torch.addmm(part, grad[:, columns], b, beta=0, alpha=self.scale, out=part)
        return d_low

    def input_gradient(self, grad: Tensor, d_low: Tensor, mask: Tensor) -> Tensor:
        """Gradient of the input, (tokens, in_features)."""
        whole = grad @ self._whole()
        if not self.outputs:
            return whole
        if self.dropout:
            return whole.add_((d_low @ self.a).mul_(mask), alpha=1 / (1 - self.dropout))
        return whole.addmm_(d_low, self.a)

    def weight_gradients(
        self, grad: Tensor, x: Tensor, low: Tensor, d_low: Tensor, mask: Tensor
    ) -> list[Tensor]:
        """Gradients of ``parameters``, float32."""
        if not self.outputs:
            return []
        d_a = _wide(d_low.t(), x * mask / (1 - self.dropout) if self.dropout else x)
        d_b = [
            _wide(grad[:, columns].t(), low[:, ranks])
            for columns, ranks in zip(self.outputs, self.ranks, strict=True)
        ]
        return [*(d_a[ranks] for ranks in self.ranks), *d_b]

    def _whole(self) -> Tensor:
        if self.weight is not None:
            return self.weight
        parts = [dense(base, self.dtype) for base in self.bases]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def unlike(linears: list[Any]) -> str:
    """Why these layers cannot be a ``Group`` ('' if they can)."""
    with_lora = [linear for linear in linears if hasattr(linear, "lora_A")]
    if any(len(linear.active_adapters) != 1 for linear in with_lora):
        return "not one adapter"
    if any(getattr(linear, "lora_variant", {}) for linear in with_lora):
        return "a LoRA variant (DoRA)"
    if any(linear.lora_B[linear.active_adapters[0]].bias is not None for linear in with_lora):
        return "a LoRA bias"
    if len({_setting(linear) for linear in with_lora}) > 1:
        return "LoRA scales or dropouts that differ between layers of one input"
    return ""


def _setting(linear: Any) -> tuple[float, float]:
    """(scale, dropout) of the active adapter."""
    name = linear.active_adapters[0]
    dropout = getattr(linear.lora_dropout[name], "p", 0.0)
    return float(linear.scaling[name]), float(dropout)


def refresh(groups: list[Group]) -> None:
    """Copy the trained weights to the matrices that are computed with."""
    pairs = [pair for group in groups for pair in group.copies]
    if pairs:
        copies, masters = zip(*pairs, strict=True)
        with torch.no_grad():
            torch._foreach_copy_(list(copies), [master.detach() for master in masters])


def _spans(widths: list[int]) -> list[slice]:
    """Where each of these lies when they stand one behind the other."""
    ends = list(itertools.accumulate(widths))
    return [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]


def _base(linear: Any) -> Any:
    return linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear


def _joined(weights: list[Any], dtype: torch.dtype) -> Tensor:
    """The weights below one another; each becomes a view of the result."""
    whole = torch.cat([weight.detach().to(dtype) for weight in weights])
    start = 0
    for weight in weights:
        weight.data = whole[start : start + weight.shape[0]]
        start += weight.shape[0]
    return whole


def _wide(one: Tensor, other: Tensor) -> Tensor:
    """A product in float32, accumulated there and not rounded to half precision on the way."""
    if one.dtype == torch.float32:
        return one @ other
    if one.is_cuda:
        return torch.mm(one, other, out_dtype=torch.float32)
    return (one @ other).float()
