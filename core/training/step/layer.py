"""A Llama-shaped decoder layer and its gradients, written out.

Three autograd functions with the attention between the first two. Each keeps the least that its
gradient needs and computes the rest again (norms and the gate are cheap). The first also hands its
input through, so that the gradient of the residual is added where the norm's is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from core.training.step.linear import Group
from core.training.step.packing import Packed
from core.training.step.pointwise import Pointwise


@dataclass(frozen=True)
class Layer:
    """Weights of one layer. ``head_norm`` is (heads + kv_heads, head_dim), or None."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    norm_in: Tensor
    norm_mlp: Tensor
    head_norm: Tensor | None
    qkv: Group
    out: Group
    gate_up: Group
    down: Group
    run: Pointwise

    @property
    def groups(self) -> list[Group]:
        """All linear layers."""
        return [self.qkv, self.out, self.gate_up, self.down]


@dataclass(frozen=True)
class Rotary:
    """cos and sin of every token's position, float32 (tokens, 1, head_dim / 2)."""

    cos: Tensor
    sin: Tensor


def forward(layer: Layer, x: Tensor, packed: Packed, rotary: Rotary) -> Tensor:
    """Hidden states after the layer, (tokens, hidden)."""
    q, k, v, residual = _AttentionInput.apply(x, rotary, layer, *layer.qkv.parameters)
    mixed = attention(q, k, v, packed)
    x = _Output.apply(mixed, residual, layer, *layer.out.parameters)
    trained = [*layer.gate_up.parameters, *layer.down.parameters]
    done: Tensor = _Mlp.apply(x, layer, *trained)
    return done


def attention(q: Tensor, k: Tensor, v: Tensor, packed: Packed) -> Tensor:
    """Causal attention of each row to itself; (tokens, heads, head_dim) to (tokens, hidden).

    Flash attention takes packed rows as they are. Elsewhere rows are padded for the attention
    alone: what stands behind a row's end is never looked at by the row, under a causal mask.
    """
    if has_flash(q):
        bounds, longest = packed.bounds, packed.longest
        mixed = torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, longest, longest, 0.0, True, False
        )[0]
        return mixed.flatten(1)
    groups = q.shape[1] // k.shape[1]
    padded = [
        part.new_zeros(packed.rows * packed.longest, *part.shape[1:])
        .index_copy(0, packed.slots, part)
        .unflatten(0, (packed.rows, packed.longest))
        .transpose(1, 2)
        for part in (q, k, v)
    ]
    mixed = F.scaled_dot_product_attention(
        padded[0],
        padded[1].repeat_interleave(groups, dim=1),
        padded[2].repeat_interleave(groups, dim=1),
        is_causal=True,
    )
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, packed.slots).flatten(1)


def has_flash(q: Tensor) -> bool:
    """Whether PyTorch's flash attention takes rows of unlike length here (Ampere and later)."""
    return (
        q.is_cuda
        and q.dtype != torch.float32
        and q.shape[-1] <= 256
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


class _AttentionInput(Function):
    """Norm, q/k/v, the norm of heads (Qwen3) and rotation; hands the residual through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotary: Rotary, layer: Layer, *trained: Tensor) -> Any:
        run, turned = layer.run, layer.heads + layer.kv_heads
        normed, scale = run.rms_norm(x, layer.norm_in, layer.eps)
        out, low, mask = layer.qkv.forward(normed)
        heads = out.view(x.shape[0], turned + layer.kv_heads, layer.head_dim)
        before, head_scale = x.new_empty(0), x.new_empty(0)
        if layer.head_norm is not None:
            before = heads[:, :turned].clone()
            normed_heads, head_scale = run.rms_norm(before, layer.head_norm, layer.eps)
            heads[:, :turned] = normed_heads
        run.rotate_(heads[:, :turned], rotary.cos, rotary.sin)
        ctx.layer, ctx.rotary = layer, rotary
        ctx.save_for_backward(x, scale, low, mask, before, head_scale)
        q, k, v = heads.split([layer.heads, layer.kv_heads, layer.kv_heads], dim=1)
        return q, k, v, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor, d_residual: Tensor) -> Any:
        layer, rotary, run = ctx.layer, ctx.rotary, ctx.layer.run
        x, scale, low, mask, before, head_scale = ctx.saved_tensors
        turned = layer.heads + layer.kv_heads
        grad = torch.cat([d_q, d_k, d_v], dim=1)
        run.rotate_(grad[:, :turned], rotary.cos, -rotary.sin)
        if layer.head_norm is not None:
            inner = grad[:, :turned].contiguous()
            none = torch.zeros_like(inner)
            grad[:, :turned] = run.norm_gradient(inner, before, head_scale, none, layer.head_norm)
        normed = run.norm_again(x, scale, layer.norm_in)
        flat = grad.flatten(1)
        d_low = layer.qkv.low_gradient(flat)
        gradients = layer.qkv.weight_gradients(flat, normed, low, d_low, mask)
        d_x = None
        if ctx.needs_input_grad[0]:  # nothing below the first layer is trained
            d_normed = layer.qkv.input_gradient(flat, d_low, mask)
            d_x = run.norm_gradient(d_normed, x, scale, d_residual, layer.norm_in)
        return d_x, None, None, *gradients


class _Output(Function):
    """The output projection, added to the residual."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, residual: Tensor, layer: Layer, *trained: Tensor) -> Any:
        out, low, mask = layer.out.forward(mixed, residual)
        ctx.layer = layer
        ctx.save_for_backward(mixed, low, mask)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mixed, low, mask = ctx.saved_tensors
        group = ctx.layer.out
        d_low = group.low_gradient(grad)
        gradients = group.weight_gradients(grad, mixed, low, d_low, mask)
        return group.input_gradient(grad, d_low, mask), grad, None, *gradients


class _Mlp(Function):
    """Norm, gate and up, SwiGLU, down, added to the residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *trained: Tensor) -> Any:
        run = layer.run
        normed, scale = run.rms_norm(x, layer.norm_mlp, layer.eps)
        gate_up, low, mask = layer.gate_up.forward(normed)
        out, low_down, mask_down = layer.down.forward(run.swiglu(gate_up), x)
        ctx.layer = layer
        ctx.save_for_backward(x, scale, gate_up, low, mask, low_down, mask_down)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer, run = ctx.layer, ctx.layer.run
        x, scale, gate_up, low, mask, low_down, mask_down = ctx.saved_tensors
        # The input of the down projection is made again beside the gradient of the gate.
        d_low_down = layer.down.low_gradient(grad)
        d_act = layer.down.input_gradient(grad, d_low_down, mask_down)
        d_gate_up, act = run.swiglu_gradient(gate_up, d_act)
        d_down = layer.down.weight_gradients(grad, act, low_down, d_low_down, mask_down)
        normed = run.norm_again(x, scale, layer.norm_mlp)
        d_low = layer.gate_up.low_gradient(d_gate_up)
        d_both = layer.gate_up.weight_gradients(d_gate_up, normed, low, d_low, mask)
        d_normed = layer.gate_up.input_gradient(d_gate_up, d_low, mask)
        d_x = run.norm_gradient(d_normed, x, scale, grad, layer.norm_mlp)
        return d_x, None, *d_both, *d_down
