"""What to train on and what to train: the dataset and the base model of a new run."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.chat.render import literal
from core.data import store
from core.training import drafts
from core.training.spec import DEFAULT_CONFIG
from pages._ui.shell import current, model_picker
from pages._ui.shell.language import from_core, t, tn

#: Pixels of a box: the name of a stock config.
_BOX = 300


def choose_dataset() -> Path | None:
    """A dataset of the workspace; None, with what to do, if there is none."""
    found = store.list_datasets()
    usable = [s for s in found if not s.problem]
    for broken in (s for s in found if s.problem):
        st.caption(
            ":material/warning: "
            + t(
                "Dataset {name}: {problem}",
                name=literal(broken.name),
                problem=literal(from_core(broken.problem)),
            )
        )
    if not usable:
        st.info(
            t("There is no dataset yet. Build one first: it takes a minute."),
            icon=":material/edit_note:",
        )
        current.link_to_next("dataset")
        return None
    by_name = {s.name: s for s in usable}
    st.session_state["train_dataset"] = current.chosen("dataset", list(by_name))
    name = st.selectbox(
        t("Dataset"),
        list(by_name),
        key="train_dataset",
        on_change=lambda: current.choose(dataset=st.session_state["train_dataset"]),
        format_func=lambda n: f"{n} · " + tn("{n} row", "{n} rows", by_name[n].rows),
    )
    return by_name[name].root if name else None


def choose() -> tuple[Path, str, str] | None:
    """(dataset, model, stock config), or None while one is missing.

    Raises:
        UserError: the model cannot be had.
    """
    from core.training.config import stock_configs

    row = st.container(horizontal=True)  # below each other where their names would be cut
    left, middle, right = (row.container(width=_BOX) for _ in range(3))
    with left:
        dataset = choose_dataset()
    if dataset is None:
        return None
    with middle:
        model = model_picker.pick(t("Base model"), "train_model", drafts.load().model)
    stocks = stock_configs()
    drafted = drafts.load().stock_config
    first = drafted if drafted in stocks else DEFAULT_CONFIG
    if st.session_state.setdefault("train_stock", first) not in stocks:
        st.session_state["train_stock"] = DEFAULT_CONFIG  # of an earlier run, gone since
    stock = right.selectbox(
        t("XTuner config to copy"),
        stocks,
        key="train_stock",
        persist_state="session",
        help=t(
            "Type to search. Its model and data are replaced by yours; everything else it sets "
            "stays unless you change it below."
        ),
    )
    return (dataset, model, stock) if model and stock else None
