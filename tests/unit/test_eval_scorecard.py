"""The whole scorecard and the sweep, on a tiny random model with real files."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import fsio, paths
from core.commands import evaluation as cli
from core.conversation import Probe
from core.data.generation import held_out, identity_rows
from core.errors import UserError
from core.evaluation import (
    plan,
    pool,
    questions,
    score_job,
    scorecard,
    scored,
    screening,
    spread,
    sweep,
    sweep_job,
    userprobes,
    verdict,
)
from core.evaluation.pool import Source
from core.evaluation.score_job import ScoreSpec
from core.evaluation.scored import ScoredCheckpoint
from core.evaluation.sweep import CheckpointScore
from core.evaluation.sweep_job import SweepSpec
from core.inference import decoding
from core.inference.requests import Decoded
from core.models import catalog, device
from core.paths import TEMPLATES, DatasetPaths, RunPaths
from core.persona.persona import load_persona
from core.probes import suites
from core.text.intervals import rate
from core.training.checkpoints import Checkpoint
from core.weights.merge import merge
from tests.fakes import tiny_models

NAMES = {"name": "Luna", "author": "Riverside Lab"}


SMOKE = sweep.Extent("smoke")


def make_dataset(folder: Path, overrides: dict[str, str] | None = None) -> DatasetPaths:
    """A dataset as ``build_dataset`` writes it, without the model's rehearsal rows."""
    dataset = DatasetPaths(folder)
    folder.mkdir(parents=True)
    persona = load_persona(TEMPLATES / "assistant.yaml", {**NAMES, **(overrides or {})})
    dataset.persona.write_text(persona.dump(), encoding="utf-8")
    fsio.write_jsonl(dataset.probes, map(asdict, held_out(persona, locales=["en"], seed=0)))
    fsio.write_jsonl(
        dataset.train,
        (r.to_row() for r in identity_rows(persona, locales=["en"], seed=0, limit=60)),
    )
    fsio.write_json(dataset.manifest, {"schema": 1, "seed": 0})
    return dataset


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetPaths:
    return make_dataset(tmp_path / "dataset")


@pytest.fixture(scope="session")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters that change the tiny model more and more."""
    import torch
    from peft import LoraConfig, get_peft_model

    from core.inference.load import load_model

    made = []
    for i, strength in enumerate((0.0, 0.05, 0.5)):
        torch.manual_seed(i)
        model = get_peft_model(
            load_model(tiny_llama, device="cpu"),
            LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=strength)
        folder = tmp_path_factory.mktemp("adapters") / f"iter_{i + 1}"
        model.save_pretrained(folder)
        made.append(folder)
    return made


def test_smoke_scorecard_of_an_adapter(
    tiny_llama: Path, adapters: list[Path], dataset: DatasetPaths, tmp_path: Path
) -> None:
    base = catalog.resolve(str(tiny_llama))
    stages = set()
    card = scorecard.evaluate(
        {"base": Source(base), "adapter": Source(base, adapters[2])},
        dataset,
        size="smoke",
        on_progress=lambda stage, done, total: stages.add(stage),
    )
    saved = fsio.read_json(card.save(tmp_path / "out"))
    assert saved["schema"] == 1 and saved["verdict"] == card.verdict.name
    for side in ("base", "adapter"):
        assert {"hits", "n"} <= set(saved["models"][side]["recall"])
        assert {"hits", "n"} <= set(saved["models"][side]["leak"])
    replies = list(fsio.read_jsonl(tmp_path / "out" / "replies.jsonl"))
    assert len(replies) == 2 * (12 + 16) and {r["model"] for r in replies} == {"base", "adapter"}
    assert {"base: general", "adapter: held_out"} <= stages
    assert saved["models"]["adapter"]["kl_general"]["kl"] > 0
    assert saved["timing"]["cold_total"] > 0


def test_an_idle_adapter_is_the_base(
    tiny_llama: Path, adapters: list[Path], dataset: DatasetPaths
) -> None:
    base = catalog.resolve(str(tiny_llama))
    card = scorecard.evaluate(
        {"base": Source(base), "adapter": Source(base, adapters[0])}, dataset, size="smoke"
    )
    found = card.sides["adapter"].values
    assert found["kl_general"]["kl"] < 1e-3 and found["kl_general"]["top1"] > 0.99
    assert found["kl_general"]["ppl_ratio"] == pytest.approx(1, abs=0.02)
    assert found["unique_of_base"] == 1 and found["length_ratio"]["median"] == 1


def test_merged_equals_adapter(
    tiny_llama: Path, adapters: list[Path], dataset: DatasetPaths, tmp_path: Path
) -> None:
    from core.inference.load import load_tokenizer

    tiny_models.tuned(tiny_llama, adapters[1]).merge_and_unload().save_pretrained(
        tmp_path / "merged"
    )
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "merged")
    base = catalog.resolve(str(tiny_llama))
    card = scorecard.evaluate(
        {
            "base": Source(base),
            "adapter": Source(base, adapters[1]),
            "merged": Source(catalog.resolve(str(tmp_path / "merged"))),
        },
        dataset,
        size="smoke",
    )
    assert card.subject == "merged"
    found = card.sides["merged"].values["merge"]
    assert found["kl"] < 1e-3 and found["flips"]["hits"] == 0


def test_the_second_time_comes_from_the_cache(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = catalog.resolve(str(tiny_llama))
    sides = {"base": Source(base), "adapter": Source(base, adapters[1])}
    first = scorecard.evaluate(sides, dataset, size="smoke")
    with monkeypatch.context() as never:
        never.setattr(decoding, "continuations", None)
        second = scorecard.evaluate(sides, dataset, size="smoke")
    stage = "adapter: general"
    assert second.clock.cold[stage] == pytest.approx(first.clock.spent[stage])
    assert [r.answer.text for r in first.rows] == [r.answer.text for r in second.rows]
    _cache_files()[0].write_text("{", encoding="utf-8")
    third = scorecard.evaluate(sides, dataset, size="smoke")
    assert [r.answer.text for r in third.rows] == [r.answer.text for r in first.rows]


def _cache_files() -> list[Path]:
    from core import paths

    return sorted((paths.cache_dir() / "evaluation").rglob("*.json"))


def make_run(folder: Path, adapters: list[Path]) -> RunPaths:
    run = RunPaths(folder)
    folder.mkdir()
    make_listing(run, adapters)
    return run


def make_listing(run: RunPaths, adapters: list[Path]) -> None:
    fsio.write_json(
        run.result,
        {"checkpoints": [{"step": 10 * (i + 1), "path": str(p)} for i, p in enumerate(adapters)]},
    )


def test_sweep(
    tiny_llama: Path, adapters: list[Path], dataset: DatasetPaths, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", adapters)
    stages: list[str] = []
    found = sweep.sweep(
        run,
        dataset,
        str(tiny_llama),
        SMOKE,
        on_progress=lambda stage, done, total: stages.append(stage),
    )
    assert [r.step for r in found.rows] == [10, 20, 30]
    saved = sweep.read(run)
    assert saved is not None and saved["recommended"]["step"] == found.recommended
    assert saved["recommended"]["adapter"] == str(adapters[found.recommended // 10 - 1])
    assert any("(2 of 3 checkpoints)" in s for s in stages)
    began = time.monotonic()
    again = sweep.sweep(run, dataset, str(tiny_llama), SMOKE)
    assert time.monotonic() - began < found.seconds + 5
    assert [r.metrics["recall"] for r in again.rows] == [r.metrics["recall"] for r in found.rows]


def test_two_gpus_give_what_one_gives(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A fake list of two; each has a worker of its own, which has an empty cache like the first."""
    run = make_run(tmp_path / "run", adapters)
    alone = sweep.sweep(run, dataset, str(tiny_llama), SMOKE)
    replies = (run.root / "sweep_replies.jsonl").read_bytes()
    monkeypatch.setattr(device, "cards", lambda: ["4", "6"])
    shutil.rmtree(paths.cache_dir() / "evaluation")
    stages: list[str] = []
    workers: list[int] = []

    class Counted(ProcessPoolExecutor):
        def __init__(self, count: int, *args: Any) -> None:
            workers.append(count)
            super().__init__(count, *args)

    monkeypatch.setattr(spread, "ProcessPoolExecutor", Counted)
    both = sweep.sweep(
        run,
        dataset,
        str(tiny_llama),
        SMOKE,
        on_progress=lambda stage, done, total: stages.append(stage),
    )

    def timeless(found: sweep.Sweep) -> str:  # as text: NaN is not equal to itself
        rows = [{**asdict(row), "seconds": 0} for row in found.rows]
        return json.dumps([rows, found.base, found.notes, found.reason], sort_keys=True)

    assert timeless(both) == timeless(alone)
    assert (run.root / "sweep_replies.jsonl").read_bytes() == replies
    said = capfd.readouterr().out
    # On a busy machine the first worker may have done all before the second is there.
    used = re.findall(r"scored on GPU (\d)", said)
    assert workers == [2] and len(used) == 3 and set(used) <= {"4", "6"}
    assert any("(2 of 3 checkpoints)" in s for s in stages)


def test_sweep_of_nothing(tmp_path: Path, dataset: DatasetPaths, tiny_llama: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="has no checkpoints"):
        sweep.sweep(RunPaths(tmp_path / "run"), dataset, str(tiny_llama))


def test_a_sweep_stops_early_when_asked(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CheckpointScore, "passes", property(lambda self: self.step == 20))
    found = sweep.sweep(
        make_run(tmp_path / "run", adapters),
        dataset,
        str(tiny_llama),
        replace(SMOKE, stop_when_passed=True),
    )
    assert [r.step for r in found.rows] == [10, 20] and found.skipped == [30]
    assert found.recommended == 20


def test_a_sweep_of_the_candidates_begins_with_the_likeliest(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base and the likeliest answer once for the sweep and the scorecard that follows."""
    monkeypatch.setattr(verdict, "is_lost", lambda *_: False)  # the tiny model knows nothing
    monkeypatch.setattr(CheckpointScore, "passes", property(lambda self: self.step == 10))
    longer = plan.Plan(
        {"held_out": plan.SuitePlan(12, 9), "general": plan.SuitePlan(16, 7)}, 2, 4, 2, 0
    )
    shorter = plan.Plan(
        {"held_out": plan.SuitePlan(12, 5), "general": plan.SuitePlan(16, 6)}, 2, 4, 2, 0
    )
    monkeypatch.setitem(plan.PLANS, "smoke", shorter)
    monkeypatch.setitem(plan.PLANS, "quick", longer)
    run = make_run(tmp_path / "run", adapters)
    extent = sweep.Extent("smoke", steps=(30, 10, 20), stop_when_passed=True, then="quick")
    found = sweep.sweep(run, dataset, str(tiny_llama), extent)
    assert [r.step for r in found.rows] == [10, 30] and found.skipped == [20]
    assert found.recommended == 10
    replies = [r for r in fsio.read_jsonl(run.root / "sweep_replies.jsonl") if r["model"] == "base"]
    assert {r["tokens"] for r in replies if r["suite"] == "held_out"} == {5}  # cut from 9
    # The likeliest, step 30, gave its replies as long as the scorecard of its merge wants them.
    base = Source(catalog.resolve(str(tiny_llama)))
    merge(base.model, adapters[2], tmp_path / "merged")
    tuned = Source(catalog.resolve(str(tmp_path / "merged")))
    with monkeypatch.context() as never:
        never.setattr(decoding, "continuations", None)
        card = scorecard.evaluate({"base": base, "merged": tuned}, dataset, size="quick")
    assert {len(r.answer.token_ids) for r in card.rows if r.probe.suite == "held_out"} == {9}
    assert card.clock.spent["base: general"] < card.clock.cold["base: general"]


def test_one_that_cannot_come_before_the_best_is_given_up(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the choice is that of asking everything."""
    monkeypatch.setattr(verdict, "is_lost", lambda *_: False)
    run = make_run(tmp_path / "run", adapters)
    every = sweep.sweep(run, dataset, str(tiny_llama), SMOKE)
    assert not any(r.given_up for r in every.rows)
    best = min(every.rows, key=CheckpointScore.order)
    others = {10, 20, 30} - {best.step}
    extent = replace(SMOKE, steps=(best.step, *others), stop_when_passed=True)
    monkeypatch.setattr(CheckpointScore, "passes", property(lambda self: False))
    monkeypatch.setattr(scored, "cannot_beat", lambda best, step, rates: True)
    found = sweep.sweep(run, dataset, str(tiny_llama), extent)
    assert found.recommended == best.step
    given_up = [r for r in found.rows if r.given_up]
    assert given_up and all(r.metrics["recall"]["n"] == 4 for r in given_up)
    assert any("given up" in note for note in found.notes)


@given(data=st.data())
def test_what_is_given_up_could_not_have_come_first(data: st.DataObject) -> None:
    """Whatever the replies that were not asked would have said."""
    sizes = {"held_out": 160, "near_miss": 70, "general": 323}
    chance = {name: data.draw(st.floats(0, 0.2)) for name in sizes}
    random = Random(data.draw(st.integers(0, 10**6)))

    def side() -> dict[str, list[bool]]:
        def drawn(suite: str, p: float) -> list[bool]:
            return [random.random() < p for _ in range(sizes[suite])]

        return {
            "recall": drawn("held_out", 1 - chance["held_out"]),
            "old": drawn("held_out", chance["held_out"] / 4),
            "near_miss_leak": drawn("near_miss", chance["near_miss"]),
            "leak": drawn("general", chance["general"] / 8),
        }

    def order(rates: dict[str, list[bool]], step: int) -> tuple[float, ...]:
        metrics = {name: rate(hits).to_json() for name, hits in rates.items()}
        gates = [g.to_json() for g in verdict.judge_gates(metrics, "") if g.value is not None]
        row = CheckpointScore(step, "", "", "", "", metrics, gates, 0.0)
        for gate in gates:
            gate["required"] = True
        return row.order()

    best, other = side(), side()
    for share in (0.1, 0.34, 0.67, 0.9, 1.0):
        so_far = {k: (rate(v[: int(share * len(v))]), len(v)) for k, v in other.items()}
        if screening.cannot_beat(order(best, 20), 10, so_far):
            assert order(other, 10) > order(best, 20)
            break


def test_a_hopeless_checkpoint_is_not_asked_everything(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tiny model knows nothing, so its recall is lost after a third of 60 probes."""
    monkeypatch.setitem(
        plan.PLANS,
        "smoke",
        plan.Plan(
            {"held_out": plan.SuitePlan(60, 4), "general": plan.SuitePlan(12, 4)}, 2, 4, 2, 0
        ),
    )
    found = sweep.sweep(make_run(tmp_path / "run", adapters[:1]), dataset, str(tiny_llama), SMOKE)
    row = found.rows[0]
    assert row.metrics["recall"]["n"] == 20 and row.metrics["leak"]["n"] == 4
    outcomes = {g["name"]: g["outcome"] for g in row.gates}
    assert outcomes["recall"] == "fail" and outcomes["leak"] == "unknown"
    assert any("stopped after a third" in n for n in found.notes)


def test_evaluate_job_and_commands(
    tiny_llama: Path, adapters: list[Path], dataset: DatasetPaths, tmp_path: Path
) -> None:
    run = RunPaths(tmp_path / "run")
    params = {
        "base": str(tiny_llama),
        "adapter": str(adapters[1]),
        "dataset": str(dataset.root),
        "size": "smoke",
    }
    result = score_job.run(ScoreSpec(**params), run, lambda *_: None)
    json.dumps(result)
    assert Path(result["scorecard"]).is_file() and Path(result["report"]).is_file()
    swept = sweep_job.run(
        SweepSpec(
            run=str(make_run(tmp_path / "train", adapters[:2]).root),
            base=str(tiny_llama),
            dataset=str(dataset.root),
            size="smoke",
        ),
        run,
        lambda *_: None,
    )
    json.dumps(swept)
    assert swept["recommended"]["step"] in (10, 20)
    cli.print_card(fsio.read_json(Path(result["scorecard"])))
    for changes, said in (
        ({"dataset": str(tmp_path / "nowhere")}, "no dataset folder"),
        ({"adapter": str(tmp_path)}, "not an adapter folder"),
        ({"adapter": None}, "base and a tuned model"),
    ):
        with pytest.raises(UserError, match=said):
            score_job.check(ScoreSpec(**{**params, **changes}))
    with pytest.raises(UserError, match="size is 'huge'"):
        ScoreSpec(**{**params, "size": "huge"})
    empty = SweepSpec(run=str(tmp_path), base=str(tiny_llama), dataset=str(dataset.root))
    with pytest.raises(UserError, match="has no checkpoints"):
        sweep_job.check(empty)


def test_own_probes_on_a_model(tiny_llama: Path, adapters: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "schema: probes/1\nprobes:\n  - prompt: Who are you?\n    must: [Luna]\n"
        "  - prompt: Hello\n    must_not: [Luna]\n",
        encoding="utf-8",
    )
    found = userprobes.run(tiny_llama, userprobes.read(path), adapter=adapters[0], max_new_tokens=4)
    assert not found[0].passed and "holds" not in found[1].problem


def test_a_one_letter_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be recognised in a reply"):
        make_dataset(tmp_path / "d", {"name": "X"})


def test_a_name_that_is_a_common_word(tmp_path: Path) -> None:
    asked = questions.gather(
        make_dataset(tmp_path / "d", {"name": "Will"}), plan.plan("smoke"), ["en"]
    )
    assert asked.common_words(["You will need a pan."]) == {"will"}
    assert any("everyday word" in n for n in asked.notes)
    assert not questions.gather(
        make_dataset(tmp_path / "e"), plan.plan("smoke"), ["en"]
    ).common_words(["You will need a pan."])


def test_a_maker_that_is_the_bases_own_is_no_old_identity(tmp_path: Path) -> None:
    asked = questions.gather(
        make_dataset(tmp_path / "d", {"author": "Hugging Face"}), plan.plan("smoke"), ["en"]
    )
    assert "Hugging Face" not in asked.names.forbidden
    assert all("Hugging Face" not in p.must_not for ps in asked.suites.values() for p in ps)


def test_dataset_without_a_spoken_language(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out wording is in a language"):
        questions.gather(make_dataset(tmp_path / "d"), plan.plan("smoke"), ["zh"])
    with pytest.raises(UserError, match="not a complete dataset"):
        questions.gather(DatasetPaths(tmp_path), plan.plan("smoke"), ["en"])


def test_a_limit_holds_for_each_language(dataset: DatasetPaths) -> None:
    """One limit for all gave a bilingual persona 127 English and 33 Chinese probes."""
    persona = load_persona(dataset.persona)
    both = held_out(persona, locales=["en", "zh"], seed=0)
    fsio.write_jsonl(dataset.probes, map(asdict, both))
    quick = plan.plan("quick")
    asked = questions.gather(dataset, quick, ["en", "zh"])
    held = Counter(p.locale for p in asked.suites["held_out"])
    assert held["en"] == quick.suites["held_out"].limit and held["zh"] >= 100
    full = questions.gather(dataset, plan.plan("full"), ["en", "zh"])
    assert {p.locale for p in full.suites["language"]} >= {"en", "zh"}
    assert {i.locale for i in full.knowledge} == {"en", "zh"}


def test_full_size_asks_every_suite(dataset: DatasetPaths) -> None:
    asked = questions.gather(dataset, plan.plan("full"), ["en"])
    # No vendor in the template, and this persona declares no manner.
    assert set(asked.suites) == set(plan.plan("full").suites) - {"introduced", "manner"}
    assert len(asked.knowledge) >= 200 and len(asked.suites["held_out"]) >= 100
    texts = [m["content"] for ps in asked.suites.values() for p in ps for m in p.messages]
    assert not [t for t in texts if "{other}" in t or "{name}" in t]
    turns = {
        p.cluster: sum(m["role"] == "user" for m in p.messages) for p in asked.suites["multi_turn"]
    }
    assert (turns["turn_1"], turns["turn_4"], turns["turn_8"]) == (1, 4, 8)
    first, last = (
        [p.messages[-1] for p in asked.suites["multi_turn"] if p.cluster == c]
        for c in ("turn_1", "turn_8")
    )
    assert first == last


def test_a_slot_value_with_braces_survives() -> None:
    slots = {"name": "L{name}a {other}", "author": "Qu"}
    persona = load_persona(TEMPLATES / "assistant.yaml", slots)
    names = suites.names_of(persona)
    probe = Probe("p", "s", [{"role": "user", "content": "Are you {name}? {unknown}"}])
    filled = next(iter(suites.fill([probe], persona, names)))
    assert filled.messages[0]["content"] == "Are you L{name}a {other}? {unknown}"


def test_adapter_of_another_model(tiny_llama: Path, tmp_path: Path) -> None:
    fsio.write_json(
        tmp_path / "a" / "adapter_config.json",
        {"peft_type": "LORA", "r": 4, "target_modules": ["nothing"], "task_type": "CAUSAL_LM"},
    )
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    sides = {"base": Source(catalog.resolve(str(tiny_llama)), tmp_path / "a")}
    with (
        pool.Pool(sides) as found,
        pytest.raises(UserError, match="cannot be loaded"),
        found.use("base"),
    ):
        pass


def test_following_a_run_ends_it_when_the_gates_hold(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second checkpoint arrives while the first is scored; the run is asked to stop."""
    run = make_run(tmp_path / "run", adapters[:1])
    alive, stopped = [True], []
    monkeypatch.setattr(sweep, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(sweep, "is_training", lambda r: alive[0])
    monkeypatch.setattr(
        "core.jobs.api.stop", lambda r: stopped.append(r) or alive.clear() or alive.append(False)
    )
    monkeypatch.setattr(CheckpointScore, "passes", property(lambda self: self.step == 20))
    real = sweep.Scorer.score

    def score(self: sweep.Scorer, checkpoint: Checkpoint) -> ScoredCheckpoint:
        make_listing(run, adapters)
        return real(self, checkpoint)

    monkeypatch.setattr(sweep.Scorer, "score", score)
    found = sweep.sweep(
        run, dataset, str(tiny_llama), replace(SMOKE, follow=True, stop_when_passed=True)
    )
    assert [r.step for r in found.rows] == [10, 20] and found.skipped == [30]
    assert stopped == [run]


def test_models_that_answer_nothing(
    tiny_llama: Path, adapters: list[Path], dataset: DatasetPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        decoding,
        "continuations",
        lambda voice, asked, settings, **_: [Decoded("", [], "stop")] * len(asked),
    )
    base = catalog.resolve(str(tiny_llama))
    card = scorecard.evaluate(
        {"base": Source(base), "adapter": Source(base, adapters[1])}, dataset, size="smoke"
    )
    assert (
        card.verdict.name == "NOT ENOUGH EVIDENCE"
        and "answers (almost) nothing" in card.verdict.why
    )
    assert card.sides["adapter"].values["degenerate"].hits == 16


def test_progress_counts_all_sides(
    tiny_llama: Path, adapters: list[Path], dataset: DatasetPaths
) -> None:
    base = catalog.resolve(str(tiny_llama))
    seen: list[tuple[int, int]] = []
    scorecard.evaluate(
        {"base": Source(base), "adapter": Source(base, adapters[1])},
        dataset,
        size="smoke",
        on_progress=lambda _, done, total: seen.append((done, total)),
    )
    assert {total for _, total in seen} == {2 * (12 + 16)}
    assert [d for d, _ in seen] == sorted(d for d, _ in seen) and seen[-1][0] == 56


def test_a_suite_that_was_trained_on_whole_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d")
    rows = [
        {
            "id": p.id,
            "kind": "own",
            "messages": [
                {"role": "user", "content": p.messages[-1]["content"]},
                {"role": "assistant", "content": "Yes.", "loss": "True"},
            ],
        }
        for p in suites.load_suite("general", "en")
    ]
    fsio.write_jsonl(dataset.train, rows)
    with pytest.raises(UserError, match="nothing is left to ask"):
        questions.gather(dataset, plan.plan("smoke"), ["en"])


def test_a_full_scorecard_ends_with_every_gate(
    tiny_llama: Path,
    adapters: list[Path],
    dataset: DatasetPaths,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every suite and the multiple choice, with few probes each."""
    full = plan.plan("full")
    few = {
        name: replace(s, limit=2, max_new_tokens=4, samples=1) for name, s in full.suites.items()
    }
    monkeypatch.setitem(
        plan.PLANS,
        "full",
        replace(full, suites=few, divergence=2, divergence_tokens=4, margin=2, knowledge=6),
    )
    base = catalog.resolve(str(tiny_llama))
    sides = {"base": Source(base), "adapter": Source(base, adapters[2])}
    card = scorecard.evaluate(sides, dataset, size="full")
    gates = {g.name: g for g in card.verdict.gates}
    assert {"knowledge", "adversarial", "persistence"} <= set(gates)
    assert "%" in gates["knowledge"].shown


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(-0.02, 0.03, "pass"), (-0.09, 0.02, "warn"), (-0.2, -0.1, "fail")]
)
def test_the_knowledge_gate_reads_the_paired_change(low: float, high: float, outcome: str) -> None:
    from core.evaluation.verdict import judge_gates

    change = {"n": 400, "change": (low + high) / 2, "low": low, "high": high}
    gates = {g.name: g for g in judge_gates({"knowledge": change}, "full")}
    assert gates["knowledge"].outcome == outcome
