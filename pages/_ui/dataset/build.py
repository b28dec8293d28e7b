"""The mix, its cost, and the button that builds, with the progress beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from core.chat.render import code
from core.data import store
from core.data.build import DatasetSpec
from core.data.generate_job import Spec
from core.data.own_identity import FEW, MANY
from core.fsio import check_name
from core.jobs import api
from core.persona import packs
from core.persona.persona import Persona
from core.training.budget import plan
from pages._ui.dataset.report import advice
from pages._ui.dataset.state import job_panel, jobs_at_work
from pages._ui.shell import current, typed
from pages._ui.shell.common import errors_shown, model_libraries
from pages._ui.shell.language import t
from pages._ui.start.make import FORM as START
from pages._ui.start.make import WHO

_DEFAULT = DatasetSpec(persona_path="")


def mix(form: dict[str, Any]) -> None:
    """What the dataset is made of, and how far that goes in training."""
    st.subheader(t("Mix"))
    _ratios(form)
    with st.expander(t("More settings"), icon=":material/tune:"):
        _settings(form)
    _plan(form)


def draw(
    form: dict[str, Any], pack: str, persona: Persona, overrides: dict[str, str], ready: bool
) -> None:
    """Name and Build; below them what is being built. ``ready``: nothing is left to fill in."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = _name(persona, pack)
        pressed = st.button(
            t("Build dataset"), type="primary", icon=":material/play_arrow:", disabled=not ready,
            key="build-dataset",
        )  # fmt: skip
    if pressed:
        with errors_shown():
            with st.spinner(
                t("Looking at the model")
            ):  # the bundled one is unpacked the first time
                model_libraries()
                run = start(form, pack, overrides, name)
            typed.forget(START, WHO.values())  # it is somebody now
            current.choose(build=run)
            st.rerun()
    job_panel()
    if "build" not in st.query_params and not jobs_at_work():
        _built()


def _built() -> None:
    """What the persona has already, and the next step with it."""
    here = current.current()
    if here is None or not here.datasets:
        return
    made = current.chosen("dataset", here.datasets)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f":material/check_circle: {t('{dataset} is built.', dataset=code(made))}")
        current.link_to_next("train", made, key="train-built")


def _name(persona: Persona, pack: str) -> str:
    """The dataset's name; it follows the persona's until the user writes another."""
    key, state = f"name-{pack}", st.session_state
    suggested, before = store.suggested_name(persona), f"name-{pack}-suggested"
    if state.get(key, state.get(before)) == state.get(before):
        state[key] = suggested
    state[before] = suggested
    return st.text_input(t("Name of the dataset"), key=key, width=280)


def _ratios(form: dict[str, Any]) -> None:
    chosen = form.get("rehearsal_ratio")
    automatic = st.checkbox(
        t("As many general replies as the base needs"),
        chosen is None,
        key="mix-automatic",
        help=t("It is asked who it is. One that names itself gets {many} for each identity "
               "conversation, others {few}.", many=f"{MANY:g}", few=f"{FEW:g}"),
    )  # fmt: skip
    form["rehearsal_ratio"] = None
    if not automatic:
        form["rehearsal_ratio"] = st.slider(
            t("General conversations for each identity conversation"),
            0.0,
            6.0,
            float(FEW if chosen is None else chosen),
            0.25,
            key="mix-rehearsal",
            help=t("The base model's own replies to everyday prompts. Without them every answer "
                   "turns into a self-introduction."),
        )  # fmt: skip
    form["multi_turn"] = st.slider(
        t("Share of identity conversations with several rounds"),
        0.0,
        1.0,
        float(form.get("multi_turn", _DEFAULT.multi_turn)),
        0.05,
        key="mix-multi",
    )


def _settings(form: dict[str, Any]) -> None:
    form["near_miss_ratio"] = st.slider(
        t("Look-alike conversations for each identity conversation"),
        0.0,
        2.0,
        float(form.get("near_miss_ratio", _DEFAULT.near_miss_ratio)),
        0.05,
        key="mix-near",
        help=t("Questions that sound like identity but are about somebody else, answered by the "
               "base model."),
    )  # fmt: skip
    limit = st.number_input(
        t("Identity conversations (0 = each wording of the pack once)"),
        0,
        1_000_000,
        int(form.get("max_rows", _DEFAULT.max_rows or 0)),
        key="mix-limit",
    )
    form["max_rows"] = int(limit)
    seed = st.number_input(
        t("Seed"), 0, 2**31 - 1, int(form.get("seed", 0)), key="mix-seed",
        help=t("Same seed, same rows."),
    )  # fmt: skip
    form["seed"] = int(seed)


def _plan(form: dict[str, Any]) -> None:
    """The budget of the mix, before anything is made."""
    identity = form["max_rows"]
    if not identity:
        return
    ratio = FEW if form["rehearsal_ratio"] is None else form["rehearsal_ratio"]
    general = round(identity * ratio) + round(identity * form["near_miss_ratio"])
    budget = plan(identity + general, identity, general_rows=general)
    st.caption(
        t("About {n:,} conversations. With 16 a step that is {steps:,} optimizer steps, and each "
          "is seen {times:.1f} times.", n=identity + general, steps=budget.steps,
          times=budget.exposures)
    )  # fmt: skip
    advice(replace(budget, advice=[a for a in budget.advice if a.level != "ok"]))


def start(form: dict[str, Any], pack: str, overrides: dict[str, str], name: str) -> str:
    """Launch the job; returns the run's id. Raises UserError if the name is taken."""
    if store.exists(check_name(name, "dataset name")):
        name = store.free_name(name)
    spec = DatasetSpec(
        persona_path=str(packs.find(pack)),
        overrides=overrides,
        model=form["model"],
        seed=form["seed"],
        rehearsal_ratio=form["rehearsal_ratio"],
        near_miss_ratio=form["near_miss_ratio"],
        multi_turn=form["multi_turn"],
        max_rows=form["max_rows"] or None,
    )
    return api.launch(Spec(spec=spec, name=name), name=f"dataset {name}").root.name
