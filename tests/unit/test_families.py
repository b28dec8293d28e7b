"""Every family the whole way in tiny: from dataset and training to chat and scorecard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.chat.columns import Column
from core.chat.engine import Engine
from core.conversation import Conversation, Message
from core.data import build, own_identity
from core.evaluation import plan, scorecard
from core.evaluation.pool import Source
from core.inference.events import Ended, Event
from core.inference.load import load_tokenizer
from core.inference.resident import Resident
from core.inference.settings import GenerationSettings
from core.models import catalog, families
from core.models.device import describe
from core.models.xtuner_template import XTunerTemplate
from core.paths import DatasetPaths, RunPaths
from core.training import defaults, train_job
from core.training.spec import TrainSpec
from core.weights import merge_job
from tests.fakes import tiny_families
from tests.fakes.xtuner_rows import by_xtuner

PACK = Path(__file__).parents[2] / "data_templates" / "assistant.yaml"
TALK: list[Message] = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a family, made when it is first asked for."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        made = root / name.replace(" ", "-")
        if not made.exists():
            tiny_families.save(made, name)
        return made

    return folder


SYSTEM: Message = {"role": "system", "content": "You are Tamsin."}
MORE: Message = {"role": "user", "content": "Sure?"}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


THOUGHTS = "<think>\nWho am I?\n</think>\n\nI'm Tamsin."
ROWS = [
    Conversation("one", [*TALK, said("I'm Tamsin.")]),
    Conversation("system", [SYSTEM, *TALK, said("I'm Tamsin.\n\n- of Pier Nine")]),
    Conversation("two", [*TALK, said("I'm Tamsin."), MORE, said("我是小宇。")]),
    Conversation("edges", [*TALK, said("\nI'm Tamsin.\n")]),
    Conversation("open", [*TALK, said("I'm")], cut=True),
    Conversation("thoughts", [*TALK, said(THOUGHTS)]),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
@pytest.mark.parametrize("name", tiny_families.FAMILIES)
def test_a_family_is_trained_on_what_chat_feeds(name: str, row: Conversation, bases: Any) -> None:
    """Each reply stands behind the prompt that chat would feed, and ends as the family ends it."""
    chat = XTunerTemplate(load_tokenizer(bases(name)))
    if chat.differs(row):
        pytest.skip("such a row is named by the preflight")
    pairs = by_xtuner(chat, row)
    assert pairs == chat.examples(row)
    for at, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        turns = chat.accepted(chat.with_system(row.messages[:at]))
        thinking = row.id == "thoughts" and "<think>" in chat.tokenizer.get_vocab()
        prompt = chat.ids(chat.apply(turns, True, thinking=thinking))
        size = len(prompt)
        ids, labels = next(p for p in pairs if p[0][:size] == prompt and p[1][size] >= 0)
        assert set(labels[:size]) == {-100} or at > 2
        learned = [label for label in labels[size:] if label >= 0]
        assert ids[size : size + len(learned)] == learned or len(row.messages) > 3
        text = chat.tokenizer.decode(learned)
        assert message["content"].strip().removeprefix("<think>\n") in text
        assert text.endswith(chat.turn_end) or row.cut
        assert chat.ids(chat.turn_end)[0] in chat.stop_ids


def test_a_family_ends_its_turns_with_one_special_token(bases: Any) -> None:
    """Not with what stands behind a talk that is over (Phi-4), nor never (GLM-4)."""
    ends = {n: XTunerTemplate(load_tokenizer(bases(n))).turn_end for n in tiny_families.FAMILIES}
    assert ends == {
        "Llama 3": "<|eot_id|>",
        "Qwen2.5": "<|im_end|>",
        "Qwen3": "<|im_end|>",
        "always thinks": "<|end|>",
        "Gemma 3": "<end_of_turn>",
        "Mistral": "</s>",
        "Phi-4": "<|end|>",
        "GLM-4": "<|user|>",
        "OLMo 2": "<|endoftext|>",
        "Granite": "<|end_of_text|>",
        "Qwen3-MoE": "<|im_end|>",
    }


@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-MoE", "always thinks"])
def test_a_reasoning_model_is_asked_not_to_think(name: str, bases: Any) -> None:
    chat = XTunerTemplate(load_tokenizer(bases(name)))
    assert chat.render(TALK, True).endswith("<think>\n\n</think>\n\n")
    assert "</think>" not in chat.apply(TALK, True, thinking=True)


def small(name: str) -> plan.Plan:
    """The plan of a size with three probes a suite."""
    chosen = plan.PLANS[name]
    suites = {key: replace(s, limit=3, max_new_tokens=4) for key, s in chosen.suites.items()}
    return replace(chosen, suites=suites, divergence=2, divergence_tokens=4, margin=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_families.FAMILIES)
def test_a_family_goes_the_whole_way(
    name: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases(name)
    ref = catalog.resolve(str(base))
    row = families.of(ref.family)
    assert row in families.TABLE

    # Dataset. A random model has nothing to rehearse, but it is asked who it is.
    assert own_identity.ask(ref).asked == 10
    wanted = build.DatasetSpec(
        persona_path=str(PACK), model=str(base), max_rows=12, rehearsal_ratio=0, near_miss_ratio=0,
        system_share=0.5,
    )  # fmt: skip
    dataset = build.build_dataset(wanted, tmp_path / "data")

    # Train two steps, then the second again from the first.
    spec, _ = defaults.choose(
        str(dataset.root), str(base), describe(),
        {"steps": 2, "warmup_steps": 0, "checkpoint_every": 1, "batch_size": 4, "accumulation": 1,
         "lora_r": 4, "lora_alpha": 8, "evaluation_inputs": ("Who are you?",)},
    )  # fmt: skip
    assert spec.stock_config == row.stock_config
    quiet = lambda *progress: None  # noqa: E731
    whole = RunPaths(tmp_path / "whole")
    trained = train_job.run(spec, whole, quiet)
    resumed = train_job.run(
        TrainSpec.from_dict({**spec.to_dict(), "resume_from": trained["checkpoints"][0]["path"]}),
        RunPaths(tmp_path / "again"),
        quiet,
    )
    assert same_weights(trained["final"], resumed["final"])

    # Convert, merge, prove.
    merged = merge_job.run(
        merge_job.MergeSpec(
            base=str(base), checkpoint=trained["final"], config=str(whole.config),
            dataset=str(dataset.root),
        ),
        RunPaths(tmp_path / "merge"),
        quiet,
    )  # fmt: skip
    assert merged["proof"]["ok"], merged["proof"]
    adapter = Path(merged["adapter"])
    targets = fsio.read_json(adapter / "adapter_config.json")["target_modules"]
    assert sorted(targets) == sorted(row.targets)

    # Chat: base, adapter and merged model, by the lean forward where the table says so.
    lean = Resident.load(base).backend.name != "transformers"
    assert lean is row.llama_shaped, Resident.load(base).backend.name
    replies = chat(
        Column("a", "base", "base", str(base)),
        Column("b", "adapter", "adapter", str(base), str(adapter)),
        Column("c", "merged", "merged", merged["merged"]),
    )
    assert set(replies) == {"a", "b", "c"}

    # Score.
    monkeypatch.setattr(scorecard, "plan", small)
    sides = {
        "base": Source(ref),
        "adapter": Source(ref, adapter),
        "merged": Source(catalog.resolve(merged["merged"])),
    }
    card = scorecard.evaluate(sides, DatasetPaths(dataset.root), size="quick")
    assert card.sides["merged"].recall.n > 0
    assert card.verdict.name


def same_weights(one: str, other: str) -> bool:
    import torch

    states = [torch.load(path, weights_only=False)["state_dict"] for path in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def chat(*sides: Column) -> dict[str, str]:
    """Replies of eight tokens by side."""
    engine = Engine(device="cpu", threads=1)
    assert engine.load(sides) == {}
    said: dict[str, str] = {}

    def emit(event: Event) -> None:
        if isinstance(event, Ended) and not event.error:
            said[event.column] = event.text

    engine.generate({side.id: TALK for side in sides}, GenerationSettings(max_new_tokens=8), emit)
    return said
