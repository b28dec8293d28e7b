"""What is shown of a run beside its curves: warnings, figures, samples, events, log, files."""

from __future__ import annotations

import shlex
from typing import Any

import pyarrow as pa
import streamlit as st

from core import fsio, trees
from core.chat.render import code, literal
from core.evaluation import choice
from core.jobs.journal import read_shared
from core.jobs.spec import read_spec
from core.jobs.state import State, Status
from core.paths import RunPaths
from pages._ui.shell import current, words
from pages._ui.shell.common import folder_tree
from pages._ui.shell.language import duration, from_core, number, t
from pages._ui.shell.words import WHY_CHECKPOINT
from pages._ui.train import checkpoints as train_checkpoints
from pages._ui.train import faults as train_faults


def banners(run: RunPaths, now: Status) -> None:
    """What needs attention: stalled, orphaned, lost, failed; warnings; what comes next."""
    if now.stalled:
        st.warning(
            t(
                "The run has printed nothing for a while. It may be stuck; look at the log, and "
                "stop it if nothing comes."
            ),
            icon=":material/hourglass:",
        )
    if now.state is State.ORPHANED:
        st.warning(
            t(
                "The process that watched this run is gone, but the run's own processes go on, "
                "unwatched. End them, then resume from the newest checkpoint."
            ),
            icon=":material/link_off:",
        )
    if now.state is State.LOST:
        st.warning(
            t(
                "This run ended without anybody seeing it: after a crash or a restart of the "
                "machine. Resume it from its newest checkpoint."
            ),
            icon=":material/help:",
        )
    if now.left_over:
        st.error(
            t(
                "Processes {pids} could not be ended: they are stuck in the system. They go when "
                "the machine restarts.",
                pids=literal(", ".join(map(str, now.left_over))),
            ),
            icon=":material/dangerous:",
        )
    if now.error is not None:
        train_faults.draw(run, now)
    for event in read_shared(run.events):
        if event.get("event") == "warning":
            st.warning(
                t(
                    "Step {step}: {said}",
                    step=literal(event.get("step")),
                    said=literal(from_core(str(event.get("message")))),
                ),
                icon=":material/warning:",
            )
    if now.state is State.SUCCEEDED:
        _next(run, now)


def _next(run: RunPaths, now: Status) -> None:
    """The checkpoint to take, and the button that takes it; or that none is worth it."""
    best = choice.recommended(run) if now.kind == "train" else None
    if best is None:
        st.success(t("Done."), icon=":material/check:")
        return
    if best.damaged:
        st.error(
            t(
                "Every checkpoint has lost much of what the base could do. Train again with a "
                "third of the learning rate before you merge."
            ),
            icon=":material/heart_broken:",
        )
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.success(
            t("Done.") + " " + t(WHY_CHECKPOINT[best.by], step=number(best.step)),
            icon=":material/check:",
        )
        current.link_to_next("merge", run.root.name)


def numbers(last: dict[str, float]) -> None:
    """The newest figures, those that the run reports."""
    fields = [
        (t("Loss"), "loss", lambda v: f"{v:.4f}"),
        (t("Learning rate"), "lr", lambda v: f"{v:.2e}"),
        (t("Gradient norm"), "grad_norm", lambda v: f"{v:.2f}"),
        (t("Tokens per second"), "tokens_per_s", lambda v: f"{v:,.0f}"),
        (t("Seconds a step"), "s_per_step", lambda v: f"{v:.2f}"),
        (t("Memory"), "memory_bytes", fsio.human_bytes),
    ]
    known = [
        (title, form(last[key]))
        for title, key, form in fields
        if isinstance(last.get(key), (int, float))
    ]
    if known:
        with st.container(horizontal=True, gap="medium"):
            for title, text in known:
                st.metric(title, text, width="content")


def tabs(run: RunPaths, now: Status) -> None:
    """Checkpoints, samples, events, log, files."""
    names = [t("Samples"), t("Events"), t("Log"), t("Files")]
    if now.kind == "train":
        names.insert(0, t("Checkpoints"))
    *first, samples, happened, log, files = st.tabs(names)
    replies, events = _tables(run)
    for tab in first:
        with tab:
            train_checkpoints.draw(run)
    with samples:
        if replies is None:
            st.caption(t("Replies to the sample prompts appear at each checkpoint."))
        else:
            st.dataframe(replies, hide_index=True, row_height=90)
    with happened:
        st.dataframe(events, hide_index=True)
    with log:
        said = now.log_tail or t("(nothing printed yet)")
        st.code(said, language=None, height=360, wrap_lines=True)
        st.caption(t("The end of {file}", file=code(run.log)))
    with files:
        if now.kind == "train" and read_spec(run).params.get("tensorboard"):
            st.caption(t("Curves in TensorBoard:"))
            st.code(shlex.join(["tensorboard", "--logdir", str(run.work)]), language="bash")
        folder_tree(trees.tree(run.root))


def _tables(run: RunPaths) -> tuple[pa.Table | None, pa.Table]:
    """Samples and events of a run, made anew only when the events have changed."""
    known = read_shared(run.events)
    last = known[-1].get("seq") if known else None
    headings = (t("after"), t("event"), t("what"), t("step"))
    return _made(str(run.events), len(known), last, headings, known)


@st.cache_resource(max_entries=32, show_spinner=False)
def _made(
    path: str,
    count: int,
    last: object,
    headings: tuple[str, str, str, str],
    _events: list[dict[str, Any]],
) -> tuple[pa.Table | None, pa.Table]:
    named = [e for e in _events if isinstance(e.get("event"), str)]
    after, event, what, step = headings
    samples = _samples([e for e in named if e["event"] == "sample"], step)
    others = [
        {
            after: duration(e.get("t", 0)),
            event: words.happened(str(e.get("state") or e["event"])),
            what: words.reason_name(str(e.get("reason") or ""))
            or from_core(str(e.get("message") or e.get("behind") or "")),
        }
        for e in named
        if e["event"] not in ("sample", "figures")
    ]
    return pa.Table.from_pylist(samples) if samples else None, pa.Table.from_pylist(others)


def _samples(samples: list[dict[str, Any]], heading: str) -> list[dict[str, str]]:
    """Replies to the fixed prompts: a row a checkpoint, a column a prompt."""
    rows: dict[str, dict[str, str]] = {}
    prompts = dict.fromkeys(str(sample.get("prompt")) for sample in samples)
    for sample in samples:
        step = str(sample.get("step"))
        row = rows.setdefault(step, {heading: step, **dict.fromkeys(prompts, "")})
        row[str(sample.get("prompt"))] = str(sample.get("reply"))
    return list(rows.values())
