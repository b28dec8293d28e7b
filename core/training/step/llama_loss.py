"""XTuner's ``compute_loss`` for Llama-shaped models, computed by the layers of this package."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from core.inference.fused import inner_model, linear_groups, unlike_llama
from core.training.step.layer import Layer, Rotary, forward
from core.training.step.linear import Group, refresh, unlike
from core.training.step.loss import LinearCrossEntropy
from core.training.step.packing import Packed, pack
from core.training.step.pointwise import EAGER, Pointwise

#: On a GPU a micro-batch is filled up to a multiple of this.
_GPU_TOKENS = 128


def unsupported(model: Any) -> str:
    """Why ``FusedStep`` cannot train this PEFT model ('' if it can)."""
    inner = inner_model(model)
    config = inner.config
    if reason := unlike_llama(inner):
        return reason
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings:
        return "sliding window"
    head = inner.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None:
        return f"output head {type(head).__name__}"
    for layer in inner.model.layers:
        if reason := next(filter(None, map(unlike, linear_groups(layer))), ""):
            return reason
    inside = sum(p.requires_grad for p in inner.model.layers.parameters())
    if inside != sum(p.requires_grad for p in model.parameters()):
        return "trained weights outside the layers"
    return ""


class FusedStep:
    """``compute_loss`` of ``xtuner.model.SupervisedFinetune``: micro-batch in, {"loss"} out.

    Not a module: the model keeps its modules, so checkpoints and sample replies do not change.
    Base weights, norms, embedding and head are kept in ``dtype`` from here on; they were loaded
    in it before XTuner cast them to float32.

    Args:
        model: PEFT model on its device.
        recompute_above: micro-batches of more tokens keep one activation a layer and compute the
            others again in the backward pass; None: no micro-batch does.
        keep_padding: compute the padding too, as XTuner does.

    Raises:
        ValueError: see ``unsupported``.
    """

    def __init__(
        self,
        model: Any,
        dtype: torch.dtype,
        *,
        run: Pointwise = EAGER,
        recompute_above: int | None = None,
        keep_padding: bool = False,
    ) -> None:
        if reason := unsupported(model):
            raise ValueError(reason)
        inner = inner_model(model)
        self.dtype, self.run = dtype, run
        self.recompute_above, self.keep_padding = recompute_above, keep_padding
        self.model = model
        self.rotary = inner.model.rotary_emb
        self.eps = float(inner.config.rms_norm_eps)
        for part in (inner.get_input_embeddings(), inner.get_output_embeddings(), inner.model.norm):
            part.to(dtype)
        self.embedding = inner.get_input_embeddings().weight
        self.head = inner.get_output_embeddings().weight
        self.norm = inner.model.norm.weight
        self.layers = [_layer(layer, inner.config, dtype, run) for layer in inner.model.layers]
        self.groups = list(itertools.chain(*(layer.groups for layer in self.layers)))

    def __call__(self, data: dict[str, Any], data_samples: Any = None) -> dict[str, Tensor]:
        """Mean loss of the micro-batch's supervised tokens."""
        multiple = _GPU_TOKENS if data["input_ids"].is_cuda else 1
        packed = pack(data, keep_padding=self.keep_padding, multiple=multiple)
        with torch.autocast(packed.ids.device.type, enabled=False):
            return {"loss": self.loss(packed)}

    def loss(self, packed: Packed) -> Tensor:
        """Mean cross-entropy of the supervised tokens, float32."""
        refresh(self.groups)
        x = torch.nn.functional.embedding(packed.ids, self.embedding.detach())
        rotary = self._tables(packed)
        tokens = packed.ids.numel()
        recompute = self.recompute_above is not None and tokens > self.recompute_above
        for layer in self.layers:
            if recompute:
                x = checkpoint(forward, layer, x, packed, rotary, use_reentrant=False)
            else:
                x = forward(layer, x, packed, rotary)
        x = x.index_select(0, packed.supervised)
        # The last norm is PyTorch's: it is differentiated once, for the supervised tokens alone.
        wide = torch.nn.functional.rms_norm(x.float(), self.norm.shape, None, self.eps)
        hidden = wide.to(self.dtype) * self.norm.detach()
        loss: Tensor = LinearCrossEntropy.apply(
            hidden, self.head.detach(), packed.targets, self.run
        )
        return loss

    def _tables(self, packed: Packed) -> Rotary:
        like = torch.empty(0, dtype=torch.float32, device=packed.ids.device)
        cos, sin = self.rotary(like, packed.positions[None])
        half = cos.shape[-1] // 2
        return Rotary(
            cos[0, :, None, :half].float().contiguous(), sin[0, :, None, :half].float().contiguous()
        )


def _layer(layer: Any, config: Any, dtype: torch.dtype, run: Pointwise) -> Layer:
    attention = layer.self_attn
    heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
    _norms_to(layer, dtype)
    qkv, out, gate_up, down = (Group(linears, dtype) for linears in linear_groups(layer))
    head_norm = None
    if getattr(attention, "q_norm", None) is not None:
        head_norm = torch.cat(
            [
                attention.q_norm.weight.detach().expand(heads, -1),
                attention.k_norm.weight.detach().expand(kv_heads, -1),
            ]
        )
    return Layer(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        eps=float(config.rms_norm_eps),
        norm_in=layer.input_layernorm.weight.detach(),
        norm_mlp=layer.post_attention_layernorm.weight.detach(),
        head_norm=head_norm,
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        run=run,
    )


def _norms_to(layer: Any, dtype: torch.dtype) -> None:
    """Norms back to the type that they were loaded in; LoRA stays in float32."""
    for name, parameter in layer.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = parameter.data.to(dtype)
