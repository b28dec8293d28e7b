"""Sampling settings, the common system prompt, and how replies are shown."""

from __future__ import annotations

import streamlit as st

from core.chat.render import literal
from core.chat.session import ChatSession
from core.errors import UserError
from core.inference.settings import MAX_NEW_TOKENS, PRESETS, GenerationSettings, preset
from core.models import catalog
from pages._ui.compare import state as compare_state

_FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
_HELP = {
    "greedy": "Always the most probable token: the same reply every time.",
    "xtuner chat": "As `xtuner chat` draws: temperature 0.1, top-k 40, top-p 0.75.",
    "web demo": "As InternLM's web demo draws: temperature 0.8, top-p 0.8, penalty 1.005.",
    "model default": "What the model's generation_config.json says.",
}


def draw(session: ChatSession | None) -> tuple[GenerationSettings, str]:
    """The settings; returns them and the system prompt. The same for every column."""
    for field in _FIELDS:
        kept = st.session_state.get("compare_kept", preset("greedy").to_dict())
        st.session_state.setdefault(f"compare_{field}", kept[field])
    opened = session.transcript.id if session else ""
    if st.session_state.get("compare_system_of") != opened:
        st.session_state["compare_system_of"] = opened
        if session is not None:
            st.session_state["compare_system"] = session.transcript.system
    with st.expander("Settings", icon=":material/tune:"):
        st.segmented_control(
            "Preset", PRESETS, key="compare_preset", on_change=_use_preset,
            help="\n".join(f"- **{k}**: {v}" for k, v in _HELP.items()),
        )  # fmt: skip
        system = st.text_area(
            "System prompt", key="compare_system", height=80, placeholder="none",
            help="For every column that has none of its own.",
        )  # fmt: skip
        settings = _sampling()
    # Widgets forget their values when another page is shown; this key does not.
    st.session_state["compare_kept"] = settings.to_dict()
    return settings, system


def _sampling() -> GenerationSettings:
    left, right = st.columns(2)
    with left:
        temperature = st.slider(
            "Temperature", 0.0, 2.0, step=0.05, key="compare_temperature",
            help="0 is greedy: always the most probable token.",
        )  # fmt: skip
        greedy = temperature == 0
        top_p = st.slider("Top-p", 0.05, 1.0, step=0.05, key="compare_top_p", disabled=greedy)
        top_k = st.number_input("Top-k (0: off)", 0, 100_000, key="compare_top_k", disabled=greedy)
    with right:
        penalty = st.slider(
            "Repetition penalty", 0.8, 2.0, step=0.005, format="%.3f",
            key="compare_repetition_penalty",
        )  # fmt: skip
        length = st.number_input(
            "Longest reply, tokens", 1, MAX_NEW_TOKENS, key="compare_max_new_tokens"
        )
        seed = st.number_input("Seed", 0, 2**31, key="compare_seed", disabled=greedy)
    return GenerationSettings(temperature, top_p, int(top_k), penalty, int(length), int(seed))


def _use_preset() -> None:
    name = st.session_state.get("compare_preset")
    if not name:
        return
    model = None
    if name == "model default":
        chosen = {m.label: m for m in compare_state.found()}
        first = chosen.get(st.session_state.get("compare_side_a", ""))
        try:
            model = catalog.resolve(first.model).path if first else None
        except UserError as error:
            st.toast(literal(error.what), icon=":material/error:")
    settings = preset(name, model)
    for field in _FIELDS:
        st.session_state[f"compare_{field}"] = getattr(settings, field)
