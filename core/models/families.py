"""What differs between families of models and is read from a folder's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

#: ``model_type`` of the families that compute what Llama computes: the lean forward and the fused
#: training step know them.
LLAMA_SHAPED = frozenset({"internlm2", "llama", "mistral", "qwen2", "qwen3"})
#: InternLM2's names of the weights that Llama has as well, to Llama's.
INTERNLM2_NAMES = {
    "tok_embeddings": "embed_tokens",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "^output": "lm_head",
}


def rope_settings(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Base and scaling of a config's rotary positions (RoPE, arXiv 2104.09864).

    transformers 5 writes ``rope_parameters`` with both; before, ``rope_theta`` and ``rope_scaling``
    were keys of their own, and published folders have them.

    Returns:
        The base (10000 where none is named, as in transformers), and the scaling with its
        ``rope_type``; empty if positions are not scaled.
    """
    newer = config.get("rope_parameters") or {}
    scaling = dict(config.get("rope_scaling") or newer)
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = str(scaling.pop("rope_type", None) or scaling.pop("type", None) or "default")
    return theta, {"rope_type": kind, **scaling} if scaling or kind != "default" else {}


def fused_rows(
    config: Mapping[str, Any],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which rows of InternLM2's ``wqkv`` are queries, keys and values, each in Llama's order.

    The rows lie in one group a key head: its query heads, the key head, the value head.

    Returns:
        Three arrays: (heads * head_dim,), (kv_heads * head_dim,) twice.
    """
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    size = int(config["hidden_size"]) // heads
    each = heads // groups
    rows = np.arange((heads + 2 * groups) * size).reshape(groups, each + 2, size)
    return rows[:, :each].reshape(-1), rows[:, each].reshape(-1), rows[:, each + 1].reshape(-1)
