"""Adapters as other tools write them: beside a base that stays itself, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core import fsio
from core.chat.columns import Column
from core.chat.engine import Engine
from core.errors import UserError
from core.evaluation.pool import Pool, Source
from core.inference import adapters, resident, scoring
from core.inference.lean import LeanBackend
from core.inference.load import load_model
from core.inference.resident import Voice, choose
from core.inference.scoring import Passage
from core.models import lora
from tests.fakes import tiny_models

IDS = [1, 5, 9, 40, 7, 41, 300, 12]
#: As PEFT writes them; each with whether base and adapter may share their weights.
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({"target_modules": "all-linear"}, True),
    "two projections": ({"target_modules": ["q_proj", "v_proj"]}, True),
    "rslora with patterns": (
        {
            "target_modules": ["q_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"down_proj": 4},
            "alpha_pattern": {"q_proj": 3},
        },
        True,
    ),
    "regex of linear layers": ({"target_modules": r".*\.(q_proj|up_proj)"}, True),
    "regex that takes the embedding": (
        {"target_modules": r"model\.embed_tokens|.*\.q_proj"},
        False,
    ),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "token rows": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 300]}},
        False,
    ),
    "whole layers": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    "bias of the adapter": ({"target_modules": ["q_proj"], "lora_bias": True}, False),
    "trained biases": ({"target_modules": ["q_proj"], "bias": "lora_only"}, False),
    "pissa": ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, False),
    "olora": ({"target_modules": ["q_proj"], "init_lora_weights": "olora"}, False),
    "one layer": ({"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]}, True),
    "all but": ({"target_modules": "all-linear", "exclude_modules": ["up_proj"]}, True),
    "dora": ({"target_modules": ["q_proj"], "use_dora": True}, True),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_models.save_base(folder, "qwen2", tied=False)
    return folder


def make(base: Path, out: Path, **settings: Any) -> Path:
    """An adapter whose every trained part differs from where it began."""
    peft = tiny_models.attach(tiny_models.load(base), **settings)
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    peft.save_pretrained(str(out))
    return out


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].log_softmax(-1)


def scored(voice: Voice) -> torch.Tensor:
    """What the engine computes, for every token and the one after."""
    asked = [Passage(IDS[:1], IDS[1:])]
    return next(scoring.logits(voice, asked, end=True)).log_softmax(-1)


def by_peft(base: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel

    return logits_of(PeftModel.from_pretrained(tiny_models.load(base), str(adapter)).eval())


@pytest.mark.parametrize("kind", KINDS)
def test_base_column_is_the_base_and_adapter_column_is_peft(
    base: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, shared = KINDS[kind]
    adapter = make(base, tmp_path / "adapter", **settings)
    assert lora.shareable(adapter) is shared
    engine = _engine(base, adapter, monkeypatch)
    before, wanted = logits_of(tiny_models.load(base)), by_peft(base, adapter)
    assert (wanted - before).abs().max() > 1e-2
    columns = {column: scored(engine.voice(column)) for column in "ab"}
    assert (columns["a"] - before).abs().max() <= 1e-6
    torch.testing.assert_close(columns["b"], wanted, atol=2e-5, rtol=1e-5)


def _engine(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Both columns loaded; these models have no tokenizer."""
    from core.chat import engine as module

    monkeypatch.setattr(resident, "load_tokenizer", lambda path: None)
    monkeypatch.setattr(resident, "ChatTemplate", _NoTemplate)
    monkeypatch.setattr(
        module.catalog, "resolve", lambda model: tiny_models.ref_of(Path(model), "qwen2")
    )
    engine = Engine(threads=1)
    columns = [
        Column("a", "base", "a", str(base)),
        Column("b", "adapter", "b", str(base), str(adapter)),
    ]
    assert engine.load(columns) == {}
    return engine


class _NoTemplate:
    stop_ids: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any) -> None:
        pass


def test_the_lean_forward_is_not_used_where_rows_are_replaced(base: Path, tmp_path: Path) -> None:
    """Twelve ids would not show it: only two rows of the embedding differ."""
    settings = KINDS["token rows"][0]
    adapter = make(base, tmp_path / "rows", **settings)
    assert not isinstance(choose(load_model(base, adapter=adapter)), LeanBackend)
    assert isinstance(choose(load_model(base)), LeanBackend)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_the_base_after_those_of_an_adapter(
    base: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "load_tokenizer", lambda path: None)
    monkeypatch.setattr(resident, "ChatTemplate", _NoTemplate)
    adapter = make(base, tmp_path / "adapter", **KINDS[kind][0])
    model = tiny_models.ref_of(base, "qwen2")
    with Pool({"tuned": Source(model, adapter, merged=True), "base": Source(model)}) as pool:
        with pool.use("tuned") as tuned:
            found = scored(tuned.voice)
        with pool.use("base") as plain:
            assert (scored(plain.voice) - logits_of(tiny_models.load(base))).abs().max() <= 1e-6
    torch.testing.assert_close(found, by_peft(base, adapter), atol=2e-5, rtol=1e-5)


#: What newer releases and other trainers write beside the fields that everybody has.
FOREIGN = {
    "unsloth": {"auto_mapping": {"base_model_class": "Qwen2ForCausalLM", "unsloth_fixed": True}},
    "newer peft": {
        "corda_config": None,
        "eva_config": None,
        "qalora_group_size": 16,
        "use_qalora": False,
        "target_parameters": None,
        "alora_invocation_tokens": None,
        "ensure_weight_tying": False,
        "exclude_modules": None,
        "trainable_token_indices": None,
        "a_field_of_next_year": None,
        "another": False,
        "a_third": {},
    },
    "ms-swift": {"peft_version": "0.19.1", "lora_ga_config": None, "modules_to_save": []},
}


@pytest.mark.parametrize("tool", FOREIGN)
def test_fields_that_say_nothing_are_no_obstacle(base: Path, tmp_path: Path, tool: str) -> None:
    adapter = make(base, tmp_path / "adapter", target_modules=["q_proj"])
    wanted = by_peft(base, adapter)
    config = fsio.read_json(adapter / lora.CONFIG)
    fsio.write_json(adapter / lora.CONFIG, {**config, **FOREIGN[tool]})
    torch.testing.assert_close(logits_of(load_model(base, adapter=adapter)), wanted)


@pytest.mark.parametrize(
    "change",
    [
        {"twist_angle": 3},
        {"alora_invocation_tokens": [1, 2]},
        {"arrow_config": {"k": 1}},
        {"layer_replication": [[0, 2], [1, 2]]},
    ],
)
def test_fields_that_change_the_arithmetic_are_refused_by_name(
    base: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    adapter = make(base, tmp_path / "adapter", target_modules=["q_proj"])
    config = fsio.read_json(adapter / lora.CONFIG)
    fsio.write_json(adapter / lora.CONFIG, {**config, **change})
    with pytest.raises(UserError, match=next(iter(change))):
        load_model(base, adapter=adapter)


def _missing(folder: Path, base: Path) -> None:
    shutil.rmtree(folder)


def _inside(folder: Path, base: Path) -> None:
    """Trainers write one adapter a checkpoint into the folder that they were given."""
    for name in ("checkpoint-50", "checkpoint-100"):
        shutil.copytree(folder, folder.parent / "made" / name)
    shutil.rmtree(folder)
    (folder.parent / "made").rename(folder)


def _no_weights(folder: Path, base: Path) -> None:
    (folder / lora.WEIGHTS).unlink()


def _pointer(folder: Path, base: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
    (folder / lora.WEIGHTS).write_text(text)


def _torn(folder: Path, base: Path) -> None:
    file = folder / lora.WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])


def _prompt_tuning(folder: Path, base: Path) -> None:
    config = fsio.read_json(folder / lora.CONFIG)
    fsio.write_json(folder / lora.CONFIG, {**config, "peft_type": "PROMPT_TUNING"})


def _classifier(folder: Path, base: Path) -> None:
    config = fsio.read_json(folder / lora.CONFIG)
    fsio.write_json(folder / lora.CONFIG, {**config, "task_type": "SEQ_CLS"})


def _not_json(folder: Path, base: Path) -> None:
    (folder / lora.CONFIG).write_text("{")


def _wider(folder: Path, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    parts = load_file(folder / lora.WEIGHTS)
    wide = {k: torch.cat([v, v], -1) if "lora_A" in k else v for k, v in parts.items()}
    save_file(wide, folder / lora.WEIGHTS)


def _deeper(folder: Path, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    parts = load_file(folder / lora.WEIGHTS)
    save_file(
        {k.replace("layers.1", "layers.7"): v for k, v in parts.items()}, folder / lora.WEIGHTS
    )


def _no_magnitudes(folder: Path, base: Path) -> None:
    """PEFT would compute with the magnitudes of the base."""
    config = fsio.read_json(folder / lora.CONFIG)
    fsio.write_json(folder / lora.CONFIG, {**config, "use_dora": True})


def _no_head(folder: Path, base: Path) -> None:
    config = fsio.read_json(folder / lora.CONFIG)
    fsio.write_json(folder / lora.CONFIG, {**config, "modules_to_save": ["lm_head"]})


def _loftq(folder: Path, base: Path) -> None:
    config = fsio.read_json(folder / lora.CONFIG)
    fsio.write_json(folder / lora.CONFIG, {**config, "init_lora_weights": "loftq"})


def _megatron(folder: Path, base: Path) -> None:
    config = fsio.read_json(folder / lora.CONFIG)
    fsio.write_json(folder / lora.CONFIG, {**config, "megatron_config": {"x": 1}})


def _of_next_year(folder: Path, base: Path) -> None:
    config = fsio.read_json(folder / lora.CONFIG)
    fsio.write_json(folder / lora.CONFIG, {**config, "init_lora_weights": "twisted"})


def _fewer(folder: Path, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    parts = load_file(folder / lora.WEIGHTS)
    save_file({k: v for k, v in parts.items() if "layers.1" not in k}, folder / lora.WEIGHTS)


BROKEN: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "missing": (_missing, "no such folder"),
    "checkpoints inside": (_inside, "choose the adapter inside it: .*checkpoint-100"),
    "no weights": (_no_weights, "holds no adapter weights"),
    "git-lfs": (_pointer, "download of .* is not complete"),
    "torn": (_torn, "not a whole adapter file"),
    "another kind": (_prompt_tuning, "PROMPT_TUNING"),
    "another task": (_classifier, "task_type is 'SEQ_CLS'"),
    "no JSON": (_not_json, "not valid JSON"),
    "another width": (_wider, "q_proj is 64 wide in the model and 128 wide in the adapter"),
    "more layers": (_deeper, r"no layer model\.layers\.7"),
    "magnitudes of DoRA": (_no_magnitudes, "(?s)lacks 2 of the parts .*lora_magnitude_vector"),
    "a layer saved whole": (_no_head, "(?s)lacks 1 of the parts .*lm_head"),
    "LoftQ on a CPU": (_loftq, "cannot be loaded without a GPU"),
    "Megatron": (_megatron, "cannot be loaded"),
    "an unknown start": (_of_next_year, "(?s)cannot be loaded.*twisted"),
    "fewer layers": (_fewer, r"(?s)lacks 2 of the parts .*layers\.1"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("entrance", ["load", "attach", "pool"])
def test_a_broken_adapter_is_one_message(
    base: Path, tmp_path: Path, fault: str, entrance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "load_tokenizer", lambda path: None)
    monkeypatch.setattr(resident, "ChatTemplate", _NoTemplate)
    adapter = make(base, tmp_path / "adapter", target_modules=["q_proj"])
    change, message = BROKEN[fault]
    change(adapter, base)
    with pytest.raises(UserError, match=message):
        if entrance == "load":
            load_model(base, adapter=adapter)
        elif entrance == "attach":
            adapters.attach(load_model(base), adapter, "x")
        else:
            pool = Pool({"tuned": Source(tiny_models.ref_of(base, "qwen2"), adapter)})
            with pool, pool.use("tuned"):
                pass


def test_a_resized_vocabulary_is_said(base: Path, tmp_path: Path) -> None:
    model = tiny_models.load(base)
    model.resize_token_embeddings(328)
    peft = tiny_models.attach(
        model, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    peft.save_pretrained(str(tmp_path / "resized"))
    with pytest.raises(UserError, match="320 rows in the model and 328 in the adapter"):
        load_model(base, adapter=tmp_path / "resized")


def test_a_pickled_adapter_is_read_as_data(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    adapter = make(base, tmp_path / "adapter", target_modules=["q_proj"])
    wanted = by_peft(base, adapter)
    torch.save(load_file(adapter / lora.WEIGHTS), adapter / lora.PICKLED)
    (adapter / lora.WEIGHTS).unlink()
    torch.testing.assert_close(logits_of(load_model(base, adapter=adapter)), wanted)
    assert lora.shareable(adapter)


def test_config_that_is_no_object(base: Path, tmp_path: Path) -> None:
    adapter = make(base, tmp_path / "adapter", target_modules=["q_proj"])
    (adapter / lora.CONFIG).write_text(json.dumps([1]))
    with pytest.raises(UserError, match="holds no object"):
        lora.read(adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("exclude_modules", 1), ("target_modules", {"q_proj": 1}), ("modules_to_save", "lm_head"),
        ("rank_pattern", {"q_proj": "8"}), ("alpha_pattern", [1]), ("layers_pattern", 5),
        ("layers_to_transform", ["0"]), ("lora_alpha", "4"), ("r", True), ("use_dora", "no"),
        ("init_lora_weights", 3), ("base_model_name_or_path", ["x"]),
    ],
)  # fmt: skip
def test_a_setting_of_another_type_is_named(key: str, value: Any, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / lora.CONFIG).write_text(json.dumps({**config, key: value}))
    (tmp_path / lora.WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=key):
        lora.read(tmp_path)
