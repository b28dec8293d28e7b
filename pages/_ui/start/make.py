"""Run all: a name, a maker and one press; then the stages, live, and what to do at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection

import streamlit as st

from core.chat.render import literal
from core.jobs import api
from core.jobs.state import FINAL, State, Summary
from core.paths import RunPaths
from core.persona import packs
from core.pipeline import presets
from core.pipeline.tune_job import Spec
from pages._ui.shell import current, model_picker, typed
from pages._ui.shell.common import device, errors_shown, model_libraries
from pages._ui.shell.language import N_, from_core, t
from pages._ui.shell.words import pack_title
from pages._ui.start import watch

_PACK = "assistant"
_PRESETS: dict[presets.Name, str] = {
    "quick": N_("Quick"),
    "good": N_("Good"),
    "thorough": N_("Thorough"),
}
_ABOUT: dict[presets.Name, str] = {
    "quick": N_("Half the examples: a first look, often enough."),
    "good": N_("What the published results were made with."),
    "thorough": N_("Twice the examples, and a scorecard with attacks and long talks."),
}
#: What "Try the example" makes.
_EXAMPLE = ("Luna", "Riverside Lab")
_EVERY = 1.0
#: The form among those that are remembered; who it is, and all of it.
FORM = "start"
WHO = {"name": "start_name", "author": "start_maker"}
_KEYS = (*WHO.values(), "start_preset", "start_pack", "start_model")


def draw() -> None:
    """The run that the address or the session names, or the form for a new one."""
    runs = {s.id: s for s in current.seen().runs.values() if s.kind == "tune"}
    run = _watched(runs)
    if run is not None:
        live = run.state not in FINAL
        panel: Callable[..., None] = st.fragment(watch.panel, run_every=_EVERY if live else None)
        panel(RunPaths(run.root), live)
        return
    _form()


def _watched(runs: dict[str, Summary]) -> Summary | None:
    if "new" in st.query_params:
        return None
    if "all" in st.query_params:
        return runs.get(current.chosen("all", list(runs)))
    here = current.current()
    newest = next(iter(here.of("tune")), None) if here else None
    return newest if newest and (newest.state not in FINAL or _unfinished(newest)) else None


def _unfinished(run: Summary) -> bool:
    """Stopped on its way and not gone on with: it waits here for whoever comes back."""
    return run.state is not State.SUCCEEDED


def _form() -> None:
    choices: dict[str, Collection[str]] = {
        "start_preset": list(_PRESETS),
        "start_pack": list(packs.all_packs()),
    }
    typed.recall(FORM, {key: choices.get(key) for key in _KEYS})
    with st.container(border=True):
        st.subheader(t("Make a persona"))
        with st.container(horizontal=True, vertical_alignment="top"):
            with st.container(width=260):
                name = st.text_input(
                    t("Name"), key="start_name", max_chars=80, placeholder=_EXAMPLE[0],
                    persist_state="session",
                ).strip()  # fmt: skip
                name_fault = st.empty()
            with st.container(width=260):
                maker = st.text_input(
                    t("Made by"), key="start_maker", max_chars=80, placeholder=_EXAMPLE[1],
                    persist_state="session",
                ).strip()  # fmt: skip
                maker_fault = st.empty()
        preset = _preset()
        pack, model = _more()
        with st.container(horizontal=True, vertical_alignment="center"):
            pressed = st.button(
                t("Run all"), type="primary", icon=":material/play_arrow:", key="start_run",
                disabled=model is None,
                help=t("Builds the dataset, trains, merges the best checkpoint and scores it. It "
                       "goes on when this window is closed."),
            )  # fmt: skip
            example = st.button(
                t("Try the example"), icon=":material/auto_awesome:", key="start_example",
                help=t("{name} by {maker}, with the bundled model.", name=_EXAMPLE[0],
                       maker=_EXAMPLE[1]),
            )  # fmt: skip
            st.page_link(
                "pages/1_Dataset.py", label=t("Step by step instead"),
                icon=":material/arrow_forward:",
            )  # fmt: skip
        typed.keep(FORM, _KEYS)
        if example:
            _start(_EXAMPLE, preset, _PACK, "bundled")
        elif pressed and model:
            if not name:
                name_fault.caption(t(":red[Give it a name.]"))
            if not maker:
                maker_fault.caption(t(":red[Say who made it.]"))
            if name and maker:
                _start((name, maker), preset, pack, model)


def _preset() -> presets.Name:
    expected = _expected()
    st.session_state.setdefault("start_preset", "good")
    chosen: presets.Name = st.session_state["start_preset"]
    st.segmented_control(
        t("How thorough"),
        list(_PRESETS),
        required=True,
        format_func=lambda p: f"{t(_PRESETS[p])} · {expected[p]}" if p in expected else p,
        key="start_preset",
        persist_state="session",
    )
    st.caption(f"{t(_ABOUT[chosen])} :material/memory: {literal(from_core(device().line()))}")
    return chosen


def _expected() -> dict[presets.Name, str]:
    """Minutes of each preset on this device, by what runs here have taken."""
    past = list(current.seen().runs.values())
    return {
        name: t("about {n} min", n=minutes)
        for name, minutes in presets.minutes(device(), past).items()
    }


def _more() -> tuple[str, str | None]:
    """Pack and model; None while the model is not fetched or not trusted."""
    with st.expander(t("Character and base model"), icon=":material/tune:"):
        names = list(packs.all_packs())
        st.session_state.setdefault(
            "start_pack", _PACK if _PACK in names else next(iter(names), "")
        )
        pack = st.selectbox(
            t("Character"), names,
            format_func=pack_title, key="start_pack",
            help=t("What it is and how it talks. The Dataset page has every sentence."),
        )  # fmt: skip
        model = model_picker.pick(t("Base model"), "start_model")
    return pack, model


def _start(who: tuple[str, str], preset: presets.Name, pack: str, model: str) -> None:
    with errors_shown(), st.spinner(t("Looking at the model")):
        model_libraries()
        slots = {"name": who[0], "author": who[1]}
        spec = presets.PRESETS[preset].spec(str(packs.find(pack)), slots, model)
        try:
            run = api.launch(Spec(spec=spec), name=who[0]).root.name
        except api.AlreadyStarted as already:
            run = already.run
        if who != _EXAMPLE:
            typed.forget(FORM, WHO.values())
        current.choose(all=run)
        st.rerun()
