"""Chat templates for folders that have none: what a base model can be taught to talk with."""

from __future__ import annotations

from typing import Any

from core.errors import UserError

#: name -> (tokens that it is made of, source).
TEMPLATES = {
    "chatml": (
        ("<|im_start|>", "<|im_end|>"),
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    "llama3": (
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim "
        "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    "gemma": (
        ("<start_of_turn>", "<end_of_turn>"),
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' "
        "+ m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ),
}


def offered(tokenizer: Any) -> list[str]:
    """Templates for this tokenizer: the family's whose tokens it has first, ChatML always."""
    vocab = tokenizer.get_vocab()
    fitting = [name for name, (tokens, _) in TEMPLATES.items() if all(t in vocab for t in tokens)]
    return list(dict.fromkeys([*fitting, "chatml"]))


def source(name: str) -> str:
    """The template of a name. Raises UserError for an unknown one."""
    if name not in TEMPLATES:
        raise UserError(
            f"there is no chat template {name!r}", fix=f"use one of {', '.join(TEMPLATES)}"
        )
    return TEMPLATES[name][1]
