"""What to train on and what to train: the dataset and the base model of a new run."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import paths
from core.chat.render import code, literal
from core.data import store
from core.training.spec import DEFAULT_CONFIG


def choose_dataset() -> Path | None:
    """A dataset of the workspace; None, with what to do, if there is none."""
    found = store.list_datasets()
    usable = [s for s in found if not s.problem]
    for broken in (s for s in found if s.problem):
        st.caption(f":material/warning: dataset {literal(broken.name)}: {literal(broken.problem)}")
    if not usable:
        st.info(
            "There is no dataset yet. Build one first: it takes a minute.",
            icon=":material/edit_note:",
        )
        st.page_link("pages/1_Dataset.py", label="Go to Dataset", icon=":material/edit_note:")
        return None
    by_name = {s.name: s for s in usable}
    name = st.selectbox(
        "Dataset",
        list(by_name),
        key="train_dataset",
        persist_state="session",
        format_func=lambda n: f"{n} · {by_name[n].rows:,} rows",
    )
    return by_name[name].root if name else None


def choose_model() -> str | None:
    """The base model. A hub id is only fetched after a press of a button."""
    folders = (
        [
            str(p)
            for p in sorted(paths.models_dir().glob("*/"))
            if (p / "config.json").is_file() and "smollm2" not in p.name.lower()
        ]
        if paths.models_dir().is_dir()
        else []
    )
    model = st.selectbox(
        "Base model",
        ["bundled", *folders],
        key="train_model",
        accept_new_options=True,
        persist_state="session",
        help="'bundled' is SmolLM2-135M-Instruct, which came with the "
        "installation. Or type a model folder or a hub id.",
        format_func=lambda m: "bundled · SmolLM2-135M-Instruct" if m == "bundled" else m,
    )
    if not model or model == "bundled" or Path(model).expanduser().exists():
        return model
    fetched = st.session_state.setdefault("train_hub_ids", set())
    if model not in fetched:
        st.caption(f"{code(model)} is no folder here, so it would be fetched from the hub.")
        if not st.button("Fetch from the hub", icon=":material/download:", key="train_fetch"):
            return None
        with st.spinner(f"Fetching {literal(model)}"):
            from core.models import catalog

            catalog.resolve(model)
        fetched.add(model)
    return model


def choose() -> tuple[Path, str, str] | None:
    """(dataset, model, stock config), or None while one is missing.

    Raises:
        UserError: the model cannot be had.
    """
    from core.training.config import stock_configs

    left, middle, right = st.columns(3)
    with left:
        dataset = choose_dataset()
    if dataset is None:
        return None
    with middle:
        model = choose_model()
    stocks = stock_configs()
    stock = right.selectbox(
        "XTuner config to copy",
        stocks,
        index=stocks.index(DEFAULT_CONFIG),
        key="train_stock",
        persist_state="session",
        help="Type to search. Its model and data are replaced by yours; everything else it sets "
        "stays unless you change it below.",
    )
    return (dataset, model, stock) if model and stock else None
