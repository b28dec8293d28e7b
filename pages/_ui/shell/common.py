"""Small pieces that several pages draw the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core import fsio, trees
from core.chat.render import code, literal, safe_markdown
from core.errors import UserError, UserErrors
from core.models.device import Device
from pages._ui.shell.language import from_core, t

#: What was waited for since the server started.
_SEEN: set[str] = set()


@contextmanager
def _first_time(said: str) -> Iterator[None]:
    """A spinner with ``said`` around what is done once a server; later it would leave a gap."""
    if said in _SEEN:
        yield
        return
    with st.spinner(said):
        yield
    _SEEN.add(said)


def model_libraries() -> None:
    """Import what opens models and tokenizers, one thread at a time.

    A click while a page still computes starts a second thread beside the first. Two threads in
    the middle of ``import transformers`` see half a module and fail with ImportError, so pages
    call this before anything that imports it.
    """
    with _first_time(t("Loading torch and transformers (once a server)")):
        _model_libraries()


@st.cache_resource(show_spinner=False)
def _model_libraries() -> bool:
    from transformers import AutoTokenizer  # noqa: F401  (the attribute does the lazy import)

    import core.inference.load
    import core.training.preflight  # noqa: F401

    return True


def form_and_rest(width: int = 360) -> tuple[DeltaGenerator, DeltaGenerator]:
    """A form and what it leads to: beside each other where both have room, else below.

    Columns would share what there is, and cut the boxes of the form in a window of 900 px.

    Args:
        width: pixels of the form: the longest label or choice of its boxes in one line.
    """
    row = st.container(horizontal=True, gap="large")
    return row.container(width=width), row.container(width="stretch")


def device() -> Device:
    """The device, looked up once a server (it imports torch)."""
    with _first_time(t("Looking at this machine")):
        return _device()


@st.cache_resource(show_spinner=False)
def _device() -> Device:
    from core.models.device import describe

    return describe()


def device_line() -> None:
    """One line under the title: what was found, and what follows."""
    found = device()
    st.caption(
        f":material/memory: {literal(from_core(found.line()))}",
        help=literal(from_core(found.compute_dtype.reason)),
    )


def show_error(error: UserError) -> None:
    """What, why and how to fix, for one problem or several.

    A message may quote a file or a server's answer, so it is shown as model text is: nothing in
    it loads an image or runs.
    """
    problems = error.problems if isinstance(error, UserErrors) else [error]
    for problem in problems:
        where = f"{code(problem.where)} " if problem.where else ""
        lines = [f"{where}{safe_markdown(from_core(problem.what))}"]
        if problem.why:
            lines.append(t("**Why:** {why}", why=safe_markdown(from_core(problem.why))))
        if problem.fix:
            lines.append(t("**Fix:** {fix}", fix=safe_markdown(from_core(problem.fix))))
        st.error("\n\n".join(lines), icon=":material/error:")


@contextmanager
def errors_shown() -> Iterator[None]:
    """Turn a UserError inside the block, or what the disk refuses, into a message on the page."""
    try:
        with fsio.disk_errors("a file of the workspace cannot be read or written"):
            yield
    except UserError as error:
        show_error(error)


def folder_tree(entries: list[trees.TreeEntry]) -> None:
    """A folder listing with sizes, as the tutorial's tree.py prints it."""
    lines = [
        f"{'    ' * e.depth}{e.path}{'/' if e.is_dir else ''}  ({fsio.human_bytes(e.size)})"
        for e in entries
    ]
    st.code("\n".join(lines) or t("(empty)"), language=None)
