"""The config beside the form: our edits marked against the stock file, or raw text."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.chat.render import code
from core.training import config, configdiff, rawconfig
from core.training.spec import TrainSpec
from pages._ui.shell.language import t

_RAW = "train_raw_text"
_MARKS = {"same": " ", "added": "+", "removed": "-"}


@st.cache_data(show_spinner=False, max_entries=32)
def rendered(values: dict[str, Any]) -> str:
    """The config of a spec. ``steps`` and the like are part of it, so the key is the spec."""
    spec = TrainSpec.from_dict(values)
    return config.render(spec, config.resolve_inputs(spec))


def draw(spec: TrainSpec) -> TrainSpec:
    """Show the source; the spec with ``config_text`` set if raw-text mode is on."""
    text = rendered(spec.to_dict())
    stock = config.stock_source(spec.stock_config)
    raw = st.toggle(
        t("Edit the text"),
        key="train_raw",
        persist_state="session",
        help=t(
            "The text below is then the config, and the form no longer changes it. It is parsed "
            "here, but only ever run inside the training process."
        ),
    )
    if raw:
        return _raw(spec, text)
    lines = configdiff.diff(stock, text)
    changed = sum(line.kind == "added" for line in lines)
    marked, plain, only = st.tabs([t("Edits marked"), t("Config"), t("Edits only")])
    marked.code(
        "\n".join(f"{_MARKS[line.kind]} {line.text}" for line in lines), language="diff", height=620
    )
    plain.code(text, language="python", line_numbers=True, height=620)
    only.code(configdiff.unified_diff(spec, text), language="diff", height=620)
    st.caption(
        t(
            "{n} lines differ from XTuner's {file}; its comments and order are kept.",
            n=changed,
            file=code(spec.stock_config + ".py"),
        )
    )
    return spec


def _raw(spec: TrainSpec, text: str) -> TrainSpec:
    edited = st.text_area(
        "config.py",
        value=text,
        height=560,
        key=_RAW,
        persist_state="session",
        label_visibility="collapsed",
    )
    if st.button(
        t("Start again from the form"),
        icon=":material/restart_alt:",
        key="train_raw_reset",
        on_click=lambda: st.session_state.pop(_RAW, None),
    ):
        edited = text
    rawconfig.check_raw(edited)  # a UserError with the line is shown in place of the start button
    if edited == text:
        st.caption(t("Nothing is changed yet."))
        return spec
    st.caption(
        ":material/edit: "
        + t(
            "The form's values are not applied while this text is used. Keep its step count the "
            "same as the form's: the last checkpoint is looked for there."
        )
    )
    return spec.changed(config_text=edited)
