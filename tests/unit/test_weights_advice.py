"""Every fix that a message of the merge names gets past that message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models.catalog import ModelRef
from core.weights.convert import convert
from core.weights.merge import MergeSettings, merge
from core.weights.prove import ProofPlan, prove
from core.weights.source import read_config
from tests.fakes import tiny_models as tiny
from tests.unit.test_weights_convert import _run


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> ModelRef:
    return tiny.ref_of(tiny_llama)


#: Adapters whose message says "merge with engine 'xtuner'".
BY_PEFT: dict[str, dict[str, Any]] = {
    "trainable_token_indices": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [5, 300]},
    },
    "init_lora_weights='pissa'": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    "init_lora_weights='olora'": {"target_modules": ["q_proj"], "init_lora_weights": "olora"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_PEFT)
def test_engine_xtuner_merges_what_the_message_sends_to_it(
    base: ModelRef, tmp_path: Path, name: str
) -> None:
    tiny.save_adapter(base.path, tmp_path / "adapter", **BY_PEFT[name])
    with pytest.raises(UserError, match="engine 'xtuner'") as found:
        merge(base, tmp_path / "adapter", tmp_path / "out")
    assert name in str(found.value) and not (tmp_path / "out").exists()
    out = merge(base, tmp_path / "adapter", tmp_path / "out", MergeSettings(engine="xtuner"))
    assert prove(base, tmp_path / "adapter", out, ProofPlan(nf4=False)).ok


@pytest.mark.slow
def test_trained_biases_are_merged_by_engine_xtuner(tmp_path: Path, bundled_model: Path) -> None:
    base = tiny.save_base(tmp_path / "base", "qwen2", tied=False, tokenizer=bundled_model)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj"], bias="lora_only")
    with pytest.raises(UserError, match="engine 'xtuner'"):
        merge(base, tmp_path / "adapter", tmp_path / "out")
    out = merge(base, tmp_path / "adapter", tmp_path / "out", MergeSettings(engine="xtuner"))
    assert prove(base, tmp_path / "adapter", out, ProofPlan(nf4=False)).ok


def test_no_fix_is_named_where_none_is_known(base: ModelRef, tmp_path: Path) -> None:
    from core import fsio

    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "adapter" / "adapter_config.json"
    config = fsio.read_json(path)
    for change in ({"layer_replication": [[0, 2]]}, {"twist_angle": 3}):
        fsio.write_json(path, {**config, **change})
        with pytest.raises(UserError, match=next(iter(change))) as found:
            merge(base, tmp_path / "adapter", tmp_path / "out")
        assert "fix:" not in str(found.value)


def test_a_base_resized_as_the_message_says_fits(base: ModelRef, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tiny.load(base.path)
    model.resize_token_embeddings(4104)
    peft = tiny.attach(model, target_modules=["q_proj", "embed_tokens"])
    peft.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="resize the base's vocabulary first"):
        merge(base, tmp_path / "adapter", tmp_path / "out")
    again = tiny.load(base.path)
    again.resize_token_embeddings(4104)
    again.model.embed_tokens.weight.data[4096:] = (
        peft.get_base_model().model.embed_tokens.weight.data[4096:]
    )
    again.save_pretrained(tmp_path / "resized")
    AutoTokenizer.from_pretrained(base.path).save_pretrained(tmp_path / "resized")
    resized = tiny.ref_of(tmp_path / "resized")
    out = merge(resized, tmp_path / "adapter", tmp_path / "out")
    assert prove(resized, tmp_path / "adapter", out, ProofPlan(nf4=False)).ok


@pytest.mark.slow
def test_a_config_that_computes_its_values_is_converted_by_engine_xtuner(tmp_path: Path) -> None:
    """One that a run wrote, as it does with a config that the user gave as text."""
    from core import seal

    checkpoint, config, *_ = _run(tmp_path, target_modules=["q_proj"])
    config.write_text(config.read_text().replace("lora_alpha=24", "lora_alpha=3 * rank"))
    assert "3 * rank" in config.read_text()
    with pytest.raises(UserError, match="engine 'xtuner'"):
        read_config(config)
    with pytest.raises(UserError, match="engine 'xtuner'"):
        convert(checkpoint, config, tmp_path / "out")
    seal.seal(config)
    out = convert(checkpoint, config, tmp_path / "out", engine="xtuner")
    assert (out / "adapter_model.safetensors").is_file()
