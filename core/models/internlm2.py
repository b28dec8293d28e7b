"""InternLM2 and 2.5, read from the published folder without running the code inside it.

InternLM2 computes what Llama computes; its file only names the weights differently and keeps the
projections of queries, keys and values in one matrix, grouped by key head. ``register`` teaches
transformers the architecture: Llama's classes, the published config, and the way from the
published weights to Llama's and back, which transformers takes when it loads and saves. So a
published folder goes in as it is, and what is saved has the published names again.

The published modelling code breaks in ``generate`` with every current transformers; see also
``core.weights.internlm2`` for adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from core.models.families import INTERNLM2_NAMES, fused_rows


class InternLM2Config(LlamaConfig):
    """The published config.json. ``bias``: of the four attention projections."""

    model_type = "internlm2"
    vocab_size: int = 103168
    bias: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_bias = self.bias
        # "eager" in the published file is about the published code.
        kwargs.pop("attn_implementation", None)
        super().__post_init__(**kwargs)


class InternLM2ForCausalLM(LlamaForCausalLM, GenerationMixin):
    """Llama under InternLM2's name, so that config and weights find each other.

    transformers looks for ``GenerationMixin`` among the direct parents, and warns without it.
    """

    config_class = InternLM2Config


class InternLM2Tokenizer(LlamaTokenizer):
    """SentencePiece BPE with byte fallback, without the space that Llama puts before a text."""

    def __init__(self, vocab: Any = None, merges: Any = None, **kwargs: Any) -> None:
        if isinstance(vocab, Mapping):
            # tokenizer.model calls the chat tokens [UNUSED_TOKEN_141] to 146; their names are in
            # tokenizer_config.json.
            named = {int(i): str(t) for i, t in kwargs.get("added_tokens_decoder", {}).items()}
            vocab = {named.get(index, token): index for token, index in vocab.items()}
        kwargs["add_prefix_space"] = False
        super().__init__(vocab, merges, **kwargs)


class _Split(ConversionOps):
    """``wqkv`` to the projections of queries, keys and values."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Sequence[str],
        target_patterns: Sequence[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        (found,) = input_dict.values()
        fused = found[0] if isinstance(found, list) else found
        parts = _rows(kwargs["config"])
        return {name: fused[rows] for name, rows in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Join()


class _Join(ConversionOps):
    """The three projections to ``wqkv``."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Sequence[str],
        target_patterns: Sequence[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        found = [input_dict[name] for name in source_patterns]
        parts = [part[0] if isinstance(part, list) else part for part in found]
        fused = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
        for rows, part in zip(_rows(kwargs["config"]), parts, strict=True):
            fused[rows] = part
        return {target_patterns[0]: fused}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Split()


def _rows(config: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(r)) for r in fused_rows(config.to_dict())]


@lru_cache(maxsize=1)
def register() -> None:
    """Make transformers' Auto classes load InternLM2 folders in this process."""
    AutoConfig.register("internlm2", InternLM2Config)
    AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM)
    AutoTokenizer.register(InternLM2Config, tokenizer_class=InternLM2Tokenizer)
    renamed = [WeightRenaming(theirs, ours) for theirs, ours in INTERNLM2_NAMES.items()]
    split = WeightConverter(
        "attention.wqkv",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        [_Split()],
    )
    register_checkpoint_conversion_mapping("internlm2", [*renamed, split])
