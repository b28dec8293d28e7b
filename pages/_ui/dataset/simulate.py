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
from pages._ui.shell.common import errors_shown

_KIND_LABELS = {
    "question": "questions about the world",
    "creation": "creation",
    "material": "given material",
}


def draw() -> None:
    """The Simulate part."""
    st.write(
        "One model plays a person, another answers. First lines come from templates, later "
        "ones from the model that plays the person; every turn is checked."
    )
    left, right = st.columns(2, gap="large")
    with errors_shown():
        with left:
            spec, base = _form()
        cost = estimate(spec)
        with right:
            _outcome(spec, base, cost.calls, cost.max_calls, cost.max_tokens)


def _form() -> tuple[SimulateSpec, str]:
    base = st.text_input(
        "Model to train",
        "bundled",
        key="sim-base",
        help="General replies of another model are context only in dialogues with identity.",
    ).strip()
    assistant = st.text_input("Model that answers", base, key="sim-assistant").strip()
    user = st.text_input("Model that plays the person", assistant, key="sim-user").strip()
    st.caption(
        f"`bundled`, a folder, a hub id, or `{ENDPOINT_PREFIX}NAME` for an "
        f"OpenAI-compatible server at {URL_VARIABLE}."
    )
    if any(m.startswith(ENDPOINT_PREFIX) for m in (assistant, user)):
        _endpoint_hint()
    dialogues = st.number_input("Dialogues", 1, 100_000, 50)
    kinds = st.multiselect(
        "Kinds of opening", openings.KINDS, openings.KINDS, format_func=lambda k: _KIND_LABELS[k]
    )
    locale = st.selectbox(
        "Language", openings.locales(), help="The bundled model speaks English only."
    )
    if locale != "en" and "bundled" in (user, assistant):
        st.warning(
            "The bundled model speaks English only; choose another model.",
            icon=":material/translate:",
        )
    with st.expander("More settings", icon=":material/tune:"):
        identity = st.slider("Share of later rounds that ask about the persona", 0.0, 1.0, 0.4)
        reply_tokens = st.number_input("Longest reply (tokens)", 16, 2048, 96)
        seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="sim-seed")
        calls = st.number_input("Model calls at most (0 = worst case)", 0, 10**9, 0)
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
            f"{URL_VARIABLE} is set"
            + (
                f", {KEY_VARIABLE} too."
                if os.environ.get(KEY_VARIABLE)
                else f"; {KEY_VARIABLE} is not."
            )
        )
    else:
        st.warning(
            f"{URL_VARIABLE} is not set. Set it, and {KEY_VARIABLE} if the server wants a "
            "key, and start the app again. Neither is written to disk.",
            icon=":material/key_off:",
        )


def _outcome(spec: SimulateSpec, base: str, calls: int, max_calls: int, max_tokens: int) -> None:
    st.metric("Model calls", f"{calls:,}", help="If every turn passes its check at once.")
    st.caption(
        f"At most {max_calls:,} calls and {max_tokens:,} tokens, if every turn is asked "
        "for again as often as allowed. Finished dialogues are kept: starting again goes "
        "on where it stopped."
    )
    names = ["", *(s.name for s in store.list_datasets() if not s.problem)]
    parent = st.selectbox(
        "Add to dataset",
        names,
        format_func=lambda n: n or "none: dialogues alone",
        help="The new version has that dataset's rows, persona and probes, and the dialogues.",
    )
    name = st.text_input(
        "Name of the new version",
        store.free_name(f"{parent or 'dialogues'}-chat" if parent else "dialogues"),
        key=f"sim-name-{parent}",
    )
    if st.button("Simulate", type="primary", icon=":material/forum:"):
        check_name(name, "dataset name")
        run = api.launch(
            Spec(spec=spec, name=name, dataset=parent, base=base),
            name=f"dialogues {name}",
            options=Options(pass_env=(URL_VARIABLE, KEY_VARIABLE)),
        )
        st.query_params["run"] = run.root.name
        st.rerun()
