"""A base that lacks weights, or whose weights are no numbers, is named before anything starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.commands import main as cli
from core.errors import UserError
from core.inference import whole
from core.inference.load import load_model
from core.pipeline import tune_job
from core.pipeline.stages import TuneSpec
from core.training.preflight import preflight
from core.training.spec import TrainSpec
from tests.fakes import tiny_models as tiny

NORM = "model.layers.1.input_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
PACK = "data_templates/assistant.yaml"
Tensors = dict[str, torch.Tensor]


def _edited(edit: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        edit(tensors)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})

    return change


def _sharded(model: Path, left_out: str) -> dict[str, str]:
    """Two shards, of which none has one tensor that the index names."""
    tensors = load_file(model / "model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
    for name in names:
        part = {k: v for k, v in tensors.items() if where[k] == name and k != left_out}
        save_file(part, model / name, {"format": "pt"})
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": where}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return where


def _nobody_has_it(model: Path) -> None:
    _sharded(model, UP)


def _a_shard_is_gone(model: Path) -> None:
    _sharded(model, UP)
    (model / "model-00002-of-00002.safetensors").unlink()


def _bin_with_nan(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors[NORM][5] = float("nan")
    torch.save(tensors, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor less": (_edited(lambda t: t.pop(UP)), f"weights are not in its files, e.g. {UP}"),
    "a norm less": (_edited(lambda t: t.pop(NORM)), f"weights are not in its files, e.g. {NORM}"),
    "the index names what nobody has": (_nobody_has_it, f"not in its files, e.g. {UP}"),
    "a shard is gone": (_a_shard_is_gone, "model-00002-of-00002.safetensors, which is not there"),
    "another shape": (
        _edited(lambda t: t.update({NORM: torch.ones(63)})),
        rf"another shape than its config says, e.g. {NORM} \(\[63\], not \[64\]\)",
    ),
    "one NaN": (_edited(lambda t: t[UP][3, 7].fill_(float("nan"))), f"{UP} in .* holds NaN"),
    "one infinity": (_edited(lambda t: t[UP][0, 0].fill_(float("-inf"))), f"{UP} in .* holds NaN"),
    "NaN in a bin": (_bin_with_nan, f"{NORM} in pytorch_model.bin holds NaN"),
}


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.mark.parametrize("fault", BROKEN)
def test_preflight_tune_and_load_say_it(
    model: Path, tmp_path: Path, workspace: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same words from the Train page's list, the start page's button, the command, the chat."""
    change, message = BROKEN[fault]
    change(model)
    found = preflight(TrainSpec(dataset="nowhere", model=str(model))).problems
    assert any(pytest.RaisesExc(UserError, match=message).matches(p) for p in found), found
    spec = TuneSpec(persona=str(Path(PACK).resolve()), model=str(model))
    with pytest.raises(UserError, match=message):
        tune_job.check(tune_job.Spec(spec=spec, output=str(tmp_path / "page")))
    out = tmp_path / "cli"
    assert cli.main(["tune", PACK, "--model", str(model), "--output", str(out)]) == 2
    assert not out.exists() and "model" in capsys.readouterr().err
    with pytest.raises(UserError, match=message):
        load_model(model, device="cpu")


def test_a_whole_folder_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preflight is drawn with each change of the form."""
    whole.require_whole(model)
    monkeypatch.setattr(whole, "open_model", lambda *a, **k: pytest.fail("looked again"))
    monkeypatch.setattr(whole, "broken", lambda file: pytest.fail("read again"))
    whole.require_whole(model)


def test_a_folder_that_changed_is_read_again(model: Path) -> None:
    whole.require_whole(model)
    BROKEN["one NaN"][0](model)
    with pytest.raises(UserError, match="broken"):
        whole.require_whole(model)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_an_adapter_that_is_no_numbers(model: Path, tmp_path: Path, value: str) -> None:
    adapter = tmp_path / "adapter"
    tiny.save_adapter(model, adapter, target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = sorted(tensors)[-1]
    tensors[key][0, 0] = float(value)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"{key} holds NaN or infinity"):
        load_model(model, device="cpu", adapter=adapter)
