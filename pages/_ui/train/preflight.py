"""Before Start: what the run will do and cost, everything against it, the command to copy."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import streamlit as st

from core import fsio, paths
from core.chat.render import literal
from core.errors import UserErrors
from core.training.entry import xtuner_argv
from core.training.preflight import Preflight, preflight
from core.training.spec import TrainSpec
from pages._ui.shell.common import device, show_error


@st.cache_data(show_spinner="Looking at everything the run needs", max_entries=32)
def _look(values: dict[str, Any], stamp: int) -> Preflight:
    return preflight(TrainSpec.from_dict(values), device())


def draw(spec: TrainSpec) -> Preflight:
    """Draw all of it; what was found is what Start passes on."""
    train = paths.DatasetPaths(Path(spec.dataset)).train
    found = _look(spec.to_dict(), train.stat().st_mtime_ns if train.is_file() else 0)
    st.subheader("Before you start")
    _figures(found)
    for line in found.warnings:
        st.warning(literal(line), icon=":material/warning:")
    if found.problems:
        show_error(UserErrors(found.problems))
    elif not found.warnings:
        st.caption(":material/check: Ready to start.")
    command(spec)
    return found


def _figures(found: Preflight) -> None:
    dropped = found.tokens_dropped
    shown: list[tuple[str, str, str]] = [
        ("Optimizer steps", f"{found.steps:,}", "How often the weights change."),
        ("Each row is seen", f"{found.exposures:.1f} times", f"{found.rows:,} rows."),
        (
            "Tokens kept",
            f"{found.tokens_kept:,}",
            f"{dropped:,} dropped at the longest-row limit, {found.rows_cut} rows cut, "
            f"{found.rows_unusable} unusable; {found.tokens_supervised:,} carry loss.",
        ),
        (
            "Trained",
            f"{found.trained_parameters / 1e6:.1f} M",
            "Parameters of the LoRA adapter; the base stays as it is.",
        ),
    ]
    if found.seconds:
        shown.append(("Time", _duration(found.seconds.value), found.seconds.basis))
    if found.memory:
        shown.append(("Memory", fsio.human_bytes(found.memory.value), found.memory.basis))
    if found.disk:
        shown.append(("Disk", fsio.human_bytes(found.disk.value), found.disk.basis))
    with st.container(horizontal=True):
        for title, text, basis in shown:
            st.metric(title, text, help=basis, width="content")
    st.caption(
        ":material/check: Chat template verified: training and chat see the same tokens."
        if found.template_parity
        else ":material/close: Training and chat would see different tokens."
    )


def _duration(seconds: float) -> str:
    """An estimate has no seconds beyond the first minute."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def command(spec: TrainSpec) -> None:
    """The line that does the same without us, in an environment where XTuner works as it is."""
    config, work = Path("RUN/config.py"), Path("RUN/work")
    resume = Path(spec.resume_from) if spec.resume_from else None
    line = "xtuner train " + shlex.join(xtuner_argv(spec, config, work, resume))
    if spec.world_size > 1:
        line = f"NPROC_PER_NODE={spec.gpus} NNODES={spec.nodes} {line}"
    st.caption("The same by hand, RUN being the folder of the run:")
    st.code(line, language="bash", wrap_lines=True)
