"""Sampling settings and the common system prompt."""

from __future__ import annotations

import streamlit as st

from core.chat.session import ChatSession
from core.chat.settings import MAX_NEW_TOKENS, PRESETS, ChatSettings, preset

_FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")


def draw(session: ChatSession | None) -> tuple[ChatSettings, str]:
    """The settings popover; returns settings and system prompt."""
    if "compare_temperature" not in st.session_state:
        _put(preset("greedy"))
    with st.expander("Settings", icon=":material/tune:"):
        st.segmented_control(
            "Preset", PRESETS, key="compare_preset", on_change=_use_preset, default=None
        )
        system = st.text_area(
            "System prompt",
            key="compare_system",
            height=80,
            placeholder="none",
            value=session.transcript.system if session else "",
        )
        left, right = st.columns(2)
        with left:
            temperature = st.slider(
                "Temperature",
                0.0,
                2.0,
                step=0.05,
                key="compare_temperature",
                help="0 is greedy: always the most probable token.",
            )
            top_p = st.slider("Top-p", 0.05, 1.0, step=0.05, key="compare_top_p")
            top_k = st.number_input("Top-k (0: off)", 0, 1000, key="compare_top_k")
        with right:
            penalty = st.slider(
                "Repetition penalty", 0.8, 2.0, step=0.005, key="compare_repetition_penalty"
            )
            length = st.number_input(
                "Longest reply, tokens", 1, MAX_NEW_TOKENS, key="compare_max_new_tokens"
            )
            seed = st.number_input("Seed", 0, 2**31, key="compare_seed")
    settings = ChatSettings(temperature, top_p, int(top_k), penalty, int(length), int(seed))
    return settings, system


def _use_preset() -> None:
    name = st.session_state.get("compare_preset")
    if name:
        _put(preset(name))


def _put(settings: ChatSettings) -> None:
    for field in _FIELDS:
        st.session_state[f"compare_{field}"] = getattr(settings, field)
