"""The weights of a Llama-shaped model as ``LeanLlama`` multiplies by them, without a second copy.

Layers that read the same input become one product, and the parameters of the transformers model
become views of it. LoRA weights stay apart, by name, and are added to the rows that want them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.models.families import LLAMA_SHAPED

#: Rotary tables of these kinds depend on the position only, not on the length of the prompt.
#: "dynamic" is one of them up to the trained length. No conversation is longer; a training row may
#: be, and then the whole micro-batch is stretched for its longest row, as transformers does it.
_FIXED_ROPE = {"default", "dynamic", "linear", "llama3", "yarn"}


@dataclass(frozen=True)
class _Lora:
    """Adapters on one fused product: ``out[:, columns] += scale * (x A^T)[:, ranks] B^T``."""

    a: Tensor  # (sum of ranks, in_features), transposed view (in_features, sum of ranks)
    parts: tuple[tuple[slice, slice, Tensor, float], ...]  # ranks, columns, B^T, scale

    def add(self, x: Tensor, out: Tensor) -> None:
        low = x @ self.a
        for ranks, columns, b, scale in self.parts:
            out[:, columns].addmm_(low[:, ranks], b, alpha=scale)


@dataclass
class Linear:
    """A fused product of shape (out_features, in_features) and its adapters by name."""

    weight: Tensor
    bias: Tensor | None
    loras: dict[str, _Lora]

    def __call__(self, x: Tensor, rows: Sequence[tuple[slice, str]]) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        for where, name in rows:
            lora = self.loras.get(name)
            if lora is not None:
                lora.add(x[where], out[where])
        return out


@dataclass
class LayerWeights:
    norm_in: Tensor
    qkv: Linear
    out: Linear
    norm_mlp: Tensor
    gate_up: Linear
    down: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None


def unlike_llama(inner: Any) -> str:
    """Why a causal model is of no Llama-shaped family ('' if it is)."""
    config = inner.config
    if config.model_type not in LLAMA_SHAPED:
        return f"model type {config.model_type}"
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"activation {config.hidden_act}"
    rope = getattr(inner.model.rotary_emb, "rope_type", "default")
    return "" if rope in _FIXED_ROPE else f"rotary embedding {rope}"


def unsupported(model: Any) -> str:
    """Why ``LeanLlama`` cannot compute this model ('' if it can)."""
    inner = inner_model(model)
    config = inner.config
    if reason := unlike_llama(inner):
        return reason
    head = int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    if 2 * inner.model.rotary_emb.inv_freq.shape[0] != head:
        return "a rotary embedding of part of each head"
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        return "sliding window"
    for layer in inner.model.layers:
        for linear in itertools.chain(*linear_groups(layer)):
            if type(_base(linear)) is not torch.nn.Linear:
                return f"quantized weights ({type(_base(linear)).__name__})"
            if any(getattr(linear, "lora_variant", {}).values()):
                return "a LoRA variant (DoRA)"
    return _other_change(inner)


def _other_change(inner: Any) -> str:
    """What an adapter changes beside the products that are fused here ('' if nothing).

    An adapter that replaces a few rows of the embedding gives the same logits as the base for
    most texts, so that ``agrees`` alone would not notice it.
    """
    fused = {id(m) for layer in inner.model.layers for m in itertools.chain(*linear_groups(layer))}
    for name, module in inner.named_modules():
        if type(module).__module__.startswith("peft.") and id(module) not in fused:
            kind = type(module).__name__
            if kind.endswith("Wrapper") or hasattr(module, "get_base_layer"):
                return f"an adapter on {name} ({kind})"
    return ""


def inner_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def own_memory(model: Any) -> None:
    """Fuse what ``LeanLlama`` fuses and copy the other weights out of the mapped file.

    Done right after loading, when the weights are still pages of the file: fusing them later would
    leave those pages resident beside the fused copy, a fifth of the model. The file's pages go
    with the last weight that was mapped from it.
    """
    done: set[int] = set()
    if not unsupported(model):
        for layer in inner_model(model).model.layers:
            for group in linear_groups(layer):
                weights = [_base(linear).weight for linear in group]
                if len(weights) > 1:
                    _joined(weights)
                    done.update(id(w) for w in weights)
    for parameter in model.parameters():
        if id(parameter) not in done:
            parameter.data = parameter.data.clone()


def linear_groups(layer: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """The linear layers that read the same input: q, k and v; output; gate and up; down."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    )


def _base(linear: Any) -> Any:
    return linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear


def layers_of(model: Any) -> list[LayerWeights]:
    """Every layer of a transformers model, fused; its parameters become views."""
    return [_layer(layer) for layer in model.model.layers]


def _layer(layer: Any) -> LayerWeights:
    qkv, out, gate_up, down = (_fuse(group) for group in linear_groups(layer))
    attention = layer.self_attn
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return LayerWeights(
        norm_in=layer.input_layernorm.weight.detach(),
        qkv=qkv,
        out=out,
        norm_mlp=layer.post_attention_layernorm.weight.detach(),
        gate_up=gate_up,
        down=down,
        q_norm=q_norm.weight.detach() if q_norm is not None else None,
        k_norm=k_norm.weight.detach() if k_norm is not None else None,
    )


def _fuse(linears: Sequence[Any]) -> Linear:
    """One weight for several linear layers that read the same input."""
    bases = [_base(linear) for linear in linears]
    weight = _joined([b.weight for b in bases])
    bias = None
    if any(b.bias is not None for b in bases):
        bias = torch.cat(
            [
                b.bias.detach() if b.bias is not None else weight.new_zeros(b.out_features)
                for b in bases
            ]
        )
    return Linear(weight, bias, _loras(linears, weight.dtype))


def _joined(parameters: Sequence[Any]) -> Tensor:
    """Concatenate along the rows and make every parameter a view of the result."""
    first = parameters[0].detach()
    if len(parameters) == 1:
        return first
    rows = sum(p.shape[0] for p in parameters)
    storage = first.untyped_storage()
    fused_before = storage.nbytes() == rows * first.shape[1] * first.element_size() and all(
        p.untyped_storage().data_ptr() == storage.data_ptr() for p in parameters
    )
    if fused_before:
        return first.new_empty(0).set_(storage, 0, (rows, first.shape[1]))
    whole = torch.cat([p.detach() for p in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = whole[start : start + parameter.shape[0]]
        start += parameter.shape[0]
    return whole


def _loras(linears: Sequence[Any], dtype: torch.dtype) -> dict[str, _Lora]:
    names = {name for linear in linears for name in getattr(linear, "lora_A", {})}
    return {name: _lora(linears, name, dtype) for name in names}


def _lora(linears: Sequence[Any], name: str, dtype: torch.dtype) -> _Lora:
    downs: list[Any] = []
    parts: list[tuple[slice, slice, Tensor, float]] = []
    rank = column = 0
    for linear in linears:
        width = int(_base(linear).out_features)
        if name in getattr(linear, "lora_A", {}):
            a, b = linear.lora_A[name].weight, linear.lora_B[name].weight.detach()
            downs.append(a)
            ranks = slice(rank, rank + a.shape[0])
            scale = float(linear.scaling[name])
            parts.append((ranks, slice(column, column + width), b.to(dtype).t(), scale))
            rank += a.shape[0]
        column += width
    if all(a.dtype == dtype for a in downs):
        return _Lora(_joined(downs).t(), tuple(parts))
    return _Lora(torch.cat([a.detach().to(dtype) for a in downs]).t(), tuple(parts))
