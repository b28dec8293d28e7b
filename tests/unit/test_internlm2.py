"""InternLM2 from its published folder, held against InternLM's own code and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core import fsio
from core.conversation import Message
from core.inference.fused import unsupported
from core.inference.load import load_model, load_tokenizer
from core.inference.resident import choose
from core.models.catalog import resolve
from core.models.xtuner_template import XTunerTemplate
from core.weights.merge import MergeSettings, merge
from core.weights.prove import ProofPlan, prove
from tests.fakes import published_internlm2 as published
from tests.fakes import tiny_internlm2 as tiny
from tests.fakes.tiny_models import attach

EXPECTED: dict[str, list[int]] = fsio.read_json(tiny.DATA / "expected_ids.json")
IDS = (torch.arange(200).view(2, 100) * 463 + 11) % 92544


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("internlm2")
    tiny.save(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("text", EXPECTED)
def test_token_ids_are_those_of_internlms_own_tokenizer(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == EXPECTED[text]
    assert tokenizer.decode(ids) == text


def test_a_chat_of_three_turns_is_its_pieces(tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    words = ["Hello, who are you?", "我是小石，由望江实验室打造。", "你好，你是谁？"]
    roles = ["user", "assistant", "user"]
    talk: list[Message] = [
        {"role": role, "content": text}  # type: ignore[typeddict-item]
        for role, text in zip(roles, words, strict=True)
    ]
    wanted = [1]
    for role, text in zip(roles, words, strict=True):
        wanted += [92543, *ids(role), 364, *EXPECTED[text], 92542, 364]
    template = XTunerTemplate(tokenizer)
    assert template.encode(talk) == [*wanted, 92543, 525, 11353, 364]
    assert wanted[:4] == [1, 92543, 1008, 364]
    assert set(template.stop_ids) == {2, 92542}
    assert template.xtuner_template()["SUFFIX"] == "<|im_end|>"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": True, "rope_scaling": {"type": "linear", "factor": 3.0}},
        {"bias": True, "max_position_embeddings": 64, "num_attention_heads": 8},
        {"rope_scaling": None, "num_key_value_heads": 4},
    ],
    ids=["gqa", "linear-bias", "dynamic-beyond-its-length", "plain-mha"],
)
def test_logits_are_those_of_the_published_code(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = tiny.save(tmp_path / "base", **changes)
    ours = load_model(tmp_path / "base")
    with torch.inference_mode():
        got = ours(input_ids=IDS).logits
    assert (got - published.logits(theirs, IDS)).abs().max() < 1e-4
    ours.save_pretrained(tmp_path / "saved")  # published names come out again
    assert torch.equal(
        published.logits(tiny.reopen_as(tmp_path / "saved", tmp_path / "base"), IDS),
        published.logits(theirs, IDS),
    )


def test_the_lean_path_takes_it(tmp_path: Path) -> None:
    tiny.save(tmp_path / "base", bias=True)
    model = load_model(tmp_path / "base")
    assert unsupported(model) == ""
    assert type(choose(model)).__name__ == "LeanBackend"


LORA = {
    "all": {"target_modules": "all-linear"},
    "some": {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "use_dora": True},
    "head": {"target_modules": ["k_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "ranks": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 4},
        "alpha_pattern": {"q_proj": 5},
    },
}


@pytest.mark.parametrize("lora", LORA)
@pytest.mark.filterwarnings("ignore:.*`use_rslora`.*")
def test_a_merge_is_a_published_folder(tmp_path: Path, lora: str) -> None:
    base_folder = tmp_path / "internlm2-tiny"
    tiny.save(base_folder, bias=True)
    base = resolve(str(base_folder))
    tuned = attach(load_model(base.path), **LORA[lora])
    tuned.save_pretrained(tmp_path / "adapter")
    merged = merge(base, tmp_path / "adapter", tmp_path / "merged")
    with torch.inference_mode():
        wanted = tuned(input_ids=IDS).logits
        assert (load_model(base.path)(input_ids=IDS).logits - wanted).abs().max() > 0.05
    assert (published.logits(tiny.reopen(merged), IDS) - wanted).abs().max() < 1e-4
    config = fsio.read_json(merged / "config.json")
    assert config["auto_map"] == fsio.read_json(base.path / "config.json")["auto_map"]
    names = {p.name for p in base.path.iterdir()}
    assert names - {p.name for p in merged.iterdir()} == set()
    proof = prove(base, tmp_path / "adapter", merged, ProofPlan(nf4=False))
    assert proof.ok
    assert not any("copied only if asked" in note for note in proof.notes)  # they are there


def test_xtuners_merge_gives_the_published_folder_too(tmp_path: Path) -> None:
    base_folder = tmp_path / "internlm2-tiny"
    tiny.save(base_folder)
    base = resolve(str(base_folder))
    tuned = attach(load_model(base.path), target_modules="all-linear")
    tuned.save_pretrained(tmp_path / "adapter")
    merged = merge(base, tmp_path / "adapter", tmp_path / "merged", MergeSettings(engine="xtuner"))
    with torch.inference_mode():
        wanted = tuned(input_ids=IDS).logits
    assert (published.logits(tiny.reopen(merged), IDS) - wanted).abs().max() < 0.1  # float16
    assert prove(base, tmp_path / "adapter", merged, ProofPlan(nf4=False)).ok


def test_a_faithful_merge_starts_from_what_nf4_held(tmp_path: Path) -> None:
    """Queries, keys and values were quantized each by itself, not as one matrix."""
    base_folder = tmp_path / "internlm2-tiny"
    tiny.save(base_folder)
    base = resolve(str(base_folder))
    tuned = attach(load_model(base.path, nf4=True), target_modules="all-linear")
    tuned.save_pretrained(tmp_path / "adapter")
    merged = merge(base, tmp_path / "adapter", tmp_path / "m", MergeSettings(faithful_nf4=True))
    with torch.inference_mode():
        wanted = tuned(input_ids=IDS).logits
    assert (published.logits(tiny.reopen(merged), IDS) - wanted).abs().max() < 1e-4
