"""What llama.cpp knows of a family of models, and what of a folder it could not be told.

llama.cpp computes each architecture by code of its own, so a setting that its code does not read
would change the model in silence. Everything here was read in llama.cpp (src/llama-model.cpp,
src/models/, convert_hf_to_gguf.py); a test loads each family there and compares greedy replies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.models.families import rope_settings

#: What to run where we refuse.
OTHER_WAY = "python convert_hf_to_gguf.py FOLDER (from the llama.cpp repository) may know it"


def refusal(what: str, why: str) -> UserError:
    """The error for what cannot be written."""
    return UserError(f"{what} cannot be written as GGUF here", why=why, fix=OTHER_WAY)


@dataclass(frozen=True)
class GgufFamily:
    """One ``model_type`` in GGUF's terms.

    Args:
        architecture: llama.cpp's name.
        interleaved: llama.cpp rotates neighbouring pairs, so the rows of q and k are reordered.
        one_added: the file holds norms less one, and llama.cpp multiplies by them as they are.
        activation: of the feed-forward, the only one that this architecture computes.
        biases: linear layers that may have one, in GGUF's names.
        pattern: every how many layers one sees the whole text and the others a window; 1: all do.
        big: number of layers at which llama.cpp scales attention by hidden/heads, not head_dim.
        keys: keys of config.json that only this family has, and that are written or checked.
    """

    architecture: str
    interleaved: bool = False
    one_added: bool = False
    activation: str = "silu"
    biases: frozenset[str] = frozenset()
    pattern: int = 1
    big: int = 0
    keys: frozenset[str] = frozenset()


_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_LLAMA = GgufFamily(
    "llama",
    interleaved=True,
    biases=_QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"},
    keys=frozenset({"bias"}),
)
_GELU = "gelu_pytorch_tanh"
_GEMMA = frozenset({"hidden_activation", "query_pre_attn_scalar", "attn_logit_softcapping",
                    "final_logit_softcapping", "rope_local_base_freq", "cache_implementation",
                    "sliding_window_pattern", "_sliding_window_pattern"})  # fmt: skip
#: InternLM2 and Mistral are Llamas whose weights have other names, or none.
FAMILIES: Mapping[str, GgufFamily] = {
    "gemma": GgufFamily("gemma", one_added=True, activation=_GELU, keys=_GEMMA),
    "gemma2": GgufFamily(
        "gemma2", one_added=True, activation=_GELU, pattern=2, big=46, keys=_GEMMA
    ),
    "gemma3_text": GgufFamily(
        "gemma3", one_added=True, activation=_GELU, pattern=6, big=62, keys=_GEMMA
    ),
    "internlm2": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": GgufFamily("qwen2", biases=_QKV),
    "qwen3": GgufFamily("qwen3"),
}
_LLAMA3_KEYS = {
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
#: Keys of config.json that are written, that the tensors show, or that change no number.
_KNOWN_KEYS = frozenset(
    [
        "attention_bias",
        "attention_dropout",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pretraining_tp",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "use_sliding_window",
        "vocab_size",
        "_attn_implementation",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "eos_token_id",
        "is_llama_config",
        "pad_token_id",
        "transformers.js_config",
        "unk_token_id",
    ]
)


def family_of(config: Mapping[str, Any]) -> GgufFamily:
    """The family of a config that llama.cpp can be told whole.

    Raises:
        UserError: the type is not known, or the config asks for what the file would not say.
    """
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise refusal(f"a model of type {kind!r}", f"only {', '.join(sorted(FAMILIES))} are")
    family = FAMILIES[kind]
    _require_known_keys(config, family)
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation != family.activation:
        raise refusal(f"a model with hidden_act={activation!r}", f"only {family.activation} is")
    _require_windows(config, family)
    if family.one_added:
        _require_gemma(config, family)
    rope_of(config)
    return family


def _require_known_keys(config: Mapping[str, Any], family: GgufFamily) -> None:
    from transformers import GenerationConfig, PreTrainedConfig

    known = _KNOWN_KEYS | family.keys
    known |= set(PreTrainedConfig().to_dict()) | set(GenerationConfig().to_dict())
    unknown = {k: v for k, v in config.items() if v and k not in known}
    if unknown.get("partial_rotary_factor") == 1:
        del unknown["partial_rotary_factor"]
    if unknown:
        key, value = next(iter(unknown.items()))
        raise refusal(f"a model with {key}={value!r:.60}", "what it does is not known here")


def _require_windows(config: Mapping[str, Any], family: GgufFamily) -> None:
    """llama.cpp knows windows only where they are of the architecture, in its own pattern."""
    layers = int(config["num_hidden_layers"])
    kinds = config.get("layer_types")
    if family.pattern > 1:
        full = [(i + 1) % family.pattern == 0 for i in range(layers)]
        if kinds and [k == "full_attention" for k in kinds] != full:
            raise refusal(
                "this pattern of layer_types", f"only every {family.pattern}th layer whole"
            )
        return
    window = config.get("sliding_window") or math.inf
    if config.get("use_sliding_window", config["model_type"] != "qwen2") is False:
        window = math.inf
    if set(kinds or ()) - {"full_attention"} or window < int(config["max_position_embeddings"]):
        raise refusal("a model with a sliding window", "every layer would see everything")


def _require_gemma(config: Mapping[str, Any], family: GgufFamily) -> None:
    """The scale of the attention and the soft caps are constants of llama.cpp's code."""
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    size = head_size(config)
    wanted = int(config["hidden_size"]) // heads if layers == family.big else size
    scale = float(config.get("query_pre_attn_scalar") or size)
    if scale != wanted:
        raise refusal(f"a model with query_pre_attn_scalar={scale:g}", f"only {wanted} is")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if bool(config.get(name)) != (family.architecture == "gemma2"):
            raise refusal(
                f"a {config['model_type']} with {name}={config.get(name)}",
                "llama.cpp caps logits in gemma2, and nowhere else",
            )
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    base = float(local.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0)
    if family.architecture == "gemma3" and base != 10000.0:
        raise refusal(f"a model with rope_local_base_freq={base:g}", "only 10000 is")


def head_size(config: Mapping[str, Any]) -> int:
    """Width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, a factor for all of them, and one for each frequency."""

    base: float
    linear: float = 1.0
    factors: npt.NDArray[np.float32] | None = None


def rope_of(config: Mapping[str, Any]) -> Rope:
    """The rotary positions of a config.

    "dynamic" positions are plain ones up to the trained length, which is the context that the file
    names.

    Raises:
        UserError: a scaling that llama.cpp computes otherwise or not at all.
    """
    whole = (config.get("rope_parameters") or {}).get("full_attention")
    theta, scaling = rope_settings({**config, "rope_parameters": whole} if whole else config)
    kind = scaling.get("rope_type", "default")
    llama = FAMILIES[str(config["model_type"])].architecture == "llama"
    if not scaling or kind == "dynamic":
        return Rope(theta)
    if kind == "linear" and "factor" in scaling:
        return Rope(theta, linear=float(scaling["factor"]))
    if kind == "llama3" and llama and scaling.keys() >= _LLAMA3_KEYS:
        return Rope(theta, factors=_llama3(theta, head_size(config), scaling))
    raise refusal(
        f"a model with rotary positions of type {kind}", "the scaling is not carried over"
    )


def _llama3(theta: float, size: int, scaling: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """What each frequency is divided by in Llama 3.1 (``_compute_llama3_parameters``)."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    factor, trained = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    turns = trained * theta ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def describe(writer: Any, config: Mapping[str, Any], family: GgufFamily) -> None:
    """Write the numbers of the architecture into the file's header."""
    from gguf import RopeScalingType

    heads, size, rope = int(config["num_attention_heads"]), head_size(config), rope_of(config)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps") or 1e-6))
    writer.add_rope_freq_base(rope.base)
    writer.add_rope_dimension_count(size)
    if rope.linear != 1.0:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.linear)
    if family.pattern > 1:
        writer.add_sliding_window(int(config["sliding_window"]))
    if family.architecture == "gemma2":
        writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
