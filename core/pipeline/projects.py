"""The personas of a workspace, and what belongs to each: all derived from what lies there.

A persona (project) has its datasets, trainings, merges, scorecards and chats, and stands
somewhere on the way over four steps. ``overview()`` is what the sidebar, the first page and every
list of runs ask; it reads what has changed since the last look and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from core import fsio, paths
from core.errors import UserError
from core.jobs.journal import parse_record
from core.jobs.listing import list_runs
from core.jobs.state import ACTIVE, State, Summary
from core.paths import DatasetPaths, RunPaths
from core.pipeline import places
from core.pipeline.belonging import Belonging, Identity
from core.pipeline.naming import Said, names_of

Step = Literal["built", "trained", "merged", "verdict"]
STEPS: tuple[Step, ...] = ("built", "trained", "merged", "verdict")
Standing = Literal["open", "running", "done", "stopped", "failed"]

#: The kinds of runs that take a persona over each step.
_KINDS: dict[Step, tuple[str, ...]] = {
    "built": ("generate", "simulate"),
    "trained": ("train",),
    "merged": ("merge",),
    "verdict": ("evaluate",),
}


@dataclass(frozen=True)
class StepState:
    """Where a persona stands on one step.

    ``object``: id of the newest run that counts, or the newest dataset's name. ``verdict``: the
    scorecard's word, for the last step.
    """

    step: Step
    standing: Standing = "open"
    object: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Project:
    """A persona and all that is its own, newest first.

    ``title`` is the name, with the maker where two personas share it. ``touched``: seconds since
    the epoch of the newest of its things.
    """

    identity: Identity
    title: str
    datasets: tuple[str, ...] = ()
    runs: tuple[Summary, ...] = ()
    chats: tuple[str, ...] = ()
    steps: tuple[StepState, ...] = ()
    touched: float = 0.0

    @property
    def key(self) -> str:
        """For the address."""
        return self.identity.key

    def of(self, *kinds: str) -> tuple[Summary, ...]:
        """Its runs of these kinds, newest first."""
        return tuple(r for r in self.runs if r.kind in kinds)

    def step(self, step: Step) -> StepState:
        """Where it stands on this step."""
        return next(s for s in self.steps if s.step == step)


@dataclass(frozen=True)
class Overview:
    """The whole workspace at one look.

    Attributes:
        projects: most recently touched first.
        names: sayable names of runs, by run id.
        owners: key of the persona, by run id and by ``dataset:NAME``.
        running: runs that are alive, oldest first.
        runs: every run by id, those of nobody too.
    """

    projects: tuple[Project, ...] = ()
    names: Mapping[str, Said] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)
    running: tuple[Summary, ...] = ()
    runs: Mapping[str, Summary] = field(default_factory=dict)

    def project(self, key: str) -> Project | None:
        """By its key in the address."""
        return next((p for p in self.projects if p.key == key), None)

    def owner_of(self, run: str = "", dataset: str = "") -> Project | None:
        """Whose a run or a dataset is."""
        return self.project(self.owners.get(run or f"dataset:{dataset}", ""))

    def name_of(self, run_id: str) -> str:
        """In English; a run of nobody is called what it was named when it was started."""
        if run_id in self.names:
            return str(self.names[run_id])
        return self.runs[run_id].name if run_id in self.runs else run_id


#: How long a look is good for: every page and its sidebar ask several times a redraw.
_FRESH_SECONDS = 0.5
_last: tuple[tuple[str, int, int], float, Overview] | None = None


def overview() -> Overview:
    """What is there now, or was half a second ago; a new run or dataset is seen at once."""
    global _last
    roots = (paths.runs_dir(), paths.datasets_dir())
    runs, datasets = (p.stat().st_mtime_ns if p.is_dir() else 0 for p in roots)
    there = (str(paths.home()), runs, datasets)
    fresh = _last is not None and time.monotonic() - _last[1] < _FRESH_SECONDS
    if _last is not None and fresh and _last[0] == there:
        return _last[2]
    seen = _look()
    _last = (there, time.monotonic(), seen)
    return seen


def _look() -> Overview:
    runs = list_runs()
    belonging = Belonging(runs)
    made: dict[Identity, list[Summary]] = defaultdict(list)
    for run in runs:
        if (owner := belonging.of_run(run.id)) is not None:
            made[owner].append(run)
    datasets: dict[Identity, list[tuple[float, str]]] = defaultdict(list)
    for written, folder in places.dataset_folders():
        datasets[belonging.of_folder(folder)].append((written, folder.name))
    chats: dict[Identity, list[tuple[float, str]]] = defaultdict(list)
    for written, chat, models in places.chats():
        for talked in {o for m in models if (o := belonging.of_model(m))}:
            chats[talked].append((written, chat))
    titles = _titles({*made, *datasets, *chats})
    projects = [
        _project(who, title, datasets[who], made[who], chats[who]) for who, title in titles.items()
    ]
    return Overview(
        projects=tuple(sorted(projects, key=lambda p: p.touched, reverse=True)),
        names={
            k: v for who, title in titles.items() for k, v in names_of(title, made[who]).items()
        },
        owners={run.id: p.key for p in projects for run in p.runs}
        | {f"dataset:{name}": p.key for p in projects for name in p.datasets},
        running=tuple(reversed([r for r in runs if r.state in (*ACTIVE, State.ORPHANED)])),
        runs={run.id: run for run in runs},
    )


def _titles(personas: Iterable[Identity]) -> dict[Identity, str]:
    everyone = list(personas)
    named = Counter(who.name for who in everyone)
    made = Counter((who.name, who.maker) for who in everyone)
    titles = {}
    for who in everyone:
        more = [who.maker] if named[who.name] > 1 and who.maker else []
        more += [who.pack] if made[who.name, who.maker] > 1 and who.pack else []
        titles[who] = f"{who.name} ({', '.join(more)})" if more else who.name
    return titles


def _project(
    who: Identity,
    title: str,
    datasets: list[tuple[float, str]],
    runs: list[Summary],
    chats: list[tuple[float, str]],
) -> Project:
    datasets, chats = sorted(datasets, reverse=True), sorted(chats, reverse=True)
    names = tuple(name for _, name in datasets)
    times = [t for t, _ in (*datasets[:1], *chats[:1])] + [r.created for r in runs[:1]]
    return Project(
        who,
        title,
        names,
        tuple(runs),
        tuple(name for _, name in chats),
        tuple(_standing(step, names, runs) for step in STEPS),
        max(times, default=0.0),
    )


def _standing(step: Step, datasets: Sequence[str], runs: Sequence[Summary]) -> StepState:
    mine = [r for r in runs if r.kind in _KINDS[step]]
    for run in mine:
        if run.state in (*ACTIVE, State.ORPHANED):
            return StepState(step, "running", run.id)
    if step == "built" and datasets:
        return StepState(step, "done", datasets[0])
    for run in mine:
        if step != "built" and run.state is State.SUCCEEDED:
            verdict = str(result_of(run).get("verdict") or "") if step == "verdict" else ""
            return StepState(step, "done", run.id, verdict)
    if not mine:
        return StepState(step)
    stopped = mine[0].state in (State.STOPPED, State.CREATED, State.SUCCEEDED)
    return StepState(step, "stopped" if stopped else "failed", mine[0].id)


def request_of(project: Project) -> tuple[str, dict[str, str]] | None:
    """The pack and the slots that a persona was made with, last; None if nobody wrote it down."""
    for name in project.datasets:
        try:
            spec = fsio.read_json(DatasetPaths(paths.datasets_dir() / name).manifest).get("spec")
        except UserError:
            continue
        if isinstance(spec, dict) and spec.get("persona_path"):
            return Path(spec["persona_path"]).stem, dict(spec.get("overrides") or {})
    for run in project.of("generate", "tune"):
        spec = run.params.get("spec") or {}
        pack = spec.get("persona_path") or spec.get("persona")
        if pack:
            return Path(pack).stem, dict(spec.get("overrides") or {})
    return None


def result_of(run: Summary) -> Mapping[str, Any]:
    """What an ended run returned; empty if it returned nothing."""
    return _result(RunPaths(run.root).result) if run.state is State.SUCCEEDED else {}


@lru_cache(maxsize=4096)
def _result(path: Path) -> Mapping[str, Any]:
    try:
        return parse_record(fsio.read_bytes(path)) or {}
    except OSError:
        return {}
