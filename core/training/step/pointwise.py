"""Norms, rotation, gate and softmax with their gradients: everything that is no matrix product.

Written once in PyTorch, computed in float32 and rounded once. ``EAGER`` runs them as they are;
``compiled()`` has torch.compile make one kernel of each, the number of tokens left open.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised rows and the reciprocal of their root mean square, float32 (tokens, ..., 1)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight, scale


def norm_again(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """The rows that ``rms_norm`` gave, from what is kept of it."""
    return (x.float() * scale).to(x.dtype) * weight


def norm_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, residual: Tensor, weight: Tensor
) -> Tensor:
    """Gradient of ``rms_norm``'s input, added to that of the residual beside it."""
    wide, unit = (grad * weight).float(), x.float() * scale
    inner = wide - unit * (wide * unit).mean(-1, keepdim=True)
    return (residual.float() + inner * scale).to(x.dtype)


def rotate_(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary embedding of (tokens, heads, head_dim) in place; with -sin its gradient."""
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    heads.copy_(turned.to(heads.dtype))


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of (tokens, 2 * width)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate.float()) * up.float()).to(gate_up.dtype)


def swiglu_gradient(gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of ``gate_up``, ``swiglu(gate_up)`` again)."""
    gate, up = (half.float() for half in gate_up.chunk(2, dim=-1))
    sigmoid, wide = torch.sigmoid(gate), grad.float()
    silu = gate * sigmoid
    d_gate = wide * up * (sigmoid + silu * (1 - sigmoid))
    both = torch.cat([d_gate, wide * silu], dim=-1).to(gate_up.dtype)
    return both, (silu * up).to(gate_up.dtype)


def softmax_loss(logits: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropies times ``share``, and its gradient in the type of the logits."""
    wide = logits.float()
    total = wide.logsumexp(1, keepdim=True)
    loss = (total - wide.gather(1, targets[:, None])).sum() * share
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return loss, (((wide - total).exp() - hit.float()) * share).to(logits.dtype)


def _softmax_loss_in_place(logits: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``softmax_loss`` without a second matrix of that size; overwrites float32 logits."""
    wide = logits.float()
    total = wide.logsumexp(1, keepdim=True)
    loss = (total - wide.gather(1, targets[:, None])).sum() * share
    grad = wide.sub_(total).exp_()
    grad.scatter_add_(1, targets[:, None], grad.new_full((1, 1), -1.0).expand(len(targets), 1))
    return loss, grad.mul_(share).to(logits.dtype)


@dataclass(frozen=True)
class Pointwise:
    """The functions of this module, as they are to be run."""

    rms_norm: Callable[..., tuple[Tensor, Tensor]] = rms_norm
    norm_again: Callable[..., Tensor] = norm_again
    norm_gradient: Callable[..., Tensor] = norm_gradient
    rotate_: Callable[..., None] = rotate_
    swiglu: Callable[..., Tensor] = swiglu
    swiglu_gradient: Callable[..., tuple[Tensor, Tensor]] = swiglu_gradient
    softmax_loss: Callable[..., tuple[Tensor, Tensor]] = _softmax_loss_in_place


EAGER = Pointwise()


def compiled() -> Pointwise:
    """One kernel a function, compiled at its first call or read from the cache."""
    return Pointwise(
        rms_norm=_compile(rms_norm, 1),
        norm_again=_compile(norm_again, 2),
        norm_gradient=_compile(norm_gradient, 4),
        rotate_=_compile(rotate_, 3),
        swiglu=_compile(swiglu, 1),
        swiglu_gradient=_compile(swiglu_gradient, 2),
        softmax_loss=_compile(softmax_loss, 2),
    )


def _compile(function: Callable[..., Any], per_token: int) -> Callable[..., Any]:
    """Compile; the first dimension of the first ``per_token`` arguments is left open."""
    fast = torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        for tensor in args[:per_token]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return fast(*args)

    return run
