"""What differs between families of models: one row a family, and rules read from config.json.

A family that is not in the table still goes the whole way: its chat template is measured (see
``core.models.template``), every linear layer gets an adapter, transformers computes. A row says
what is known beyond that; ``tests/unit/test_families.py`` walks the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FUSED_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
#: The tutorial's; for a family that XTuner ships no config for.
TUTORIAL_CONFIG = "internlm2_chat_1_8b_qlora_alpaca_e3"


@dataclass(frozen=True)
class Family:
    """What is known of a family.

    Attributes:
        types: ``model_type`` of config.json.
        stock_config: the XTuner config that is nearest; every setting of it can be edited.
        llama_shaped: replies are computed by ``core.inference.llama`` and training steps by
            ``core.training.step``; both still look at each model and may say no.
        plain_head: logits are the output head's product and nothing more, so that training may
            compute them where there is a label only.
        chinese: its chat models speak Chinese as well as English.
        targets: the layers that get an adapter: every linear one but the head.
        quirk: what its chat template does to a talk, for people.
    """

    name: str
    types: tuple[str, ...]
    stock_config: str = TUTORIAL_CONFIG
    llama_shaped: bool = False
    plain_head: bool = False
    chinese: bool = False
    targets: tuple[str, ...] = _LLAMA_LAYERS
    quirk: str = ""


TABLE = (
    Family(
        "Llama",
        ("llama",),
        "llama3_8b_instruct_qlora_alpaca_e3",
        llama_shaped=True,
        plain_head=True,
        quirk="Llama 3 writes a system turn with a date even if nobody wrote one",
    ),
    Family(
        "InternLM2",
        ("internlm2",),
        llama_shaped=True,
        plain_head=True,
        chinese=True,
        quirk="none; read without the folder's own code",
    ),
    Family(
        "Qwen",
        ("qwen2", "qwen3"),
        "qwen1_5_0_5b_chat_qlora_alpaca_e3",
        llama_shaped=True,
        plain_head=True,
        chinese=True,
        quirk="2.5 introduces itself where nobody wrote a system turn; 3 and those distilled from "
        "DeepSeek-R1 think, and write thoughts in the last turn only",
    ),
    Family(
        "Qwen MoE",
        ("qwen2_moe", "qwen3_moe"),
        "mixtral_8x7b_instruct_qlora_oasst1_e3",
        plain_head=True,
        chinese=True,
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        quirk="as Qwen; the experts are no linear layers in transformers 5, so they get no adapter",
    ),
    Family(
        "Gemma",
        ("gemma", "gemma2", "gemma3_text"),
        "gemma_2b_it_qlora_alpaca_e3",
        quirk="no system turn (its text goes to the user turn), turns alternate, texts are trimmed",
    ),
    Family(
        "Mistral",
        ("mistral",),
        "mixtral_8x7b_instruct_qlora_oasst1_e3",
        llama_shaped=True,
        plain_head=True,
        quirk="the system turn goes to the last user turn, turns alternate, replies are trimmed",
    ),
    Family("Mixtral", ("mixtral",), "mixtral_8x7b_instruct_qlora_oasst1_e3", plain_head=True,
           targets=("q_proj", "k_proj", "v_proj", "o_proj"), quirk="as Mistral"),
    Family(
        "Phi",
        ("phi3",),
        "phi3_mini_4k_instruct_qlora_alpaca_e3",
        plain_head=True,
        targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        quirk="an eos token behind a talk that is over, which ends no turn",
    ),
    Family(
        "GLM-4",
        ("glm", "glm4"),
        "chatglm3_6b_qlora_alpaca_e3",
        chinese=True,
        targets=_FUSED_MLP,
        quirk="nothing ends a reply but the token that opens the next turn",
    ),
    Family("OLMo 2", ("olmo2", "olmo3"), quirk="a newline between turns, none behind the last"),
    Family(
        "Granite", ("granite",),
        quirk="introduces itself, with today's date, where nobody wrote a system turn",
    ),
    Family("DeepSeek", ("deepseek_v2", "deepseek_v3"), "deepseek_moe_16b_chat_qlora_oasst1_e3",
           chinese=True, targets=()),
    # These bring their own code (``core.models.trust``).
    Family("Baichuan", ("baichuan",), "baichuan2_7b_chat_qlora_alpaca_e3", chinese=True,
           targets=()),
    Family("ChatGLM", ("chatglm",), "chatglm3_6b_qlora_alpaca_e3", chinese=True, targets=()),
    Family("InternLM", ("internlm", "internlm3"), "internlm2_5_chat_7b_qlora_alpaca_e3",
           chinese=True, targets=()),
    Family("MiniCPM", ("minicpm", "minicpm3"), "minicpm3_4b_chat_qlora_custom_sft_e1",
           chinese=True, targets=()),
    Family("Yi", ("yi",), "yi_6b_qlora_alpaca_enzh_e3", chinese=True, targets=()),
)  # fmt: skip


def of(model_type: str) -> Family:
    """The family's row, or one that claims nothing."""
    known = next((family for family in TABLE if model_type in family.types), None)
    return known or Family(model_type or "unknown", (model_type,), targets=())


#: ``model_type`` of the families that compute what Llama computes: the lean forward and the fused
#: training step know them.
LLAMA_SHAPED = frozenset(kind for row in TABLE if row.llama_shaped for kind in row.types)
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
