"""Figures while training: they say what they should, change no bit, and end hopeless runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.conversation import Conversation
from core.data import own_identity
from core.data.generation import held_out, identity_rows
from core.data.own_identity import OwnIdentity
from core.errors import UserError
from core.inference import scoring
from core.inference.resident import Voice
from core.jobs import api, reasons, records
from core.jobs.state import Reason
from core.jobs.watcher import OutputWatcher
from core.models import catalog
from core.paths import TEMPLATES, DatasetPaths, RunPaths
from core.persona.persona import load_persona
from core.text.intervals import Rate
from core.training import faults, figures, health, recipe
from core.training.figures import Figures, Margin
from core.training.health import Health
from core.training.spec import TrainSpec

NAMES = {"name": "Luna", "author": "Riverside Lab"}


def make_dataset(folder: Path) -> Path:
    """Two languages of identity rows, probes, and general rows as if the base had written them."""
    at = DatasetPaths(folder)
    folder.mkdir(parents=True)
    persona = load_persona(TEMPLATES / "assistant.yaml", NAMES)
    at.persona.write_text(persona.dump(), encoding="utf-8")
    probes = held_out(persona, locales=["en", "zh"], seed=0)
    fsio.write_jsonl(at.probes, map(asdict, probes))
    rows = list(identity_rows(persona, locales=["en", "zh"], seed=0, limit=60))
    for i in range(20):
        turns = [
            {"role": "user", "content": f"What comes after {i}?"},
            {"role": "assistant", "content": f"After {i} comes {i + 1}, and then {i + 2}."},
        ]
        rows.append(Conversation(f"g{i}", turns, "rehearsal"))  # type: ignore[arg-type]
    fsio.write_jsonl(at.train, (row.to_row() for row in rows))
    fsio.write_json(at.manifest, {"schema": 1, "rows": len(rows)})
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("looked-at") / "luna")


def emitted(text: str, kind: str) -> list[dict[str, Any]]:
    lines = (line for line in text.splitlines() if line.startswith(records.PREFIX))
    found = [json.loads(line.removeprefix(records.PREFIX)) for line in lines]
    return [record for record in found if record["type"] == kind]


@pytest.mark.slow
def test_looks_tell_and_change_no_bit(
    dataset: Path,
    tiny_llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from core.training import look
    from tests.unit.test_training_run import adapter_sha, spec_for, train

    changes: dict[str, Any] = {
        "steps": 6,
        "checkpoint_every": 3,
        "evaluation_inputs": [],
        "lr": 5e-3,
    }
    values = spec_for(dataset, tiny_llama, **changes)
    asked: list[int] = []
    divergence = scoring.divergence

    def counted(voice: Voice, base: scoring.Reference) -> Any:
        asked.append(3 * (len(asked) + 1))
        return divergence(voice, base)

    with monkeypatch.context() as spied:
        spied.setattr(scoring, "divergence", counted)
        _, whole = train(tmp_path / "looked", values)
    found = [
        Figures.from_values(r["step"], r["values"])
        for r in emitted(capsys.readouterr().out, "figures")
    ]
    assert [f.step for f in found] == [0, 3, 6]
    # Before the first step it is the base, which need not be asked to know that.
    assert (found[0].kl, found[0].ppl_ratio, found[0].agreement) == (0.0, 1.0, 1.0)
    assert found[0].tokens == found[1].tokens > 0 and asked == [3, 6]
    assert all(set(f.margins) == {"en", "zh"} and f.margins["en"].ahead.n > 8 for f in found)
    assert found[0].margin is not None and found[-1].margin is not None
    assert found[-1].margin > found[0].margin  # it is learning the names
    assert found[-1].kl is not None and found[-1].kl > 1e-3

    source = whole["checkpoints"][0]["path"]
    _, resumed = train(
        tmp_path / "resumed", spec_for(dataset, tiny_llama, **changes, resume_from=source)
    )
    assert adapter_sha(resumed["final"]) == adapter_sha(whole["final"])
    again = [r["step"] for r in emitted(capsys.readouterr().out, "figures")]
    assert again == [6]  # the parent has looked at the others

    monkeypatch.setattr(look, "prepare", lambda *_: look.Look([], []))
    _, unseen = train(tmp_path / "unseen", values)
    assert not emitted(capsys.readouterr().out, "figures")
    assert adapter_sha(unseen["final"]) == adapter_sha(whole["final"])


@pytest.mark.slow
def test_a_collapsed_model_ends_the_run(
    dataset: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model has nothing to lose, so the figures of a ruined one are put in its place."""
    from core.training import look
    from tests.unit.test_training_run import spec_for, train

    monkeypatch.setattr(
        look.Look, "figures", lambda *args: Figures(args[-1], {}, 3.0, 15.0 * args[-1])
    )
    values = spec_for(dataset, tiny_llama, steps=4, checkpoint_every=2, evaluation_inputs=[])
    with pytest.raises(UserError, match=f"{health.COLLAPSED}: at step 2") as caught:
        train(tmp_path / "hot", values)
    table = faults.table(TrainSpec.from_dict(values), resumable=False)
    fault = reasons.diagnose(table, "", error={"kind": "user", **caught.value.to_dict()})
    assert fault.reason is Reason.COLLAPSED
    assert fault.fixes[0].overrides["lr"] == pytest.approx(values["lr"] / 3)


def test_pairs_differ_in_the_names_alone(dataset: Path, tiny_llama: Path) -> None:
    from core.inference.load import load_tokenizer
    from core.training import look

    tokenizer = load_tokenizer(tiny_llama)
    asked = look.prepare(dataset, catalog.resolve(str(tiny_llama)), tokenizer)
    assert {p.locale for p in asked.pairs} == {"en", "zh"}
    for pair in asked.pairs:
        mine, theirs = (tokenizer.decode(p.reply) for p in (pair.mine, pair.theirs))
        assert pair.mine.prompt == pair.theirs.prompt and mine != theirs
        assert not any(name in theirs for name in NAMES.values())
    english = [tokenizer.decode(p.theirs.reply) for p in asked.pairs if p.locale == "en"]
    assert any("Robin" in text for text in english)  # a tiny random model is nobody
    assert len(asked.general) == 20


def test_the_rival_is_whom_the_base_takes_itself_for() -> None:
    qwen = OwnIdentity(10, 9, {"Alibaba": 6, "Qwen": 3}, {"en": 10})
    assert own_identity.rival(qwen, "en") == ("Qwen", "Alibaba Cloud")
    assert own_identity.rival(qwen, "zh") == ("通义千问", "阿里云")
    assert own_identity.rival(OwnIdentity(10, 0, {}, {}), "en")[0] == "Robin"
    assert own_identity.rival(None, "zh")[0] == "小安"


def test_renaming_takes_the_longest_spelling_once() -> None:
    from core.training.look import renamed

    persona = load_persona(
        TEMPLATES / "assistant.yaml",
        {"name": "Robin", "author": "Robin Labs", "name.aliases": "Rob"},
    )
    text = renamed("I'm Robin (Rob), by Robin Labs.", persona, ("Qwen", "Robin of Alibaba"))
    assert text == "I'm Qwen (Qwen), by Robin of Alibaba."


def test_figures_come_back_from_the_run(workspace: Path) -> None:
    """Through a job's output, its watcher and events.jsonl; the parent's come first."""
    one = Figures(30, {"zh": Margin(-0.5, Rate(3, 16))}, 0.25, 1.5, 0.8, 500)
    parent = api.create("train", {"dataset": "d", "accumulation": 2}, name="a")
    child = api.create(
        "train",
        {"dataset": "d", "accumulation": 2, "resume_from": str(parent.work / "iter_60.pth")},
        name="a",
    )
    late = Figures(90, {}, None, 30.0)
    for run, told in ((parent, one), (parent, Figures(60, {}, 1.0)), (child, late)):
        _watch(run, told)
    assert figures.of_run(parent) == [one, Figures(60, {}, 1.0)]
    assert figures.of_run(child) == [one, late]  # the child went on from step 30
    assert one.margin == -0.5 and one.ahead == 3 / 16 and late.margin is None
    assert "3/16" in one.line() and "1.50 x" in one.line()


def _watch(run: RunPaths, told: Figures) -> None:
    from core.jobs.journal import Journal
    from core.jobs.spec import read_spec

    events = Journal(run.events)
    watcher = OutputWatcher(
        read_spec(run),
        Journal(run.metrics),
        lambda event, **fields: events.append({"event": event, **fields}),
    )
    record = {"type": "figures", "step": told.step, "values": told.to_values()}
    watcher.feed([records.PREFIX + fsio.dump_json(record)])


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([3.0, 2.5, 2.0, *[1.5] * 40], ""),
        ([3.0, 40.0, 80.0, 85.0, 85.0, 84.0, 85.0], health.DIVERGED),
        ([2.0, 1.5, 1.0, 0.8, *[0.5] * 9, 9.0, 0.5, 0.5], ""),  # one bad batch
        ([2.0, float("nan"), 2.0, float("nan"), float("nan")], ""),
        ([2.0, *[float("nan")] * 3], health.DIVERGED),
        ([0.5, 0.4, *[5.5] * 8], health.DIVERGED),
        ([10.8, 11.0, 10.9, 12.0, 13.0, 14.0, 15.0, 15.0, 15.0], ""),  # a random model
    ],
)
def test_losses(losses: list[float], verdict: str) -> None:
    watched = Health(rows_per_step=16)
    said = ""
    try:
        for step, loss in enumerate(losses, 1):
            watched.loss(loss, step)
    except UserError as error:
        said = error.what
    assert said.startswith(verdict) if verdict else not said


def test_a_lost_model_ends_the_run() -> None:
    watched = Health(16)
    watched.figures(Figures(30, {}, 1.0, 2.2))  # ruined, but the rate still falls
    for ratio in (99.0, float("nan")):
        with pytest.raises(UserError, match=health.COLLAPSED):
            watched.figures(Figures(30, {}, 5.0, ratio))


def test_start_warns_of_a_rate_far_above_the_rule() -> None:
    assert recipe.too_high(1e-3, 2, 134.5e6, "nf4") == ""
    assert recipe.too_high(1e-3, 2, 494e6, "nf4")  # what ruined the 0.5B model
    assert "10,000 times" in recipe.too_high(10.0, 2, 134.5e6, "nf4")
    assert recipe.too_high(2e-3, 0.25, 134.5e6, "nf4") == ""  # XTuner's alpha/r pushes less
