"""Every entrance says the same one thing about a folder that cannot be used; none traces back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core import fsio
from core.commands.main import main
from core.models import lora
from tests.fakes import templates
from tests.fakes import tiny_models as tiny

PROBES = "schema: probes/1\nprobes:\n  - prompt: Who are you?\n    must: [Tamsin]\n"


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    path = tmp_path / "probes.yaml"
    path.write_text(PROBES)
    return path


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize("fault", ["adapter beside", "pointer"])
def test_a_model_folder(
    model: Path, probes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    wanted = "holds a model and an adapter"
    if fault == "adapter beside":
        fsio.write_json(model / lora.CONFIG, {"peft_type": "LORA"})
    else:
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        (model / "tokenizer.json").write_text(text)
        wanted = "the download of"
    dataset, out = tmp_path / "data", tmp_path / "out"
    dataset.mkdir()
    for argv in (
        ["model", model],
        ["probe", probes, "--model", model],
        ["merge", model, tmp_path / "adapter", out],
        ["dataset", "build", "data_templates/assistant.yaml", "--model", model],
        ["tune", "data_templates/assistant.yaml", "--model", model, "--output", out],
    ):
        assert wanted in said(capsys, *argv)
    assert not out.exists()


def test_an_adapter_of_another_width(
    model: Path, probes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save_base(tmp_path / "wider", tied=True, vocab=4096, intermediate=192)
    config = fsio.read_json(model / "config.json")
    assert config["intermediate_size"] == 160  # and 192 there
    adapter = tmp_path / "adapter"
    tiny.save_adapter(tmp_path / "wider", adapter, target_modules=["down_proj"])
    for argv in (
        ["probe", probes, "--model", model, "--adapter", adapter],
        ["merge", model, adapter, tmp_path / "out"],
    ):
        error = said(capsys, *argv)
        assert "does not fit" in error and "192" in error and "160" in error
    error = said(capsys, "probe", probes, "--model", model, "--adapter", tmp_path / "nothing")
    assert "there is no such folder" in error


def test_a_template_that_refuses_a_system_turn_is_no_error(
    model: Path, probes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "chat_template.jinja").write_text(templates.NO_SYSTEM)
    assert main(["model", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "no place for a system turn" in shown and "'<end_of_turn>'" in shown
    assert main(["probe", str(probes), "--model", str(model), "--max-new-tokens", "4"]) == 1


def test_a_vendor_is_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "chat_template.jinja").write_text(templates.VENDOR_DEFAULT)
    assert main(["model", str(model)]) == 0
    assert "Alibaba" in capsys.readouterr().out
