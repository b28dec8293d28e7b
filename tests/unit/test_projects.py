"""A workspace's personas are derived from what lies there, quickly, and with sayable names."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from core import fsio, paths
from core.jobs import api
from core.paths import RunPaths
from core.pipeline import projects

pytestmark = pytest.mark.fast


def dataset(name: str, persona: str = "Luna", maker: str = "Riverside Lab") -> Path:
    folder = paths.datasets_dir() / name
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("{}\n")
    about = {"schema": 1, "persona": "assistant", "name": persona, "maker": maker, "rows": 1}
    fsio.write_json(folder / "dataset.json", about)
    return folder


def run(
    kind: str, params: dict[str, Any], *, name: str = "x", state: str = "SUCCEEDED",
    parent: str | None = None, result: dict[str, Any] | None = None,
) -> RunPaths:  # fmt: skip
    """A run that has ended."""
    made = api.create(kind, params, name=name, parent=parent)
    if state == "SUCCEEDED":
        fsio.write_json(made.result, result or {})
    reason = {"SUCCEEDED": "completed", "STOPPED": "user_stop"}.get(state, "incomplete")
    fsio.write_json(
        made.exit, {"schema": 1, "state": state, "reason": reason, "ended": 2.0, "elapsed": 1.0}
    )
    return made


def whole_way(name: str, persona: str, verdict: str = "LEARNED") -> dict[str, RunPaths]:
    """Dataset, training, sweep, merge and scorecard of one persona."""
    data = str(dataset(name, persona))
    train = run("train", {"dataset": data, "model": "bundled"})
    sweep = run("sweep", {"run": str(train.root), "base": "bundled", "dataset": data})
    checkpoint = str(train.work / "iter_30.pth")
    merge = run("merge", {"base": "bundled", "checkpoint": checkpoint, "config": "c"})
    merged = str(merge.export / "merged")
    score = run("evaluate", {"base": "bundled", "merged": merged}, result={"verdict": verdict})
    return {"train": train, "sweep": sweep, "merge": merge, "evaluate": score}


def test_a_persona_owns_what_was_made_for_her(workspace: Path) -> None:
    luna, mei = whole_way("luna", "Luna"), whole_way("mei-lan", "Mei Lan", "OVERFIT")
    seen = projects.overview()
    assert [p.title for p in seen.projects] == ["Mei Lan", "Luna"]
    for persona, made in ((seen.projects[1], luna), (seen.projects[0], mei)):
        assert {r.id for r in persona.runs} == {r.root.name for r in made.values()}
    verdict = seen.projects[0].step("verdict")
    assert (verdict.standing, verdict.verdict) == ("done", "OVERFIT")
    assert {s.standing for s in seen.projects[0].steps} == {"done"}
    assert seen.owner_of(run=luna["merge"].root.name) == seen.projects[1]
    assert seen.owner_of(dataset="luna") == seen.projects[1]


def test_runs_are_counted_by_persona_and_a_resumed_one_keeps_its_number(workspace: Path) -> None:
    data = {"dataset": str(dataset("mei-lan", "Mei Lan")), "model": "bundled"}
    other = run("train", {"dataset": str(dataset("luna")), "model": "bundled"})
    first, second = run("train", data), run("train", data, state="STOPPED")
    resumed = run("train", {**data, "resume_from": "iter_3.pth"}, parent=second.root.name)
    third = run("train", data)
    seen = projects.overview()
    said = [seen.name_of(r.root.name) for r in (other, first, second, resumed, third)]
    assert said == [
        "Luna, run 1",
        "Mei Lan, run 1",
        "Mei Lan, run 2",
        "Mei Lan, run 2 (resumed)",
        "Mei Lan, run 3",
    ]


def test_two_of_one_name_are_told_apart_by_their_maker(workspace: Path) -> None:
    dataset("a", "Luna", "Riverside Lab")
    dataset("b", "Luna", "Hilltop")
    seen = projects.overview()
    assert {p.title for p in seen.projects} == {"Luna (Riverside Lab)", "Luna (Hilltop)"}
    assert len({p.key for p in seen.projects}) == 2


def test_a_build_belongs_to_its_persona_before_and_after_the_dataset_is_there(
    workspace: Path,
) -> None:
    pack = paths.TEMPLATES / "assistant.yaml"
    spec = {"persona_path": str(pack), "overrides": {"name": "Mei Lan", "author": "Ada"}}
    run("generate", {"spec": spec, "name": "mei-lan"}, state="STOPPED")
    (before,) = projects.overview().projects
    assert (before.title, before.step("built").standing) == ("Mei Lan", "stopped")
    dataset("mei-lan", "Mei Lan", "Ada")
    (after,) = projects.overview().projects
    assert after.key == before.key
    assert after.step("built").standing == "done"


def test_runs_outlive_their_dataset(workspace: Path) -> None:
    spec = {"persona_path": "gone.yaml", "overrides": {"name": "Mei Lan", "author": "Ada"}}
    run("generate", {"spec": spec, "name": "mei-lan"})
    gone = str(paths.datasets_dir() / "mei-lan")
    kept = run("train", {"dataset": gone, "model": "bundled"})
    assert projects.overview().name_of(kept.root.name) == "Mei Lan, run 1"


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 9}', '{"schema": 1, "name": 3}'])
def test_an_odd_manifest_hides_nothing_else(workspace: Path, text: str) -> None:
    whole_way("luna", "Luna")
    odd = dataset("odd")
    (odd / "dataset.json").write_text(text)
    assert "Luna" in [p.title for p in projects.overview().projects]


def test_a_chat_belongs_to_those_whose_models_talked(workspace: Path) -> None:
    made = whole_way("luna", "Luna")
    column = {"id": "b", "kind": "merged", "model": str(made["merge"].export / "merged")}
    paths.chats_dir().mkdir(parents=True)
    header = {"type": "chat", "schema": 1, "id": "c", "created": 0, "columns": [column]}
    (paths.chats_dir() / "c.jsonl").write_text(json.dumps(header) + "\n")
    (persona,) = projects.overview().projects
    assert persona.chats == ("c",)


def test_a_large_workspace_is_seen_in_half_a_second(workspace: Path) -> None:
    """200 personas, 1,000 runs, one of them alive by its metrics of 100,000 lines."""
    for number in range(200):
        whole_way(f"persona-{number}", f"Persona {number}")
        run("train", {"dataset": str(paths.datasets_dir() / f"persona-{number}")})
    long = api.create("train", {"dataset": str(paths.datasets_dir() / "persona-7")}, name="x")
    with long.metrics.open("w") as file:
        for step in range(100_000):
            row = {"type": "metric", "step": step, "max_steps": 100_000, "t": step * 1.0}
            file.write(json.dumps(row) + "\n")
    projects.overview()  # the first look of a server's life reads every spec
    started = time.perf_counter()
    seen = projects.overview()
    took = time.perf_counter() - started
    print(f"{took * 1000:.0f} ms")
    assert len(seen.projects) == 200
    assert len(seen.runs) == 1001
    assert took < 0.5
