"""The engine against plain transformers: same tokens, alone and in company."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.chat import engine as engines
from core.chat.columns import Column
from core.chat.engine import Engine
from core.conversation import Message
from core.inference import adapters, lean
from core.inference.events import Ended, Event, Grown
from core.inference.fused import unsupported
from core.inference.lean import LeanBackend
from core.inference.llama import KVCache, LeanLlama, Segment
from core.inference.load import load_model, load_tokenizer
from core.inference.padded import PaddedBackend
from core.inference.resident import all_agree, choose
from core.inference.settings import GenerationSettings
from tests.fakes.tiny_models import tuned

GREEDY = GenerationSettings(max_new_tokens=24)
QUESTION: list[Message] = [{"role": "user", "content": "Who are you?"}]
LONGER: list[Message] = [
    {"role": "system", "content": "You are Luna."},
    {"role": "user", "content": "Hello there."},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Tell me about the sea, please."},
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_adapter(model: Path, out: Path, **changes: Any) -> Path:
    """LoRA weights large enough to change the reply."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    config = {
        "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False,
    } | changes  # fmt: skip
    peft = get_peft_model(load_model(model), LoraConfig(**config))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    peft.save_pretrained(str(out))
    return out


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def merged(tiny_llama: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    model = tuned(tiny_llama, adapter)
    model.merge_and_unload().save_pretrained(folder)
    load_tokenizer(tiny_llama).save_pretrained(folder)
    return folder


def alone(model: Any, path: Path, messages: list[Message], tokens: int = 24) -> list[int]:
    """The reply of transformers.generate on this model and nothing else."""
    tokenizer = load_tokenizer(path)
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0]
    reply = out[ids["input_ids"].shape[1] :].tolist()
    return reply[:-1] if reply[-1] == tokenizer.eos_token_id else reply


def run(
    engine: Engine, conversations: dict[str, list[Message]], settings: GenerationSettings = GREEDY
) -> dict[str, Ended]:
    """The last event of every column."""
    last: dict[str, Ended] = {}

    def emit(event: Event) -> None:
        if isinstance(event, Ended):
            last[event.column] = event

    engine.generate(conversations, settings, emit)
    return last


def sides_of(base: Path, adapter: Path, merged: Path) -> list[Column]:
    return [
        Column("a", "base", "base", str(base)),
        Column("b", "adapter", "tuned", str(base), str(adapter)),
        Column("c", "merged", "merged", str(merged)),
        Column("d", "prompted", "prompted", str(base), system="You are Luna."),
    ]


def test_kept_heads_do_not_change_a_reply(
    tiny_llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "HEAD_TOKENS", range(1, 513))
    columns = [
        Column("a", "base", "base", str(tiny_llama)),
        Column("b", "adapter", "tuned", str(tiny_llama), str(adapter)),
    ]
    warm, cold = Engine(threads=2), Engine(threads=2)
    assert warm.load(columns) == cold.load(columns) == {}
    sampled = GenerationSettings(max_new_tokens=24, temperature=1.0, seed=3)
    other: list[Message] = [{"role": "user", "content": "What is the sea?"}]
    run(warm, {"a": other, "b": other})
    backend = warm.voice("a").resident.backend
    assert isinstance(backend, LeanBackend)
    kept = list(backend.heads)
    assert [name for name, _ in kept] == [None, "adapter0"]
    for settings in (GREEDY, sampled):
        for asked in ({"a": QUESTION, "b": QUESTION}, {"a": LONGER, "b": QUESTION}):
            replies = [
                {column: event.token_ids for column, event in run(engine, asked, settings).items()}
                for engine in (warm, cold, warm)
            ]
            assert replies[0] == replies[1] == replies[2]
    assert set(kept) < set(backend.heads), "another system turn is another head"


def test_heads_are_few_and_short(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "MAX_HEADS", 2)
    monkeypatch.setattr(engines, "HEAD_TOKENS", range(4, 64))
    engine = Engine(threads=1)
    assert engine.load([Column("a", "base", "base", str(tiny_llama))]) == {}
    backend = engine.voice("a").resident.backend
    assert isinstance(backend, LeanBackend)
    run(engine, {"a": QUESTION})  # three tokens: too short
    for text in ("One.", "Two.", "Three.", "Long. " * 60):
        run(engine, {"a": [{"role": "system", "content": text}, *QUESTION]})
    kept = [load_tokenizer(tiny_llama).decode(ids) for _, ids in backend.heads]
    assert len(kept) == 2 and "Two." in kept[0] and "Three." in kept[1]


def test_each_column_equals_plain_generate(tiny_llama: Path, adapter: Path, merged: Path) -> None:
    engine = Engine(threads=2)
    assert engine.load(sides_of(tiny_llama, adapter, merged)) == {}
    asked = {"a": QUESTION, "b": QUESTION, "c": LONGER, "d": LONGER}
    last = run(engine, asked)
    wanted = {
        "a": alone(load_model(tiny_llama), tiny_llama, QUESTION),
        "b": alone(tuned(tiny_llama, adapter), tiny_llama, QUESTION),
        "c": alone(load_model(merged), merged, LONGER),
        "d": alone(load_model(tiny_llama), tiny_llama, LONGER),
    }
    assert {column: end.token_ids for column, end in last.items()} == wanted
    assert wanted["a"] != wanted["b"], "the adapter must matter, or this test shows nothing"
    assert [e.error for e in last.values()] == [None] * len(last)


def test_base_and_adapter_share_one_copy(tiny_llama: Path, adapter: Path) -> None:
    engine = Engine(threads=1)
    engine.load([Column("a", "base", "base", str(tiny_llama))])
    one = sum(v for k, v in engine.memory().items() if k != "process")
    engine.load(
        [
            Column("a", "base", "base", str(tiny_llama)),
            Column("b", "adapter", "tuned", str(tiny_llama), str(adapter)),
        ]
    )
    both = sum(v for k, v in engine.memory().items() if k != "process")
    size = sum(f.stat().st_size for f in adapter.glob("*.safetensors"))
    assert both - one <= 1.1 * size


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_same_seed_same_reply_twice(tiny_llama: Path, adapter: Path, temperature: float) -> None:
    engine = Engine(threads=2)
    engine.load(sides_of(tiny_llama, adapter, tiny_llama)[:2])
    settings = GenerationSettings(
        temperature, top_p=0.9, top_k=40, repetition_penalty=1.1, max_new_tokens=24, seed=5
    )
    asked = {"a": QUESTION, "b": QUESTION}
    first, second = run(engine, asked, settings), run(engine, asked, settings)
    assert [first[s].token_ids for s in "ab"] == [second[s].token_ids for s in "ab"]
    if temperature:
        other = run(engine, asked, GenerationSettings(temperature, max_new_tokens=24, seed=6))
        assert other["a"].token_ids != first["a"].token_ids


def test_equal_models_draw_equal_tokens(tiny_llama: Path) -> None:
    """Columns share their random numbers, so a difference is the models'."""
    engine = Engine(threads=2)
    engine.load([Column(s, "base", s, str(tiny_llama)) for s in "ab"])
    last = run(engine, {"a": QUESTION, "b": QUESTION}, GenerationSettings(1.0, max_new_tokens=24))
    assert last["a"].token_ids == last["b"].token_ids


def tiny(kind: str) -> Any:
    """A random model of another family."""
    import transformers as tf

    torch.manual_seed(0)
    common = {
        "vocab_size": 500, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    scaled = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        "llama3": lambda: tf.LlamaForCausalLM(
            tf.LlamaConfig(**common, rope_theta=5e5, rope_scaling=scaled)
        ),
        "llama-bias": lambda: tf.LlamaForCausalLM(
            tf.LlamaConfig(**common, attention_bias=True, mlp_bias=True)
        ),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**common)),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, head_dim=16)),
        "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**common, sliding_window=None)),
        "gpt2": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2, n_positions=256)
        ),
        "llama-dynamic-rope": lambda: tf.LlamaForCausalLM(
            tf.LlamaConfig(**common, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
        ),
    }
    return makers[kind]().eval().requires_grad_(False)


@pytest.mark.parametrize(
    "kind", ["llama3", "llama-bias", "llama-dynamic-rope", "qwen2", "qwen3", "mistral"]
)
def test_lean_forward_covers_the_family(kind: str) -> None:
    model = tiny(kind)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5)
    assert isinstance(choose(model), LeanBackend)


def test_other_models_go_through_transformers() -> None:
    model = tiny("gpt2")
    assert unsupported(model)
    assert isinstance(choose(model), PaddedBackend)


def test_half_precision_agrees_too(tiny_llama: Path) -> None:
    assert isinstance(choose(load_model(tiny_llama, dtype="bfloat16")), LeanBackend)


def test_a_wrong_detail_is_noticed(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    lean = LeanLlama(model)
    assert all_agree(lean, model)
    lean.eps = 0.5
    assert not all_agree(lean, model)


def test_the_batched_step_equals_the_packed_forward(tiny_llama: Path, adapter: Path) -> None:
    """What a GPU records as a graph, checked on the CPU: rows of other lengths and adapters."""
    model = adapters.attach(load_model(tiny_llama), adapter, "x")
    lean = LeanLlama(model)
    prompts, names = [[5, 6, 7, 8], [9, 10]], [None, "x"]
    together = KVCache(lean, 2, 64, zeroed=True)
    apart = [KVCache(lean, 1, 64) for _ in prompts]
    with torch.inference_mode():
        for row, (ids, name) in enumerate(zip(prompts, names, strict=True)):
            lean.forward([Segment(together, row, 0, ids, name)])
            lean.forward([Segment(apart[row], 0, 0, ids, name)])
        positions = torch.tensor([4, 2])
        for step in range(3):
            tokens = torch.tensor([20 + step, 30 + step])
            rows = [(slice(1, 2), "x")]
            batched = lean.step(tokens, positions + step, together, rows, length=64)
            for row, name in enumerate(names):
                place = Segment(apart[row], 0, int(positions[row]) + step, [int(tokens[row])], name)
                torch.testing.assert_close(batched[row], lean.forward([place])[0])


def test_divergence_from_the_base(tiny_llama: Path, adapter: Path) -> None:
    engine = Engine(threads=1)
    engine.load(sides_of(tiny_llama, adapter, tiny_llama)[:3])
    ids, reply = [5, 6, 7], [8, 9, 10, 11]
    logs = []
    for model in (tuned(tiny_llama, adapter), load_model(tiny_llama)):
        with torch.inference_mode():
            logits = model(torch.tensor([[*ids, *reply]])).logits[0, 2:-1]
        logs.append(logits.log_softmax(-1))
    wanted = float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())
    assert engine.divergence(("b", "a"), (ids, ids), reply) == pytest.approx(wanted, rel=1e-3)
    assert engine.divergence(("c", "a"), (ids, ids), reply) == pytest.approx(0, abs=1e-6)
    assert engine.divergence(("b", "a"), (ids, ids), []) == 0


def test_dora_is_left_to_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    dora = random_adapter(tiny_llama, tmp_path / "dora", use_dora=True)
    engine = Engine(threads=1)
    engine.load(sides_of(tiny_llama, dora, tiny_llama)[:2])
    last = run(engine, {"a": QUESTION, "b": QUESTION})
    assert last["a"].token_ids == alone(load_model(tiny_llama), tiny_llama, QUESTION)
    assert last["b"].token_ids == alone(tuned(tiny_llama, dora), tiny_llama, QUESTION)


def test_adapter_that_replaces_whole_layers_gets_its_own_copy(
    tiny_llama: Path, tmp_path: Path
) -> None:
    wide = random_adapter(tiny_llama, tmp_path / "wide", modules_to_save=["norm"])
    engine = Engine(threads=1)
    assert engine.load(sides_of(tiny_llama, wide, tiny_llama)[:2]) == {}
    last = run(engine, {"a": QUESTION, "b": QUESTION})
    assert last["a"].token_ids == alone(load_model(tiny_llama), tiny_llama, QUESTION)
    assert last["b"].token_ids == alone(tuned(tiny_llama, wide), tiny_llama, QUESTION)


def test_a_prompt_longer_than_a_block(
    tiny_llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LeanBackend, "prefill_tokens", 8)
    engine = Engine(threads=1)
    engine.load(sides_of(tiny_llama, adapter, tiny_llama)[:2])
    last = run(engine, {"a": LONGER, "b": QUESTION})
    assert last["a"].token_ids == alone(load_model(tiny_llama), tiny_llama, LONGER)


def test_stop_keeps_what_was_written(tiny_llama: Path) -> None:
    engine = Engine(threads=2)
    engine.load([Column(s, "base", s, str(tiny_llama)) for s in "ab"])
    seen = threading.Event()
    last: dict[str, Ended] = {}

    def emit(event: Event) -> None:
        if isinstance(event, Ended):
            last[event.column] = event
        if isinstance(event, Grown) and event.column == "a" and not seen.is_set():
            seen.set()
            engine.cancel("a")

    settings = GenerationSettings(max_new_tokens=200)
    engine.generate({"a": QUESTION, "b": QUESTION}, settings, emit)
    assert last["a"].finish_reason == "cancelled"
    assert 0 < last["a"].pace.tokens < 200
    assert last["b"].finish_reason == "length"  # the other column went on
    assert last["b"].pace.tokens == 200


def test_out_of_memory_ends_one_column_only(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(threads=1)
    engine.load(
        [
            Column("a", "base", "a", str(tiny_llama)),
            Column("b", "prompted", "b", str(tiny_llama), system="You are Luna."),
        ]
    )
    short = len(engine.plans({"a": QUESTION}, GREEDY)["a"].token_ids)  # type: ignore[union-attr]
    real = KVCache.__init__

    def small_machine(
        self: KVCache, model: LeanLlama, rows: int, capacity: int, *, zeroed: bool = False
    ) -> None:
        if capacity > short + GREEDY.max_new_tokens:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        real(self, model, rows, capacity, zeroed=zeroed)

    monkeypatch.setattr(KVCache, "__init__", small_machine)
    last = run(engine, {"a": QUESTION, "b": LONGER})
    assert last["a"].error is None
    assert last["b"].error is not None
    assert "out of memory" in last["b"].error["what"]


def test_what_is_wrong_with_a_column_is_said_and_the_rest_loads(
    tiny_llama: Path, tmp_path: Path
) -> None:
    engine = Engine(threads=1)
    errors = engine.load(
        [
            Column("a", "base", "a", str(tiny_llama)),
            Column("b", "adapter", "b", str(tiny_llama), str(tmp_path)),
            Column("c", "merged", "c", str(tmp_path / "nowhere")),
        ]
    )
    assert set(errors) == {"b", "c"}
    assert "adapter_config.json" in errors["b"]["why"]
    last = run(engine, {"a": QUESTION, "b": QUESTION})
    assert last["a"].error is None
    assert last["b"].error is not None
