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
from pages._ui.merge.state import RESULTS, Source, checkpoints, go_to, trained
from pages._ui.shell.common import errors_shown, run_label
from pages._ui.shell.language import number, t
from pages._ui.shell.words import WHY_CHECKPOINT

_DTYPES = {"": "of the base", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def draw() -> None:
    """The form, and beside it what pressing the button will write."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        source = _source()
        if source is None:
            return
        options = _options(source)
    with right, errors_shown():
        _preview(source, options)
        if st.button(
            "Merge and verify",
            type="primary",
            icon=":material/merge:",
            key="merge_start",
            help="Runs on when this window is closed. The folder appears only if the proof holds.",
        ):
            _start(source, options)


def _source() -> Source | None:
    runs = trained()
    if not runs:
        st.info(
            "There is no checkpoint to merge yet. Train a persona first; every whole checkpoint "
            "of a run then appears here.",
            icon=":material/merge:",
        )
        st.page_link("pages/2_Train.py", label="Go to Train", icon=":material/model_training:")
        return None
    run_id = st.selectbox(
        "Training run",
        list(runs),
        format_func=lambda i: run_label(runs[i]),
        key="merge_run",
    )
    run = RunPaths(runs[run_id].root)
    whole, chosen = checkpoints(run.root)
    best = chosen.step if chosen and chosen.by != "last" else None
    steps = {c.step: c for c in whole}
    step = st.selectbox(
        "Checkpoint",
        list(steps),
        format_func=lambda s: f"step {s}" + (" · recommended" * (s == best)),
        key=f"merge_step_{run_id}",
    )
    if chosen is not None:
        st.caption(t(WHY_CHECKPOINT[chosen.by], step=number(chosen.step)))
    spec = lifecycle.training_spec(run)
    return Source(run, runs[run_id].name, steps[step], spec.model, spec.dataset)


def _options(source: Source) -> dict[str, Any]:
    """Settings of the job; what is left alone keeps its default."""
    key = f"merge_name_{source.run.root.name}"
    name = st.text_input("Name", value=source.name, max_chars=48, key=key)
    with st.expander("Options", icon=":material/tune:"):
        dtype = st.selectbox(
            "Data type that is written",
            list(_DTYPES),
            format_func=_DTYPES.__getitem__,
            key="merge_dtype",
            help="The base's own changes nothing that was not trained.",
        )
        faithful = st.toggle(
            "Start from the NF4 base",
            key="merge_faithful",
            help="What QLoRA trained on: the base rounded to 4 bits and back. Nearer to the "
            "training loss, further from the base model. Both losses are reported either way.",
        )
        fp32 = st.toggle(
            "Adapter in float32", key="merge_fp32", help="XTuner's --fp32; otherwise float16."
        )
        shard = st.text_input("Largest weight file", value="5GB", key="merge_shard")
        engine = st.selectbox(
            "Merge with",
            ["stream", "xtuner"],
            key="merge_engine",
            format_func={
                "stream": "Workbench, tensor by tensor",
                "xtuner": "XTuner (whole model in memory, float16)",
            }.__getitem__,
        )
        converter = st.selectbox(
            "Convert with",
            ["fast", "xtuner"],
            key="merge_converter",
            format_func={
                "fast": "Workbench, reads the LoRA weights only",
                "xtuner": "XTuner's pth_to_hf",
            }.__getitem__,
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
    st.subheader("What will be written")
    with st.spinner("Looking at the base model"):
        base = catalog.resolve(source.model)
    dtype = "float16" if options["engine"] == "xtuner" else options["dtype"]
    files = outputs(base, source.checkpoint.path, fp32=options["fp32"], dtype=dtype)
    st.table(
        pd.DataFrame(
            [{"file": f.path, "size": fsio.human_bytes(f.size), "what": f.what} for f in files]
        ).set_index("file")
    )
    total = sum(f.size for f in files)
    st.caption(
        f"{fsio.human_bytes(total)} in a new folder; "
        f"{fsio.human_bytes(fsio.free_bytes(source.run.root))} free. "
        f"Base: {literal(base.name)}, licence {literal(base.license)}. "
        "The checkpoint and the base stay as they are."
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
    go_to(RESULTS, job.root.name)
    st.rerun()
