"""What can leave the workbench: GGUF, an Ollama folder, the hub. Each is a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from core import fsio, trees
from core.chat.render import literal
from core.jobs import api
from core.jobs.spec import read_spec
from core.jobs.state import ACTIVE, Summary
from core.paths import RunPaths
from core.weights.export_job import ExportSpec
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown, folder_tree, form_and_rest, show_error
from pages._ui.shell.language import N_, t
from pages._ui.train.state import badge

_KINDS: dict[Literal["f32", "f16", "bf16", "q8_0"], str] = {
    "q8_0": N_("q8_0, 8 bits: half the size, hardly a difference"),
    "f16": N_("f16, 16 bits"),
    "bf16": N_("bf16, 16 bits"),
    "f32": N_("f32, exact"),
}


def draw(run: RunPaths, folder: Path) -> None:
    """The choices, and the exports of this merge so far."""
    left, right = form_and_rest()
    with left, errors_shown():
        spec = _choices(folder)
        pressed = st.button(
            t("Export"), icon=":material/ios_share:", key="merge_export", disabled=spec is None
        )
        if pressed and spec is not None:
            name = f"{spec.format} of {read_spec(run).name}"
            api.launch(spec, name=name, parent=run.root.name)
            st.rerun()
    with right:
        jobs = [s for s in api.list_runs() if s.kind == "export" and s.parent == run.root.name]
        live = any(s.state in ACTIVE for s in jobs)
        panel: Callable[..., None] = st.fragment(_jobs, run_every=1.0 if live else None)
        panel(jobs, live)


def _choices(folder: Path) -> ExportSpec | None:
    """What the export job is asked, or None while something is missing."""
    target = st.segmented_control(
        t("To"),
        [N_("Ollama"), N_("GGUF"), N_("Hugging Face hub")],
        default="Ollama",
        key="merge_target",
        format_func=t,
        required=True,
    )
    if target == "Hugging Face hub":
        st.caption(t("Uses the login of `hf auth login`. Nothing is sent before you press Export."))
        repo = st.text_input(t("Repository"), placeholder=t("owner/name"), key="merge_repo").strip()
        private = st.toggle(t("Private"), value=True, key="merge_private")
        if not repo:
            return None
        return ExportSpec(merged=str(folder), format="hub", repo=repo, private=private)
    kind = st.selectbox(
        t("Type of the weights"),
        list(_KINDS),
        format_func=lambda k: t(_KINDS[k]),
        key="merge_gguf_kind",
    )
    if target == "Ollama":
        st.caption(t("A GGUF file and a Modelfile with the chat template and stop tokens."))
    else:
        st.caption(t("One file for llama.cpp and what is built on it."))
    target_format: Literal["ollama", "gguf"] = "ollama" if target == "Ollama" else "gguf"
    return ExportSpec(merged=str(folder), format=target_format, kind=kind)


def _jobs(jobs: list[Summary], live: bool) -> None:
    if not jobs:
        st.caption(t("No export of this model yet."))
    still = False
    for summary in jobs:
        now = api.status(RunPaths(summary.root))
        still = still or now.state in ACTIVE
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                badge(now.state, now.reason if now.final else None)
                st.caption(literal(current.name_of(summary.id)))
            if now.state in ACTIVE:
                st.progress(now.done / now.total if now.total else 0.0)
            if now.error:
                show_error(now.error)
            if now.result:
                _done(now.result, read_spec(RunPaths(summary.root)).params, summary)
    if live and not still:
        st.rerun()


def _done(result: dict[str, Any], params: dict[str, Any], summary: Summary) -> None:
    if params["format"] == "hub":
        st.markdown(literal(result["address"]))
        return
    out = Path(result["out"])
    if not out.is_dir():
        st.caption(t("The folder was removed."))
        return
    folder_tree(trees.tree(out))
    if params["format"] == "ollama":
        said = current.seen().names.get(summary.id)
        # Without a persona, what the merged model is called: the job is "ollama of <it>".
        name = fsio.slug(said.persona if said else summary.name.rpartition(" of ")[2])
        st.code(f"cd {out}\nollama create {name} -f Modelfile\nollama run {name}", language="bash")
    else:
        st.code(str(out), language=None)
