"""A new merge: which checkpoint, how, what will be written, and one button."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from core import fsio
from core.chat.render import literal
from core.jobs import api
from core.models import catalog
from core.paths import RunPaths
from core.training import lifecycle
from core.weights.merge_job import MergeSpec
from core.weights.preview import outputs
from pages._ui.merge.state import RESULTS, Source, checkpoints, trained
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown, form_and_rest
from pages._ui.shell.language import N_, from_core, number, t
from pages._ui.shell.words import WHY_CHECKPOINT
from pages._ui.train.state import run_label

_DTYPES = {
    "": N_("of the base"),
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}

_ENGINES = {
    "stream": N_("Workbench, tensor by tensor"),
    "xtuner": N_("XTuner (whole model in memory, float16)"),
}
_CONVERTERS = {
    "fast": N_("Workbench, reads the LoRA weights only"),
    "xtuner": N_("XTuner's pth_to_hf"),
}


def draw() -> None:
    """The form, and beside it what pressing the button will write."""
    left, right = form_and_rest()
    with left:
        source = _source()
        if source is None:
            return
        options = _options(source)
    with right, errors_shown():
        _preview(source, options)
        if st.button(
            t("Merge and verify"),
            type="primary",
            icon=":material/merge:",
            key="merge_start",
            help=t(
                "Runs on when this window is closed. The folder appears only if the proof holds."
            ),
        ):
            _start(source, options)


def _source() -> Source | None:
    runs = trained()
    if not runs:
        st.info(
            t(
                "There is no checkpoint to merge yet. Train a persona first; every complete "
                "checkpoint of a run then appears here."
            ),
            icon=":material/merge:",
        )
        st.page_link("pages/2_Train.py", label=t("Go to Train"), icon=":material/model_training:")
        return None
    # What was just watched, here or on another page; a choice made here goes back to them.
    st.session_state["merge_run"] = current.chosen("run", list(runs))
    run_id = st.selectbox(
        t("Training run"),
        list(runs),
        format_func=lambda i: run_label(runs[i]),
        key="merge_run",
        on_change=lambda: current.choose(run=st.session_state["merge_run"]),
    )
    run = RunPaths(runs[run_id].root)
    whole, chosen = checkpoints(run.root)
    best = chosen.step if chosen and chosen.by != "last" else None
    steps = {c.step: c for c in whole}
    step = st.selectbox(
        t("Checkpoint"),
        list(steps),
        format_func=lambda s: t("step {n} · recommended" if s == best else "step {n}", n=s),
        key=f"merge_step_{run_id}",
    )
    if chosen is not None:
        st.caption(t(WHY_CHECKPOINT[chosen.by], step=number(chosen.step)))
    spec = lifecycle.training_spec(run)
    return Source(run, runs[run_id].name, steps[step], spec.model, spec.dataset)


def _options(source: Source) -> dict[str, Any]:
    """Settings of the job; what is left alone keeps its default."""
    key = f"merge_name_{source.run.root.name}"
    name = st.text_input(t("Name"), value=source.name, max_chars=48, key=key)
    with st.expander(t("Options"), icon=":material/tune:"):
        dtype = st.selectbox(
            t("Data type that is written"),
            list(_DTYPES),
            format_func=lambda d: t(_DTYPES[d]),
            key="merge_dtype",
            help=t("The base's own changes nothing that was not trained."),
        )
        faithful = st.toggle(
            t("Start from the NF4 base"),
            key="merge_faithful",
            help=t(
                "What QLoRA trained on: the base rounded to 4 bits and back. Nearer to the "
                "training loss, further from the base model. Both losses are reported either way."
            ),
        )
        fp32 = st.toggle(
            t("Adapter in float32"), key="merge_fp32", help=t("XTuner's --fp32; otherwise float16.")
        )
        shard = st.text_input(t("Largest weight file"), value="5GB", key="merge_shard")
        engine = st.selectbox(
            t("Merge with"),
            ["stream", "xtuner"],
            key="merge_engine",
            format_func=lambda e: t(_ENGINES[e]),
        )
        converter = st.selectbox(
            t("Convert with"),
            ["fast", "xtuner"],
            key="merge_converter",
            format_func=lambda e: t(_CONVERTERS[e]),
        )
    return {
        "name": name.strip() or source.name,
        "dtype": dtype or None,
        "faithful_nf4": faithful,
        "fp32": fp32,
        "max_shard_size": shard,
        "engine": engine,
        "convert_engine": converter,
    }


def _preview(source: Source, options: dict[str, Any]) -> None:
    st.subheader(t("What will be written"))
    with st.spinner(t("Looking at the base model")):
        base = catalog.resolve(source.model)
    dtype = "float16" if options["engine"] == "xtuner" else options["dtype"]
    files = outputs(base, source.checkpoint.path, fp32=options["fp32"], dtype=dtype)
    st.table(
        pd.DataFrame(
            [
                {
                    t("file"): f.path,
                    t("size"): fsio.human_bytes(f.size),
                    t("what"): from_core(f.what),
                }
                for f in files
            ]
        ).set_index(t("file"))
    )
    total = sum(f.size for f in files)
    st.caption(
        t(
            "{size} in a new folder; {free} free. Base: {base}, licence {licence}. "
            "The checkpoint and the base stay as they are.",
            size=fsio.human_bytes(total),
            free=fsio.human_bytes(fsio.free_bytes(source.run.root)),
            base=literal(base.name),
            licence=literal(base.license),
        )
    )


def _start(source: Source, options: dict[str, Any]) -> None:
    spec = MergeSpec(
        base=source.model,
        checkpoint=str(source.checkpoint.path),
        config=str(source.run.config),
        dataset=source.dataset,
        **{key: value for key, value in options.items() if key != "name"},
    )
    job = api.launch(spec, name=options["name"], parent=source.run.root.name)
    st.session_state.pop("merge_job", None)
    current.choose(view=RESULTS, merge=job.root.name)
    st.rerun()
