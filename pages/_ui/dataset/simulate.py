"""The UltraChat loop: two models talk, and the dialogues become rows."""

from __future__ import annotations

import os

import streamlit as st

from core.data import store
from core.data.simulate_job import Spec
from core.data.simulator import SimulateSpec, estimate
from core.data.ultrachat import openings
from core.data.ultrachat.backends import ENDPOINT_PREFIX, KEY_VARIABLE, URL_VARIABLE
from core.fsio import check_name
from core.jobs import api
from core.jobs.spec import Options
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown, form_and_rest
from pages._ui.shell.language import N_, number, t
from pages._ui.shell.words import language_name

_KIND_LABELS = {
    "question": N_("questions about the world"),
    "creation": N_("creation"),
    "material": N_("given material"),
}


def draw() -> None:
    """The Simulate part."""
    st.write(
        t("One model plays a person, another answers. First lines come from templates, later ones "
          "from the model that plays the person; every turn is checked.")
    )  # fmt: skip
    left, right = form_and_rest()
    with errors_shown():
        with left:
            spec, base = _form()
        cost = estimate(spec)
        with right:
            _outcome(spec, base, cost.calls, cost.max_calls, cost.max_tokens)


def _form() -> tuple[SimulateSpec, str]:
    base = st.text_input(
        t("Model to train"),
        "bundled",
        key="sim-base",
        help=t("General replies of another model are context only in dialogues with identity."),
    ).strip()
    assistant = st.text_input(t("Model that answers"), base, key="sim-assistant").strip()
    user = st.text_input(t("Model that plays the person"), assistant, key="sim-user").strip()
    st.caption(
        t("`bundled`, a folder, a hub id, or `{prefix}NAME` for an OpenAI-compatible server at "
          "{variable}.", prefix=ENDPOINT_PREFIX, variable=URL_VARIABLE)
    )  # fmt: skip
    if any(m.startswith(ENDPOINT_PREFIX) for m in (assistant, user)):
        _endpoint_hint()
    dialogues = st.number_input(t("Dialogues"), 1, 100_000, 50)
    kinds = st.multiselect(
        t("Kinds of opening"),
        openings.KINDS,
        openings.KINDS,
        format_func=lambda k: t(_KIND_LABELS[k]),
    )
    locale = st.selectbox(
        t("Language"),
        openings.locales(),
        format_func=language_name,
        help=t("The bundled model speaks English only."),
    )
    if locale != "en" and "bundled" in (user, assistant):
        st.warning(
            t("The bundled model speaks English only; choose another model."),
            icon=":material/translate:",
        )
    with st.expander(t("More settings"), icon=":material/tune:"):
        identity = st.slider(t("Share of later rounds that ask about the persona"), 0.0, 1.0, 0.4)
        reply_tokens = st.number_input(t("Longest reply (tokens)"), 16, 2048, 96)
        seed = st.number_input(t("Seed"), 0, 2**31 - 1, 0, key="sim-seed")
        calls = st.number_input(t("Model calls at most (0 = worst case)"), 0, 10**9, 0)
    spec = SimulateSpec(
        dialogues=int(dialogues),
        user_model=user,
        assistant_model=assistant,
        locale=locale,
        seed=int(seed),
        kinds=tuple(kinds),
        identity=identity,
        reply_tokens=int(reply_tokens),
        max_calls=int(calls),
    )
    return spec, base


def _endpoint_hint() -> None:
    if os.environ.get(URL_VARIABLE):
        st.caption(
            t("{url} is set, {key} too.", url=URL_VARIABLE, key=KEY_VARIABLE)
            if os.environ.get(KEY_VARIABLE)
            else t("{url} is set; {key} is not.", url=URL_VARIABLE, key=KEY_VARIABLE)
        )
    else:
        st.warning(
            t("{url} is not set. Set it, and {key} if the server wants a key, and start the app "
              "again. Neither is written to disk.", url=URL_VARIABLE, key=KEY_VARIABLE),
            icon=":material/key_off:",
        )  # fmt: skip


def _outcome(spec: SimulateSpec, base: str, calls: int, max_calls: int, max_tokens: int) -> None:
    st.metric(t("Model calls"), number(calls), help=t("If every turn passes its check at once."))
    st.caption(
        t("At most {calls:,} calls and {tokens:,} tokens, if every turn is asked for again as "
          "often as allowed. Finished dialogues are kept: starting again goes on where it stopped.",
          calls=max_calls, tokens=max_tokens)
    )  # fmt: skip
    names = ["", *(s.name for s in store.list_datasets() if not s.problem)]
    parent = st.selectbox(
        t("Add to dataset"),
        names,
        format_func=lambda n: n or t("none: dialogues alone"),
        help=t("The new version has that dataset's rows, persona and probes, and the dialogues."),
    )
    name = st.text_input(
        t("Name of the new version"),
        store.free_name(f"{parent or 'dialogues'}-chat" if parent else "dialogues"),
        key=f"sim-name-{parent}",
    )
    if st.button(t("Simulate"), type="primary", icon=":material/forum:"):
        check_name(name, "dataset name")
        run = api.launch(
            Spec(spec=spec, name=name, dataset=parent, base=base),
            name=f"dialogues {name}",
            options=Options(pass_env=(URL_VARIABLE, KEY_VARIABLE)),
        )
        current.choose(build=run.root.name)
        st.rerun()
