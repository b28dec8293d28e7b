"""Code that a model folder brings: refused, trusted by its hash, asked for again on a change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.commands.main import main
from core.conversation import Conversation
from core.errors import UserError, UserErrors
from core.inference.load import load_model, load_tokenizer
from core.models import catalog, trust
from core.paths import RunPaths
from core.training import train_job
from core.training.spec import TrainSpec
from core.weights import manifest, merge_job
from tests.fakes import own_code


@pytest.fixture(autouse=True)
def not_yet_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_permitted", False)


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers copies the code that it imports; Python remembers the first place."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return own_code.save(tmp_path / "own")


def trusted(folder: Path) -> str:
    code = trust.needed(folder)
    assert code is not None
    trust.confirm(code, code.digest)
    return code.digest


def ran(folder: Path) -> bool:
    return (folder / own_code.RAN).exists()


def test_nothing_runs_before_it_is_trusted(folder: Path) -> None:
    trust.permit()
    with pytest.raises(UserError, match="brings its own Python code") as caught:
        load_model(folder, device="cpu")
    assert f"python -m core model {folder} --trust-remote-code" in str(caught.value)
    spec = TrainSpec(dataset=str(folder), model=str(folder))
    with pytest.raises(UserErrors, match="brings its own Python code"):
        train_job.check(spec)
    assert load_tokenizer(folder).chat_template  # an ordinary one needs no code
    assert not ran(folder)


def test_trusted_code_runs_in_jobs_and_not_in_the_server(folder: Path) -> None:
    trusted(folder)
    with pytest.raises(UserError, match="does not run here"):
        load_model(folder, device="cpu")
    assert not ran(folder)
    trust.permit()
    assert type(load_model(folder, device="cpu")).__name__ == "OwnForCausalLM"
    assert ran(folder)


@pytest.mark.parametrize("name", ["modeling_own.py", "configuration_own.py", "new.py", "config"])
def test_a_changed_byte_asks_again(folder: Path, name: str) -> None:
    trust.permit()
    trusted(folder)
    if name == "config":
        config = fsio.read_json(folder / "config.json")
        config["auto_map"]["AutoModelForCausalLM"] = "modeling_own.Other"
        fsio.write_json(folder / "config.json", config)
    else:
        with (folder / name).open("a") as file:
            file.write("#")
    with pytest.raises(UserError, match="which has changed since it was trusted"):
        load_model(folder, device="cpu")
    assert not ran(folder)


def test_nobody_in_a_training_process_runs_what_was_not_trusted(folder: Path) -> None:
    """XTuner's own code and a config edited by hand may ask for it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.training import compat

    compat.apply()
    trust.permit()
    for auto in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(UserError, match="brings its own Python code"):
            auto.from_pretrained(str(folder), trust_remote_code=True)
    assert not ran(folder)
    trusted(folder)
    found = AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=True)
    assert type(found).__name__ == "OwnForCausalLM"


def test_a_forged_record_trusts_nothing(folder: Path) -> None:
    trusted(folder)
    store = trust._store()
    record = fsio.read_json(store)
    fsio.write_json(store, {**record, "more": 1})
    with pytest.raises(UserError, match="brings its own"):
        trust.require(folder)


def test_code_of_another_repository_is_refused(folder: Path) -> None:
    config = fsio.read_json(folder / "config.json")
    config["auto_map"]["AutoConfig"] = "somebody/code--configuration.Config"
    fsio.write_json(folder / "config.json", config)
    with pytest.raises(UserError, match="from another repository: somebody/code"):
        trust.require(folder)


def test_a_tokenizer_with_code_is_code(tmp_path: Path) -> None:
    folder = own_code.save(tmp_path / "own", tokenizer=True)
    trust.permit()
    with pytest.raises(UserError, match="brings its own Python code"):
        load_tokenizer(folder)
    trusted(folder)
    assert type(load_tokenizer(folder)).__name__ == "OwnTokenizer"


def test_the_command_shows_the_code_and_takes_its_hash(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", str(folder), "--trust-remote-code"]) == 1
    shown = capsys.readouterr().out
    assert "class OwnForCausalLM(LlamaForCausalLM)" in shown
    assert not ran(folder)
    assert main(["model", str(folder), "--trust-remote-code", "0" * 64]) == 2
    assert "not trusted" in capsys.readouterr().err
    command = shown.splitlines()[-1].split()
    assert command[:4] == ["python", "-m", "core", "model"]
    assert main(command[3:]) == 0
    assert "trusted in this workspace" in capsys.readouterr().out
    load_model(folder, device="cpu")


def test_a_folder_without_need_for_its_code_is_as_before(tmp_path: Path) -> None:
    from tests.fakes import tiny_families

    tiny_families.save(tmp_path / "plain", "Qwen2.5")
    config = fsio.read_json(tmp_path / "plain" / "config.json")
    (tmp_path / "plain" / "modeling_x.py").write_text("raise SystemExit\n")
    fsio.write_json(
        tmp_path / "plain" / "config.json", {**config, "auto_map": {"AutoConfig": "modeling_x.C"}}
    )
    assert trust.needed(tmp_path / "plain") is None
    load_model(tmp_path / "plain", device="cpu")


def test_a_folder_that_names_no_code_costs_no_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge asks first, and needs nothing of transformers."""
    fsio.write_json(tmp_path / "config.json", {"model_type": "llama"})
    fsio.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Nobody's"})
    for name in ("_own_types", "_own_tokenizer"):
        monkeypatch.setattr(trust, name, lambda *_: pytest.fail("transformers was asked"))
    assert trust.needed(tmp_path) is None


def test_a_hub_repository_comes_with_code_only_when_it_was_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def download(model: str, allow_patterns: list[str]) -> str:
        asked.append("*.py" in allow_patterns)
        return str(place)

    place = own_code.save(tmp_path / "models--some--own" / "snapshots" / "1")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    catalog.resolve("some/own")
    trusted(place)
    catalog.resolve("some/own")
    catalog.resolve("some/other")
    catalog.resolve("some/other", code=True)
    assert asked == [False, True, False, True]


@pytest.mark.slow
def test_a_trusted_model_goes_the_whole_way_and_is_recorded(folder: Path, tmp_path: Path) -> None:
    trust.permit()
    digest = trusted(folder)
    rows = [
        Conversation(f"r{i}", [{"role": "user", "content": f"Question {i}?"},
                               {"role": "assistant", "content": f"I'm Luna, {i}."}])
        for i in range(8)
    ]  # fmt: skip
    fsio.write_jsonl(tmp_path / "data" / "train.jsonl", (row.to_row() for row in rows))
    spec = TrainSpec(
        dataset=str(tmp_path / "data"), model=str(folder), steps=2, warmup_steps=0, batch_size=4,
        checkpoint_every=1, lora_r=4, lora_alpha=8, evaluation_inputs=(),
    )  # fmt: skip
    quiet = lambda *progress: None  # noqa: E731
    run = RunPaths(tmp_path / "run")
    result = train_job.run(spec, run, quiet)
    record = fsio.read_json(run.work / "training.json")["remote_code"]
    assert record["sha256"] == digest
    assert set(record["files"]) == {"configuration_own.py", "modeling_own.py"}
    merged = merge_job.run(
        merge_job.MergeSpec(base=str(folder), checkpoint=result["final"], config=str(run.config)),
        RunPaths(tmp_path / "merge"),
        quiet,
    )
    assert merged["proof"]["ok"]
    about = manifest.read(Path(merged["merged"]))
    assert about["remote_code"]["sha256"] == digest
    # The merged folder carries the same code, which is trusted as it is.
    assert type(load_model(Path(merged["merged"]), device="cpu")).__name__ == "OwnForCausalLM"
