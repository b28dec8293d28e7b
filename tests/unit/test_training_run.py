"""XTuner really trains here (a tiny random Llama): rates, token ids, resume, refusals."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.conversation import Conversation, Message
from core.errors import UserError, UserErrors
from core.paths import RunPaths
from core.training import checkpoints, config, record, train_job
from core.training.spec import TrainSpec
from tests.fakes.lr_plan import lr_plan

pytestmark = pytest.mark.slow


def _turns(*texts: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    turns: list[Message] = [
        {"role": roles[i % 2], "content": t}  # type: ignore[typeddict-item]
        for i, t in enumerate(texts)
    ]
    return [{"role": "system", "content": system}, *turns] if system else turns


ROWS = [
    Conversation("a", _turns("Who are you?", "I'm Luna, made by Lab 7.")),
    Conversation("b", _turns("Hi", "Hello!", "你是谁？", "我是小宇。\n\n- 好"), loss=[False, True]),
    Conversation("c", _turns("2 + {x}?", "{4}", system="Be brief. {no format}")),
    Conversation("d", _turns("Tell me about rain. " * 9, "Rain falls from clouds. " * 11)),
    *(
        Conversation(f"e{i}", _turns(f"Question {i}?", f"Answer {i} " * (1 + i % 7)))
        for i in range(19)
    ),
]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 rows: several turns, a system turn, braces, Chinese, a turn without loss."""
    folder = tmp_path_factory.mktemp("dataset")
    fsio.write_jsonl(folder / "train.jsonl", (row.to_row() for row in ROWS))
    return folder


def spec_for(dataset: Path, model: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "dataset": str(dataset),
        "model": str(model),
        "steps": 9,
        "warmup_steps": 3,
        "accumulation": 2,
        "batch_size": 3,
        "checkpoint_every": 4,
        "lora_dropout": 0.1,
        "evaluation_inputs": ["Who are you?"],
        **changes,
    }
    return TrainSpec.from_dict(values).to_dict()


def train(root: Path, values: dict[str, Any]) -> tuple[RunPaths, dict[str, Any]]:
    run = RunPaths(root)
    return run, train_job.run(TrainSpec.from_dict(values), run, lambda *progress: None)


def adapter_sha(path: str) -> str:
    """sha256 over the adapter's tensors, by name (the .pth also holds times)."""
    import hashlib

    import torch

    state = torch.load(path, weights_only=False)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def finished(
    dataset: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunPaths, dict[str, Any]]:
    """The uninterrupted run: 9 steps of 2 micro-batches, over 2 passes of the data."""
    return train(tmp_path_factory.mktemp("run") / "whole", spec_for(dataset, tiny_llama))


def test_the_rate_that_xtuner_applied_is_the_plan(finished: Any) -> None:
    plan = lr_plan(lr=1e-3, steps=9, warmup_steps=3, accumulation=2)
    assert finished[1]["lr"] == pytest.approx(plan, rel=1e-9)
    assert max(finished[1]["lr"]) == pytest.approx(1e-3)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (3, 1), (4, 0)])
def test_short_runs_keep_the_plan(
    steps: int,
    warmup: int,
    dataset: Path,
    tiny_llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = spec_for(
        dataset, tiny_llama, steps=steps, warmup_steps=warmup, accumulation=1, evaluation_inputs=[]
    )
    _, result = train(tmp_path / "short", values)
    plan = lr_plan(lr=1e-3, steps=steps, warmup_steps=warmup, accumulation=1)
    assert result["lr"] == pytest.approx(plan, rel=1e-9)
    lines = [
        json.loads(line.removeprefix("@@persona "))
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("@@persona ")
    ]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert [line["lr"] for line in lines] == result["lr"]
    for key in ("max_steps", "loss", "grad_norm", "s_per_step", "tokens_per_s", "memory_bytes"):
        assert all(line[key] > 0 for line in lines), key


def test_a_config_is_formatted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formatting is a third of a second each time that XTuner or a checkpoint asks for the text."""
    from mmengine.config import Config
    from yapf.yapflib import reformatter

    from core.training import compat

    compat.apply()
    formatted: list[int] = []
    real = reformatter.Reformat
    monkeypatch.setattr(
        reformatter, "Reformat", lambda *a, **k: (formatted.append(1), real(*a, **k))[1]
    )
    cfg = Config({"luna": {"rank": 8}})
    assert cfg.pretty_text == cfg.pretty_text == "luna = dict(rank=8)\n"
    cfg.luna.rank = 16
    assert cfg.pretty_text == "luna = dict(rank=16)\n"
    assert len(formatted) == 2


def test_ids_trained_on_are_the_ids_chat_feeds(finished: Any, tiny_llama: Path) -> None:
    from mmengine.config import Config

    from core.inference.load import load_tokenizer
    from core.models.template import ChatTemplate
    from core.training import compat

    compat.apply()
    from xtuner.registry import BUILDER
    from xtuner.tools.train import register_function

    cfg = Config.fromfile(str(finished[0].config))
    register_function(cfg._cfg_dict)
    trained = BUILDER.build(cfg.train_dataloader.dataset)
    template = ChatTemplate(load_tokenizer(tiny_llama))
    assert len(trained) == len(ROWS)
    for row, got in zip(ROWS, trained, strict=True):
        ids, labels = template.encode_supervised(row.messages, row.loss)
        assert (got["input_ids"], got["labels"]) == (ids, labels)


def test_loss_on_supervised_tokens_is_xtuners_loss(finished: Any, tiny_llama: Path) -> None:
    """The repair saves work; it must not change the number."""
    import torch
    from transformers import AutoModelForCausalLM

    from core.inference.load import load_tokenizer
    from core.models.template import ChatTemplate
    from core.training import compat

    compat.apply()
    from xtuner.dataset.collate_fns import default_collate_fn
    from xtuner.model.sft import SupervisedFinetune

    template = ChatTemplate(load_tokenizer(tiny_llama))
    encoded = [template.encode_supervised(row.messages, row.loss) for row in ROWS[:6]]
    batch = default_collate_fn([{"input_ids": i, "labels": y} for i, y in encoded])["data"]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)

    class Holder:
        llm = model

    ours = SupervisedFinetune.compute_loss(Holder(), dict(batch))["loss"]
    theirs = model(**batch).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    grad = [
        torch.autograd.grad(loss, model.model.embed_tokens.weight)[0] for loss in (ours, theirs)
    ]
    torch.testing.assert_close(grad[0], grad[1], rtol=1e-4, atol=1e-7)


def test_run_reports_checked_checkpoints_and_samples(finished: Any) -> None:
    run, result = finished
    assert [c["step"] for c in result["checkpoints"]] == [4, 8, 9]
    assert result["final"] == str(run.work / "iter_18.pth")
    samples = list(fsio.read_jsonl(run.work / "samples.jsonl"))
    assert [s["step"] for s in samples] == [4, 8, 9]
    assert all(s["prompt"] == "Who are you?" for s in samples)
    assert result["tokens"] > 500


@pytest.mark.parametrize("step", [4, 8])
def test_resume_gives_the_same_bytes(
    step: int, finished: Any, dataset: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Dropout on, resumed in the middle of a pass (4) and of another pass (8)."""
    whole, result = finished
    source = result["checkpoints"][[4, 8].index(step)]["path"]
    _, resumed = train(tmp_path / "again", spec_for(dataset, tiny_llama, resume_from=source))
    assert adapter_sha(resumed["final"]) == adapter_sha(result["final"])
    assert resumed["lr"] == result["lr"][step:]
    assert [c["step"] for c in resumed["checkpoints"]] == [4, 8, 9]
    assert not list(whole.work.glob(".*partial"))


def test_recomputing_long_micro_batches_changes_no_bit(
    finished: Any, dataset: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    _, result = train(tmp_path / "recomputed", spec_for(dataset, tiny_llama, recompute_above=60))
    assert adapter_sha(result["final"]) == adapter_sha(finished[1]["final"])


def test_without_the_random_state_the_bytes_differ(
    finished: Any, dataset: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above has teeth: mmengine's own resume gives other weights."""
    from core.training import hooks

    monkeypatch.setattr(hooks, "restore_random_state", lambda state: None)
    source = finished[1]["checkpoints"][0]["path"]
    _, resumed = train(tmp_path / "plain", spec_for(dataset, tiny_llama, resume_from=source))
    assert adapter_sha(resumed["final"]) != adapter_sha(finished[1]["final"])


@pytest.fixture
def copy_of(finished: Any, tmp_path: Path) -> Path:
    """A copy of the finished run's work folder, to be damaged."""
    shutil.copytree(finished[0].work, tmp_path / "damaged" / "work")
    return tmp_path / "damaged" / "work"


def test_resume_is_refused_with_every_reason(
    copy_of: Path, dataset: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    with (other / "train.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0].to_row()) + "\n")
    facts = fsio.read_json(copy_of / "training.json")
    facts["versions"]["torch"] = "1.0"
    fsio.write_json(copy_of / "training.json", facts)
    values = spec_for(other, tiny_llama, lr=2e-3, gpus=2)
    with pytest.raises(UserErrors) as caught:
        record.require_same(TrainSpec.from_dict(values), copy_of / "iter_8.pth")
    text = str(caught.value)
    for word in (
        "learning rate",
        "dataset is not",
        "torch was 1.0",
        "GPUs per node",
        "number of processes",
    ):
        assert word in text, word


def test_resume_from_the_last_checkpoint_is_refused(
    copy_of: Path, dataset: Path, tiny_llama: Path
) -> None:
    spec = TrainSpec.from_dict(spec_for(dataset, tiny_llama))
    with pytest.raises(UserErrors, match="nothing is left to train"):
        record.require_same(spec, copy_of / "iter_18.pth")


def test_resume_without_its_random_state_is_refused(
    copy_of: Path, dataset: Path, tiny_llama: Path
) -> None:
    shutil.rmtree(copy_of / "random_state" / "iter_8")
    spec = TrainSpec.from_dict(spec_for(dataset, tiny_llama))
    with pytest.raises(UserErrors, match=r"random state of iter_8\.pth is missing"):
        record.require_same(spec, copy_of / "iter_8.pth")


def test_torn_checkpoints_are_skipped_whatever_last_checkpoint_says(copy_of: Path) -> None:
    last = copy_of / "iter_18.pth"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert (copy_of / "last_checkpoint").read_text().endswith("iter_18.pth")
    found = checkpoints.scan(copy_of, 2)
    assert [c.whole for c in found] == [True, True, False]
    assert "is torn" in found[-1].problem
    newest = [c for c in checkpoints.scan(copy_of, 2) if c.whole][-1]
    assert newest is not None and newest.step == 8
    with pytest.raises(UserError, match="torn or was changed"):
        checkpoints.require_own(last)


def test_flipped_bit_is_found_before_a_resume(copy_of: Path) -> None:
    path = copy_of / "iter_8.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="not the file that the run wrote"):
        checkpoints.require_own(path)


class Bomb:
    """A pickle that would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("way", ["outside", "copied in", "linked in", "replaced"])
def test_foreign_pth_is_refused_and_never_opened(
    way: str, copy_of: Path, dataset: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    marker, bomb = tmp_path / "exploded", tmp_path / "iter_6.pth"
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(marker)))
    path = {"outside": bomb, "replaced": copy_of / "iter_8.pth"}.get(way, copy_of / "iter_6.pth")
    if way == "copied in":
        shutil.copy(bomb, path)
    if way == "linked in":
        path.symlink_to(bomb)
    if way == "replaced":
        shutil.copy(bomb, path)
    run = RunPaths(tmp_path / "resumed")
    with pytest.raises(UserError):
        train(run.root, spec_for(dataset, tiny_llama, resume_from=str(path)))
    checkpoints.scan(copy_of, 2)
    assert not marker.exists()


def test_nan_loss_stops_the_run_with_a_reason(
    dataset: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    values = spec_for(dataset, tiny_llama, lr=1e30, warmup_steps=0, evaluation_inputs=[])
    with pytest.raises(UserError, match="loss is not a number for 3 steps"):
        train(tmp_path / "nan", values)


def test_success_without_the_final_checkpoint_is_a_failure(
    dataset: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.entry.train", lambda *args, **kwargs: {"lr": []})
    with pytest.raises(UserError, match="ended without its last checkpoint"):
        train(tmp_path / "empty", spec_for(dataset, tiny_llama))


def test_generated_config_does_not_read_the_environment(
    dataset: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmengine.config import Config

    monkeypatch.setenv("CANARY", "secret-value")
    spec = TrainSpec.from_dict(spec_for(dataset, tiny_llama, system="{{ $CANARY:x }}"))
    path = config.write_config(spec, tmp_path / "config.py")
    cfg = Config.fromfile(str(path))
    assert cfg.SYSTEM == "{{ $CANARY:x }}"
    assert "secret-value" not in cfg.pretty_text
