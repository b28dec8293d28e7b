"""The language of this session, and every text of the pages in it.

``t("Run {name} is done.", name=code(name))``: the English sentence is the key, its Chinese stands
in core/language/zh.po. Text of others goes in through ``literal()`` or ``code()``, as everywhere.
"""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from core.language import messages, numbers, translations

_STATE = "language"
_COOKIE = "persona_language"


def N_(template: str) -> str:  # the name that gettext's tools look for
    """Mark a constant at module level; ``t()`` translates it when it is drawn."""
    return template


def language() -> str:
    """``en`` or ``zh``: chosen in the sidebar, now or on an earlier visit, else the browser's.

    Kept in the session: fragments rerun in other threads, and a module's variable would be
    everybody's.
    """
    if _STATE not in st.session_state:
        asked = st.query_params.get("lang") or st.context.cookies.get(_COOKIE) or st.context.locale
        st.session_state[_STATE] = translations.nearest(asked if isinstance(asked, str) else None)
    return str(st.session_state[_STATE])


def t(template: str, **values: object) -> str:
    """``template`` in the language of the session; values go in after translation."""
    return translations.translate(template, language(), **values)


def tn(one: str, many: str, n: int, **values: object) -> str:
    """``tn("{n} row", "{n} rows", 1)`` -> ``1 row``; ``{n}`` is written as 1,234."""
    return translations.translate_count(one, many, n, language(), **values)


def from_core(message: str) -> str:
    """A message, reason or label that core speaks, in the language of the session.

    Before ``literal()`` or ``safe_markdown()``: it may quote text of others.
    """
    return messages.translate_message(message, language())


def number(value: float) -> str:
    """``1,234.5``"""
    return numbers.number(value, language())


def percent(share: float) -> str:
    """``0.973`` -> ``97%``"""
    return numbers.percent(share, language())


def listed(words: list[str]) -> str:
    """``a, b and c`` / ``a、b和c``"""
    return numbers.listed(words, language())


def day(seconds: float) -> str:
    """``Nov 27, 2026`` / ``2026年11月27日``, where the reader is."""
    return numbers.day(seconds, language(), _zone())


def clock(seconds: float) -> str:
    """``5:41 PM`` / ``17:41``, where the reader is."""
    return numbers.clock(seconds, language(), _zone())


def moment(seconds: float) -> str:
    """``Nov 27, 5:41 PM`` / ``11月27日 17:41``, where the reader is."""
    return numbers.moment(seconds, language(), _zone())


def moment_of(written: str) -> str:
    """The same of a time that a file names (ISO 8601); what is none stays as it is."""
    try:
        return moment(datetime.fromisoformat(written).timestamp())
    except (ValueError, OverflowError):
        return written


def duration(seconds: float) -> str:
    """``1 min 15 s`` / ``1 分 15 秒``"""
    return numbers.duration(seconds, language())


def time_left(seconds: float | None) -> str:
    """``4 min left`` / ``还剩 4 分钟``; '' if nobody knows."""
    return numbers.time_left(seconds, language())


def _zone() -> ZoneInfo | None:
    """The browser's time zone, or None for the machine's."""
    try:
        return ZoneInfo(st.context.timezone) if st.context.timezone else None
    except (ZoneInfoNotFoundError, ValueError):
        return None


def switch() -> None:
    """The choice in the sidebar. A cookie keeps it: the address would trap the Back button."""
    chosen = st.segmented_control(
        "Language / 语言",
        list(translations.LANGUAGES),
        format_func=translations.LANGUAGES.__getitem__,
        default=language(),
        required=True,
        label_visibility="collapsed",
        key="language_switch",
    )
    if chosen != language():
        st.session_state[_STATE] = chosen
        st.session_state["language_chosen"] = True
        st.rerun()
    if st.session_state.get("language_chosen"):
        st.html(
            f"<script>document.cookie = '{_COOKIE}={language()}; path=/; max-age=31536000; "
            "SameSite=Strict'</script>",
            unsafe_allow_javascript=True,
        )
