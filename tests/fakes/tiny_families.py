"""Tiny random models of the families that people bring, each with a chat template in its style.

The templates are written for tests: they do what the published ones do to the turns of a talk
(default system turns, trimming, positions, thoughts, what ends a reply), and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.models.catalog import ModelRef
from tests.fakes import templates, tiny_models

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}

#: The date stands in every system turn, and there is one even if nobody wrote it.
LLAMA3 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n"
    "Today Date: 26 Jul 2024\\n\\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
#: The prompt opens the thoughts whatever one asks for, and earlier thoughts are dropped.
ALWAYS_THINKS = (
    "{{- bos_token }}{%- for m in messages %}{%- if m['role'] == 'system' %}{{- m['content'] }}"
    "{%- elif m['role'] == 'user' %}{{- '<|User|>' + m['content'] }}{%- else %}"
    "{{- '<|Assistant|>' + m['content'].split('</think>')[-1] + '<|end|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"
)
#: The system turn goes into the user turn, turns must alternate, the assistant is "model".
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set talk = messages[1:] -%}"
    "{%- else -%}{%- set first = '' -%}{%- set talk = messages -%}{%- endif -%}"
    "{%- for m in talk -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif -%}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
#: The system turn goes into the last user turn; nothing opens a reply.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set talk = messages[1:] %}{%- else %}{%- set talk = messages %}{%- endif %}"
    "{{- bos_token }}{%- for m in talk %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user and assistant') }}{%- endif %}"
    "{%- if m['role'] == 'user' %}{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\\n\\n' + m['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}{%- else %}"
    "{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
#: A talk that is over ends with the eos token behind the end of the turn.
PHI4 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
#: Nothing ends a turn but the beginning of the next.
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
#: A newline between turns, none behind the last; bos and eos are one token.
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'assistant' %}"
    "{{ '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}{% else %}"
    "{{ '<|assistant|>\\n' + m['content'] + eos_token + ('' if loop.last else '\\n') }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
#: A default system turn with the vendor's name and today's date.
GRANITE = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set talk = messages[1:] %}{%- else %}{%- set talk = messages %}"
    "{%- set system = 'Knowledge Cutoff Date: April 2024.\\nToday\\'s Date: ' + "
    "strftime_now('%B %d, %Y') + '.\\nYou are Granite, developed by IBM. "
    "You are a helpful AI assistant.' %}{%- endif %}"
    "{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}"
    "{%- for m in talk %}{{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + "
    "'<|end_of_text|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A tiny model: what AutoConfig is given, its template, and its special tokens.

    ``stops``: what the family's generation config names beside eos.
    """

    model_type: str
    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    stops: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THINK = (*_CHATML, "<think>", "</think>")
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
FAMILIES = {
    "Llama 3": Tiny(
        "llama",
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "<|begin_of_text|>",
        changes={"rope_theta": 500000.0, "tie_word_embeddings": True},
    ),
    "Qwen2.5": Tiny("qwen2", templates.VENDOR_DEFAULT, _CHATML, "<|im_end|>"),
    "Qwen3": Tiny("qwen3", templates.THINKING, _THINK, "<|im_end|>"),
    "always thinks": Tiny(
        "qwen2",
        ALWAYS_THINKS,
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"),
        "<|end|>",
        "<|begin|>",
    ),
    "Gemma 3": Tiny(
        "gemma3_text",
        GEMMA3,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<bos>",
        ("<end_of_turn>",),
        {"sliding_window": 64, "query_pre_attn_scalar": 8, "tie_word_embeddings": True},
    ),
    "Mistral": Tiny(
        "mistral", MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>",
        changes={"sliding_window": None},
    ),
    "Phi-4": Tiny(
        "phi3",
        PHI4,
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>",
        stops=("<|end|>",),
        changes={"partial_rotary_factor": 0.75, "head_dim": None, "hidden_size": 64},
    ),
    "GLM-4": Tiny(
        "glm4",
        GLM4,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>",
        stops=("<|user|>",),
    ),
    "OLMo 2": Tiny(
        "olmo2",
        OLMO2,
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "Granite": Tiny(
        "granite",
        GRANITE,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        "<|end_of_text|>",
        changes={
            "logits_scaling": 8.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.25,
        },
    ),
    "Qwen3-MoE": Tiny("qwen3_moe", templates.THINKING, _THINK, "<|im_end|>", changes=_EXPERTS),
}  # fmt: skip


def save(folder: Path, name: str) -> ModelRef:
    """The family's folder as ``save_pretrained`` writes it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tiny = FAMILIES[name]
    tokenizer = _tokenizer(tiny)
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.special}
    sizes = {k: v for k, v in {**_SIZES, **tiny.changes}.items() if v is not None}
    config = AutoConfig.for_model(
        tiny.model_type,
        vocab_size=len(tokenizer),
        bos_token_id=ids.get(tiny.bos or ""),
        eos_token_id=ids[tiny.eos],
        pad_token_id=0,
        **sizes,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # random replies, not one token for ever
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config = GenerationConfig(
        eos_token_id=[ids[t] for t in (tiny.eos, *tiny.stops)], pad_token_id=0
    )
    model.save_pretrained(folder)
    return tiny_models.ref_of(folder, tiny.model_type)


def _tokenizer(tiny: Tiny) -> Any:
    """Bytes, a few merges of white space, and the family's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [("Ċ", "Ċ"), ("Ġ", "t"), ("i", "n")]
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merged)])}
    backend = Tokenizer(models.BPE(vocab, merged))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in tiny.special]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tiny.bos,
        eos_token=tiny.eos,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = tiny.template
    return tokenizer
