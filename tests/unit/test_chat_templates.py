"""One rendering: chat, the tokenizer's own template and training give the same token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers

from core.chat.context import Feed, plan
from core.conversation import Message
from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.xtuner_template import XTunerTemplate

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
#: The shapes of four families: what they write, not their files.
TEMPLATES = {
    "smollm2": CHATML,
    "qwen2": (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful"
        " assistant.<|im_end|>\n' }}{% endif %}" + CHATML
    ),
    "internlm2": "{{ bos_token }}" + CHATML,
    "llama3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] +"
        " '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "Who are you?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你是谁？ $5 {x} 🙂"},
        {"role": "assistant", "content": "I'm Luna.\n\n- one\n- two"},
        {"role": "user", "content": "And who made you?"},
    ],
]


@pytest.fixture(params=sorted(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest, tiny_llama: Path) -> Any:
    tokenizer = load_tokenizer(tiny_llama)
    if request.param in ("llama3", "internlm2"):
        tokenizer.add_special_tokens(
            {
                "bos_token": "<s>",
                "additional_special_tokens": [
                    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                ],
            }
        )  # fmt: skip
    if request.param == "llama3":
        # Llama 3 keeps a run of newlines together; GPT-2's rule splits it by what follows, so a
        # prompt that ends in two newlines would be other tokens than the same text inside a row.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.chat_template = TEMPLATES[request.param]
    return tokenizer


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chat_feeds_what_the_tokenizer_and_training_write(
    tokenizer: Any, messages: list[Message]
) -> None:
    template = XTunerTemplate(tokenizer)
    fed = plan(template, messages, max_new_tokens=16, context=2048)
    assert fed.token_ids == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert fed.text == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    row: list[Message] = [*messages, {"role": "assistant", "content": "I am Luna."}]
    trained, labels = template.encode_supervised(row)
    assert trained[: len(fed.token_ids)] == fed.token_ids
    # The first supervised token of the last turn is the first one that chat asks for.
    last_turn = [i for i, label in enumerate(labels) if label != -100 and i >= len(fed.token_ids)]
    assert last_turn[0] == len(fed.token_ids)
    # No stray blanks before the assistant turn and no second start token: the ancestor's faults.
    if tokenizer.bos_token_id is not None:
        assert fed.token_ids.count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("text", ["a", "Zoo?", "\n\nnew lines first", "你好", ""])
def test_the_head_of_a_prompt_is_the_same_for_every_question(
    tokenizer: Any, messages: list[Message], text: str
) -> None:
    template = XTunerTemplate(tokenizer)
    system = [m for m in messages[:1] if m["role"] == "system"]
    one = template.encode(messages)
    other = template.encode([*system, {"role": "user", "content": text}])
    head = min(template.head(messages, one), template.head(messages, other))
    assert one[:head] == other[:head]
    whole = tokenizer.decode(one[: template.head(messages, one)])
    assert "user" in whole and all(m["content"] in whole for m in system)


def test_chat_feeds_what_xtuner_trains_on(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.training import compat

    compat.importable()
    from xtuner.dataset import utils

    # The repair that our training jobs apply, taken back after this test.
    monkeypatch.setattr(utils, "get_bos_eos_token_ids", utils.get_bos_eos_token_ids)
    compat.bos_of_template()
    template = XTunerTemplate(tokenizer)
    pieces = template.xtuner_template()
    messages = template.with_system(CONVERSATIONS[1])
    row = {"conversation": [
        {
            "input": pieces["SYSTEM"].format(system=messages[0]["content"])
            + pieces["INSTRUCTION"].format(input=messages[1]["content"]),
            "output": messages[2]["content"] + pieces["SUFFIX"],
            "need_eos_token": False,
            "sep": pieces["SEP"],
        },
        {
            "input": pieces["INSTRUCTION"].format(input=messages[3]["content"]),
            "output": "x" + pieces["SUFFIX"],
            "need_eos_token": False,
            "sep": pieces["SEP"],
        },
    ]}  # fmt: skip
    ids = utils.encode_fn(row, tokenizer, max_length=512)["input_ids"]
    fed = plan(template, CONVERSATIONS[1], max_new_tokens=16, context=2048).token_ids
    assert ids[: len(fed)] == fed


def history(rounds: int) -> list[Message]:
    turns: list[Message] = [{"role": "system", "content": "Be brief."}]
    for i in range(rounds):
        turns.append({"role": "user", "content": f"Question {i}: " + "word " * 20})
        turns.append({"role": "assistant", "content": f"Answer {i}."})
    return [*turns, {"role": "user", "content": "The last question."}]


def test_a_long_conversation_is_cut_by_whole_exchanges(tokenizer: Any) -> None:
    template = XTunerTemplate(tokenizer)
    messages = history(12)
    fed: Feed = plan(template, messages, max_new_tokens=32, context=256)
    assert fed.messages[0] == messages[0]
    assert fed.messages[-1] == messages[-1]
    assert [*fed.messages[:1], *fed.cut, *fed.messages[1:]] == messages
    assert len(fed.cut) % 2 == 0
    assert fed.cut
    assert len(fed.token_ids) + fed.limit <= 256
    assert fed.limit == 32


def test_nothing_is_cut_while_it_fits(tokenizer: Any) -> None:
    fed = plan(XTunerTemplate(tokenizer), history(3), max_new_tokens=10**5, context=2048)
    assert fed.cut == []
    assert fed.limit == 2048 - len(fed.token_ids)


def test_a_message_longer_than_the_context_is_refused(tokenizer: Any) -> None:
    messages: list[Message] = [{"role": "user", "content": "x y " * 50_000}]
    with pytest.raises(UserError, match="too long") as caught:
        plan(XTunerTemplate(tokenizer), messages, max_new_tokens=16, context=2048)
    assert "2,048" in caught.value.why
