"""What is shown of a run beside its curves: warnings, figures, samples, events, log, files."""

from __future__ import annotations

import shlex
from typing import Any

import pyarrow as pa
import streamlit as st

from core import fsio
from core.chat.render import code, literal
from core.jobs.journal import read_shared
from core.jobs.spec import read_spec
from core.jobs.state import State, Status
from core.paths import RunPaths
from pages._ui.shell.common import folder_tree
from pages._ui.train import checkpoints as train_checkpoints
from pages._ui.train import faults as train_faults


def banners(run: RunPaths, now: Status) -> None:
    """What needs attention: stalled, orphaned, lost, failed; warnings; what comes next."""
    if now.stalled:
        st.warning(
            "The run has printed nothing for a while. It may be stuck; look at the log, "
            "and stop it if nothing comes.",
            icon=":material/hourglass:",
        )
    if now.state is State.ORPHANED:
        st.warning(
            "The process that watched this run is gone, but the run's own processes go on, "
            "unwatched. End them, then resume from the newest checkpoint.",
            icon=":material/link_off:",
        )
    if now.state is State.LOST:
        st.warning(
            "This run ended without anybody seeing it: after a crash or a restart of the "
            "machine. Resume from its newest checkpoint below.",
            icon=":material/help:",
        )
    if now.left_over:
        st.error(
            f"Processes {now.left_over} could not be ended: they are stuck in the system. "
            "They go when the machine restarts.",
            icon=":material/dangerous:",
        )
    if now.error is not None:
        train_faults.draw(run, now)
    for event in read_shared(run.events):
        if event.get("event") == "warning":
            st.warning(
                f"Step {literal(event.get('step'))}: {literal(event.get('message'))}",
                icon=":material/warning:",
            )
    if now.state is State.SUCCEEDED:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.success(
                "Done, and its last checkpoint was checked. Next: merge it into the base.",
                icon=":material/check:",
            )
            st.page_link("pages/3_Merge.py", label="Merge", icon=":material/merge:")


def numbers(last: dict[str, float]) -> None:
    """The newest figures, those that the run reports."""
    fields = [
        ("Loss", "loss", lambda v: f"{v:.4f}"),
        ("Learning rate", "lr", lambda v: f"{v:.2e}"),
        ("Gradient norm", "grad_norm", lambda v: f"{v:.2f}"),
        ("Tokens/s", "tokens_per_s", lambda v: f"{v:,.0f}"),
        ("Seconds a step", "s_per_step", lambda v: f"{v:.2f}"),
        ("Memory", "memory_bytes", fsio.human_bytes),
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
    names = ["Samples", "Events", "Log", "Files"]
    if now.kind == "train":
        names.insert(0, "Checkpoints")
    shown = dict(zip(names, st.tabs(names), strict=True))
    samples, events = _tables(run)
    if "Checkpoints" in shown:
        with shown["Checkpoints"]:
            train_checkpoints.draw(run, now)
    with shown["Samples"]:
        if samples is None:
            st.caption("Replies to the sample prompts appear at each checkpoint.")
        else:
            st.dataframe(samples, hide_index=True, row_height=90)
    with shown["Events"]:
        st.dataframe(events, hide_index=True)
    with shown["Log"]:
        st.code(now.log_tail or "(nothing printed yet)", language=None, height=360, wrap_lines=True)
        st.caption(f"The end of {code(run.log)}")
    with shown["Files"]:
        if now.kind == "train" and read_spec(run).params.get("tensorboard"):
            st.caption("Curves in TensorBoard:")
            st.code(shlex.join(["tensorboard", "--logdir", str(run.work)]), language="bash")
        folder_tree(fsio.tree(run.root))


def _tables(run: RunPaths) -> tuple[pa.Table | None, pa.Table]:
    """Samples and events of a run, made anew only when the events have changed."""
    known = read_shared(run.events)
    return _made(str(run.events), len(known), known[-1].get("seq") if known else None, known)


@st.cache_resource(max_entries=32, show_spinner=False)
def _made(
    path: str, count: int, last: object, _events: list[dict[str, Any]]
) -> tuple[pa.Table | None, pa.Table]:
    named = [e for e in _events if isinstance(e.get("event"), str)]
    samples = _samples([e for e in named if e["event"] == "sample"])
    others = [
        {
            "after": f"{e.get('t', 0):.1f} s",
            "event": str(e.get("state") or e["event"]),
            "what": str(e.get("reason") or e.get("message") or e.get("behind") or ""),
        }
        for e in named
        if e["event"] != "sample"
    ]
    return pa.Table.from_pylist(samples) if samples else None, pa.Table.from_pylist(others)


def _samples(samples: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Replies to the fixed prompts: a row a checkpoint, a column a prompt."""
    rows: dict[str, dict[str, str]] = {}
    prompts = dict.fromkeys(str(sample.get("prompt")) for sample in samples)
    for sample in samples:
        step = str(sample.get("step"))
        row = rows.setdefault(step, {"step": step, **dict.fromkeys(prompts, "")})
        row[str(sample.get("prompt"))] = str(sample.get("reply"))
    return list(rows.values())
