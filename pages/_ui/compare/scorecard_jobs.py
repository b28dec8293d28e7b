"""Start a scorecard or a search for the best checkpoint, and watch it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from core.chat.render import literal
from core.errors import UserError
from core.evaluation import sweep
from core.evaluation.plan import Size
from core.evaluation.score_job import ScoreSpec
from core.evaluation.sweep_job import SweepSpec
from core.jobs import api
from core.jobs.spec import read_spec
from core.jobs.state import ACTIVE, State, Status, Summary
from core.paths import RunPaths
from core.records import JobSpec
from pages._ui.compare.scorecard_view import draw_sweep
from pages._ui.shell import current, words
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import N_, number, t, time_left

#: Seconds between looks while a job is alive.
_EVERY = 2.0
_SIZES: dict[Size, str] = {
    "quick": N_("Quick: persona, everyday and look-alike questions; a few minutes"),
    "full": N_("Full: every set of questions; up to 20 minutes on a laptop"),
}


@dataclass(frozen=True)
class _Form:
    """What is asked of a run: which runs, in which words, and what is then started."""

    key: str
    kind: str
    title: str
    none_yet: str
    pick: str
    button: str
    icon: str
    option: Callable[[], object]
    spec: Callable[[RunPaths, object], JobSpec]


def draw() -> None:
    """A form for merged models, one for trainings, and the jobs that are alive."""
    runs = list(current.seen().runs.values())
    for box, form in zip(st.columns(2), _FORMS, strict=True):
        with box.container(border=True):
            _draw_form(form, runs)
    project = current.current()
    own = {run.id for run in project.runs} if project else set()
    jobs = [r for r in runs if r.kind in ("evaluate", "sweep") and (r.id in own or not own)]
    for job in sorted(jobs, key=lambda r: -r.seq)[:3]:
        live = job.state in ACTIVE
        panel: Callable[..., None] = st.fragment(_panel, run_every=_EVERY if live else None)
        panel(RunPaths(job.root), live)


def _draw_form(form: _Form, runs: Sequence[Summary]) -> None:
    st.markdown(f"**{t(form.title)}**")
    done = [r for r in runs if r.kind == form.kind and r.state is State.SUCCEEDED]
    by_id = {r.id: r for r in sorted(done, key=lambda r: -r.seq)}
    if not by_id:
        st.caption(t(form.none_yet))
        return
    usual = current.chosen("merge" if form.kind == "merge" else "run", list(by_id))
    chosen = st.selectbox(
        t(form.pick),
        list(by_id),
        index=list(by_id).index(usual),
        format_func=current.name_of,
        key=f"{form.key}_run",
    )
    option = form.option()
    if st.button(t(form.button), icon=form.icon, key=f"{form.key}_start"):
        with errors_shown():
            run = RunPaths(by_id[chosen].root)
            spec = form.spec(run, option)
            api.launch(spec, name=f"{spec.job} {by_id[chosen].name}"[:48], parent=chosen)
            st.rerun()
    if form.kind == "train" and (by_id[chosen].root / sweep.FILE).is_file():
        draw_sweep(RunPaths(by_id[chosen].root))


def _size() -> object:
    return st.radio(t("Size"), list(_SIZES), format_func=lambda s: t(_SIZES[s]), key="score_size")


def score_spec(run: RunPaths, size: object) -> ScoreSpec:
    """What the evaluate job is asked about a merge run.

    Raises:
        UserError: the merge run does not know its dataset.
    """
    params = read_spec(run).params
    result = api.status(run).result or {}
    if not params.get("dataset"):
        raise UserError(
            "this merge does not say which dataset it was trained on",
            fix="score it with `python -m core score --dataset DIR`",
        )
    asked = {"merged": result["merged"], "dataset": params["dataset"], "size": size}
    return ScoreSpec.from_dict({"base": params["base"], **asked})


def _stop_early() -> object:
    return st.toggle(t("Stop at the first checkpoint that passes every gate"), key="sweep_stop")


def _sweep_spec(run: RunPaths, stop: object) -> SweepSpec:
    params = read_spec(run).params
    return SweepSpec(
        run=str(run.root),
        base=params["model"],
        dataset=params["dataset"],
        stop_when_passed=bool(stop),
    )


_FORMS = (
    _Form(
        "score", "merge", N_("Score a merged model"), N_("Merge a checkpoint first (page Merge)."),
        N_("Merged model"), N_("Score it"), ":material/fact_check:", _size, score_spec,
    ),
    _Form(
        "sweep", "train", N_("Find the best checkpoint"), N_("Train first (page Train)."),
        N_("Training run"), N_("Compare the checkpoints"), ":material/stacked_line_chart:",
        _stop_early, _sweep_spec,
    ),
)  # fmt: skip


def _panel(run: RunPaths, live: bool) -> None:
    with errors_shown():
        now = api.status(run)
        if live and now.state not in ACTIVE:
            st.rerun()  # the whole page once, so that the timer is dropped
        left, right = st.columns([5, 1])
        with left:
            _progress(now, live)
        if live and right.button(t("Stop"), icon=":material/stop:", key=f"stop-{now.id}"):
            api.stop(run)


def _said(now: Status) -> str:
    """What a job does, in words: ids stand nowhere."""
    project = current.seen().owner_of(run=now.id)
    name = literal(project.title if project else now.name)
    if now.kind == "sweep":
        return t("Finding the best checkpoint of {name}", name=name)
    return t("Scoring {name}", name=name)


def _progress(now: Status, live: bool) -> None:
    if live:
        left = time_left(now.eta_seconds)
        share = now.done / now.total if now.total else 0.0
        line = f"{_said(now)} ({left})" if left else _said(now)
        part = literal(words.doing(now.stage))
        if now.total:
            line += f" · {part} · {number(now.done)} / {number(now.total)}"
        st.progress(min(share, 1.0), line)
        return
    if now.error is not None:
        st.caption(_said(now))
        show_error(now.error)
        return
    found = now.result or {}
    outcome = words.ending(now.state, now.reason)
    if verdict := found.get("verdict"):
        outcome = words.verdict(str(verdict))
    st.caption(f"{literal(current.name_of(now.id))} · {literal(outcome)}")


def cards(root: Path) -> list[Path]:
    """Scorecards of all runs, newest first."""
    found = [
        f for pattern in ("*/scorecard.json", "*/*/scorecard.json") for f in root.glob(pattern)
    ]
    return sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)
