"""The bundled model's folder, model look-up, the one template, and batched generation."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import fsio
from core.conversation import Conversation, Message
from core.errors import UserError
from core.inference.load import load_model, load_tokenizer
from core.models import catalog
from core.models.xtuner_template import XTunerTemplate

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}" + CHATML
)
# Llama 3 writes two newlines; its own pre-tokenizer keeps them together, the bundled one would not.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n' }}{% endif %}"
)
TALK: list[Message] = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I'm Luna. {not a slot}\n- one\n- two"},
    {"role": "user", "content": "你是谁？ 🙂"},
    {"role": "assistant", "content": "Still Luna."},
]


def _tokenizer(folder: Path, template: str, *, llama3: bool = False):
    tokenizer = load_tokenizer(folder)
    if llama3:
        tokenizer.add_special_tokens(
            {
                "bos_token": "<|begin|>",
                "additional_special_tokens": ["<|start|>", "<|end|>", "<|eot|>"],
            }
        )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.slow
def test_bundled_folder_can_be_read_by_transformers_4(bundled_model: Path) -> None:
    """transformers 5 writes ``TokenizersBackend``, which a server with 4.57 could not load."""
    config = fsio.read_json(bundled_model / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.slow
def test_bundled_folder_has_the_right_tokens(bundled_model: Path) -> None:
    tokenizer = load_tokenizer(bundled_model)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token_id, tokenizer.bos_token) == (0, None)
    assert tokenizer.decode(tokenizer.encode("Hi 2024, 日本🙂  x")) == "Hi 2024, 日本🙂  x"
    # Digits stand alone, as SmolLM2 was trained.
    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]
    assert "SmolLM" not in XTunerTemplate(tokenizer).render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("template, llama3", [(CHATML, False), (QWEN, False), (LLAMA3, True)])
def test_xtuner_pieces_equal_the_tokenizers_template(
    bundled_model: Path, template: str, llama3: bool
) -> None:
    tokenizer = _tokenizer(bundled_model, template, llama3=llama3)
    chat = XTunerTemplate(tokenizer)
    pieces = chat.xtuner_template()
    ids, labels = chat.encode_supervised(TALK)
    assert chat._as_xtuner(TALK, pieces) == (ids, labels)
    assert ids == tokenizer.apply_chat_template(TALK, return_dict=False)
    assert chat.encode(TALK[:1]) == tokenizer.apply_chat_template(
        TALK[:1], add_generation_prompt=True, return_dict=False
    )


def test_supervised_are_the_replies_and_their_ends(bundled_model: Path) -> None:
    tokenizer = load_tokenizer(bundled_model)
    ids, labels = XTunerTemplate(tokenizer).encode_supervised(TALK, loss=[False, True])
    kept = [i for i in labels if i != -100]
    assert tokenizer.decode(kept) == "Still Luna.<|im_end|>"
    assert len(ids) == len(labels)


def test_default_system_is_found(bundled_model: Path) -> None:
    assert XTunerTemplate(_tokenizer(bundled_model, QWEN)).default_system == "You are Qwen."
    assert XTunerTemplate(_tokenizer(bundled_model, CHATML)).default_system == ""


def test_template_that_rewrites_earlier_turns_is_trained_as_chat_feeds_it(
    bundled_model: Path,
) -> None:
    thinking = CHATML.replace("m['content'] +", "('' if loop.last else 'old ') + m['content'] +")
    chat = XTunerTemplate(_tokenizer(bundled_model, thinking))
    prompts = [
        row.messages[0]["content"] for row in chat.training_rows(Conversation("x", list(TALK)))
    ]
    assert prompts == [chat.render(TALK[:1], True), chat.render(TALK[:3], True)]


def test_template_that_rewrites_replies_is_refused(bundled_model: Path) -> None:
    upper = CHATML.replace(
        "m['content'] +", "('' if loop.last else 'old ') + m['content'] | upper +"
    )
    with pytest.raises(UserError, match="cannot be used for training"):
        XTunerTemplate(_tokenizer(bundled_model, upper)).xtuner_template()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: None, "is empty"),
        (lambda p: (p / "x.txt").write_text("hi"), "not a model folder"),
        (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
        (
            lambda p: (p / "config.json").write_text('{"architectures": ["BertModel"]}'),
            "not a causal language model",
        ),
        (
            lambda p: (p / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
            "has no weights",
        ),
    ],
)
def test_bad_model_folders(tmp_path: Path, make, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=message):
        catalog.resolve(str(folder))


def test_missing_folder_and_bad_hub_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        catalog.resolve(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="neither"):
        catalog.resolve("a b c")


def test_generation_equals_transformers_and_keeps_order(tiny_llama: Path) -> None:
    from core.inference import decoding
    from core.inference.resident import Resident
    from core.inference.settings import GenerationSettings

    tokenizer, model = load_tokenizer(tiny_llama), load_model(tiny_llama, device="cpu")
    talks: list[list[Message]] = [
        [{"role": "user", "content": text}] for text in ("Hi", "A much longer question?", "So")
    ]
    voice = Resident(model, tokenizer).voice()
    replies = decoding.replies(voice, talks, GenerationSettings(max_new_tokens=12))
    for talk, reply in zip(talks, replies, strict=True):
        fed = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        fed.pop("token_type_ids", None)
        out = model.generate(**fed, max_new_tokens=12, do_sample=False)[0]
        new = out[fed["input_ids"].shape[1] :].tolist()
        assert reply.token_ids == new[: new.index(2)] if 2 in new else new
        assert reply.finish_reason == ("stop" if 2 in new else "length")


def test_sampling_follows_the_seed(tiny_llama: Path) -> None:
    from core.inference import decoding
    from core.inference.resident import Resident
    from core.inference.settings import GenerationSettings

    tokenizer, model = load_tokenizer(tiny_llama), load_model(tiny_llama, device="cpu")
    talk: list[list[Message]] = [[{"role": "user", "content": "Hi"}]]

    def draw(seed: int) -> list[int]:
        settings = GenerationSettings(1.0, top_p=0.9, top_k=50, max_new_tokens=8, seed=seed)
        return decoding.replies(Resident(model, tokenizer).voice(), talk, settings)[0].token_ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.slow
def test_bundled_model_stops_at_the_end_of_a_turn(bundled_model: Path) -> None:
    from core.inference import decoding
    from core.inference.resident import Resident
    from core.inference.settings import GenerationSettings

    reply = decoding.replies(
        Resident.load(bundled_model).voice(),
        [[{"role": "user", "content": "What is the capital of France?"}]],
        GenerationSettings(max_new_tokens=40),
    )[0]
    assert reply.finish_reason == "stop"
    assert "Paris" in reply.text and "<|im" not in reply.text
