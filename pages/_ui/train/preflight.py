"""What the run will do and cost, and everything against it; the command to copy."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import streamlit as st

from core import fsio, paths
from core.chat.render import literal
from core.errors import UserErrors
from core.training.entry import xtuner_argv
from core.training.launch import node_command
from core.training.preflight import Estimate, Preflight, preflight
from core.training.spec import TrainSpec
from pages._ui.shell.common import device, show_error
from pages._ui.shell.language import duration, from_core, number, t, tn


@st.cache_data(show_spinner=False, max_entries=32)
def _look(values: dict[str, Any], stamp: int) -> Preflight:
    return preflight(TrainSpec.from_dict(values), device())


def draw(spec: TrainSpec) -> Preflight:
    """Draw all of it; what was found is what Start passes on."""
    train = paths.DatasetPaths(Path(spec.dataset)).train
    with st.spinner(t("Looking at everything the run needs")):
        found = _look(spec.to_dict(), train.stat().st_mtime_ns if train.is_file() else 0)
    st.subheader(t("Before you start"))
    _figures(found)
    for line in found.warnings:
        st.warning(literal(from_core(line)), icon=":material/warning:")
    if found.problems:
        show_error(UserErrors(found.problems))
    elif not found.warnings:
        st.caption(f":material/check: {t('Ready to start.')}")
    return found


def _figures(found: Preflight) -> None:
    tokens = t(
        "{dropped} dropped at the longest-row limit, {cut} rows cut, {unusable} unusable; "
        "{supervised} carry loss.",
        dropped=number(found.tokens_dropped),
        cut=found.rows_cut,
        unusable=found.rows_unusable,
        supervised=number(found.tokens_supervised),
    )
    shown: list[tuple[str, str, str]] = [
        (t("Optimizer steps"), number(found.steps), t("How often the weights change.")),
        (
            t("Each row is seen"),
            t("{n} times", n=f"{found.exposures:.1f}"),
            tn("{n} row", "{n} rows", found.rows),
        ),
        (t("Tokens kept"), number(found.tokens_kept), tokens),
        (
            t("Trained"),
            f"{found.trained_parameters / 1e6:.1f} M",
            t("Parameters of the LoRA adapter; the base stays as it is."),
        ),
    ]
    if found.seconds:
        shown.append((t("Time"), about_duration(found.seconds.value), _basis(found.seconds)))
    if found.memory:
        shown.append((t("Memory"), fsio.human_bytes(found.memory.value), _basis(found.memory)))
    if found.disk:
        shown.append((t("Disk"), fsio.human_bytes(found.disk.value), _basis(found.disk)))
    with st.container(horizontal=True):
        for title, text, basis in shown:
            st.metric(title, text, help=basis, width="content")
    st.caption(
        f":material/check: {t('Chat template verified: training and chat see the same tokens.')}"
        if found.template_parity
        else f":material/close: {t('Training and chat would see different tokens.')}"
    )


def _basis(figure: Estimate) -> str:
    return literal(from_core(figure.basis))


def about_duration(seconds: float) -> str:
    """An estimate has no seconds beyond the first minute."""
    return duration(seconds if seconds < 90 else 60 * round(seconds / 60))


def command(spec: TrainSpec) -> None:
    """The line that does the same without us, in an environment where XTuner works as it is."""
    config, work = Path("RUN/config.py"), Path("RUN/work")
    resume = Path(spec.resume_from) if spec.resume_from else None
    line = "xtuner train " + shlex.join(xtuner_argv(spec, config, work, resume))
    if spec.world_size > 1:
        line = f"NPROC_PER_NODE={spec.gpus} NNODES={spec.nodes} {line}"
    st.caption(t("The same by hand, RUN being the folder of the run:"))
    st.code(line, language="bash", wrap_lines=True)
    if spec.nodes > 1:
        st.caption(t("On every other node, once the run has started:"))
        st.code(node_command(spec, paths.RunPaths(Path("RUN"))), language="bash", wrap_lines=True)
