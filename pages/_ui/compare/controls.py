"""Sampling settings and the common system prompt."""

from __future__ import annotations

import streamlit as st

from core.chat.render import literal
from core.chat.session import ChatSession
from core.errors import UserError
from core.inference.settings import MAX_NEW_TOKENS, PRESETS, GenerationSettings, preset
from core.models import catalog
from pages._ui.compare import state
from pages._ui.shell.language import N_, from_core, t

_FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
_PRESETS = {
    "greedy": (N_("Greedy"), N_("Always the most probable token: the same reply every time.")),
    "xtuner chat": (
        "xtuner chat",
        N_("As `xtuner chat` draws: temperature 0.1, top-k 40, top-p 0.75."),
    ),
    "web demo": (
        N_("Web demo"),
        N_("As InternLM's web demo draws: temperature 0.8, top-p 0.8, penalty 1.005."),
    ),
    "model default": (N_("Model's own"), N_("What the model's generation_config.json says.")),
}


def draw(session: ChatSession | None, fresh: bool) -> tuple[str, GenerationSettings]:
    """The common system prompt and the settings, the same for every column.

    Args:
        fresh: fill the widgets from the conversation (``state.changed_elsewhere``).
    """
    if fresh or "compare_seed" not in st.session_state:
        _fill(session)
    with st.expander(t("Settings"), icon=":material/tune:"):
        st.segmented_control(
            t("Preset"),
            PRESETS,
            key="compare_preset",
            on_change=_use_preset,
            format_func=lambda name: t(_PRESETS[name][0]),
            help="\n".join(f"- **{t(word)}**: {t(more)}" for word, more in _PRESETS.values()),
        )
        system = st.text_area(
            t("System prompt"),
            key="compare_system",
            height=80,
            placeholder=t("none"),
            help=t("For every column that has none of its own."),
        )
        return system, _sampling()


def _fill(session: ChatSession | None) -> None:
    stored = session.transcript.settings if session else preset("greedy")
    for field in _FIELDS:
        st.session_state[f"compare_{field}"] = getattr(stored, field)
    st.session_state["compare_system"] = session.transcript.system if session else ""


def _sampling() -> GenerationSettings:
    left, right = st.columns(2)
    with left:
        temperature = st.slider(
            t("Temperature"), 0.0, 2.0, step=0.05, key="compare_temperature",
            help=t("0 is greedy: always the most probable token."),
        )  # fmt: skip
        greedy = temperature == 0
        top_p = st.slider("Top-p", 0.05, 1.0, step=0.05, key="compare_top_p", disabled=greedy)
        top_k = st.number_input(
            t("Top-k (0: off)"), 0, 100_000, key="compare_top_k", disabled=greedy
        )
    with right:
        penalty = st.slider(
            t("Repetition penalty"), 0.8, 2.0, step=0.005, format="%.3f",
            key="compare_repetition_penalty",
        )  # fmt: skip
        length = st.number_input(
            t("Longest reply, tokens"), 1, MAX_NEW_TOKENS, key="compare_max_new_tokens"
        )
        seed = st.number_input(t("Seed"), 0, 2**31, key="compare_seed", disabled=greedy)
    return GenerationSettings(temperature, top_p, int(top_k), penalty, int(length), int(seed))


def _use_preset() -> None:
    name = st.session_state.get("compare_preset")
    if not name:
        return
    model = None
    if name == "model default":
        opened = state.session()
        first = opened.transcript.columns[0].model if opened else "bundled"
        try:
            model = catalog.resolve(first).path
        except UserError as error:
            st.toast(literal(from_core(error.what)), icon=":material/error:")
    settings = preset(name, model)
    for field in _FIELDS:
        st.session_state[f"compare_{field}"] = getattr(settings, field)
