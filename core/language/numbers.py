"""Numbers, shares, dates and times as the readers of a language write them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo

from babel import Locale
from babel.dates import format_date, format_datetime, format_time
from babel.lists import format_list
from babel.numbers import format_decimal, format_percent

from core.language.translations import translate

_LOCALES = {"en": Locale("en"), "zh": Locale("zh", script="Hans")}


def number(value: float, language: str) -> str:
    """``1234.5`` -> ``1,234.5``."""
    return format_decimal(value, locale=_LOCALES[language])


def percent(share: float, language: str) -> str:
    """``0.973`` -> ``97%``."""
    return format_percent(share, locale=_LOCALES[language])


def listed(words: Sequence[str], language: str) -> str:
    """``a, b and c`` / ``a、b和c``."""
    return format_list(list(words), locale=_LOCALES[language])


def day(seconds: float, language: str, zone: tzinfo | None = None) -> str:
    """The day of a time since 1970: ``Nov 27, 2026`` / ``2026年11月27日``."""
    return format_date(_at(seconds, zone), "medium", locale=_LOCALES[language])


def clock(seconds: float, language: str, zone: tzinfo | None = None) -> str:
    """The hour of a time since 1970: ``5:41 PM`` / ``17:41``."""
    return format_time(_at(seconds, zone), "short", locale=_LOCALES[language])


def moment(seconds: float, language: str, zone: tzinfo | None = None) -> str:
    """Day and hour, without the year while it is this one: ``Nov 27, 5:41 PM``."""
    then = _at(seconds, zone)
    if then.year != datetime.now(zone).year:
        return format_datetime(then, "medium", locale=_LOCALES[language])
    pattern = {"en": "MMM d, h:mm a", "zh": "M月d日 HH:mm"}[language]
    return format_datetime(then, pattern, locale=_LOCALES[language])


def _at(seconds: float, zone: tzinfo | None) -> datetime:
    """In ``zone``, or the machine's own; without a zone of its own for Babel, which asks none."""
    return datetime.fromtimestamp(seconds, zone).replace(tzinfo=None)


def duration(seconds: float, language: str) -> str:
    """``40 s``, ``1 min 15 s``, ``12 min``, ``2 h 5 min``: no finer than one reads it."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return translate("{n} s", language, n=whole)
    if whole < 600 and rest:
        return translate("{minutes} min {seconds} s", language, minutes=minutes, seconds=rest)
    minutes = round(whole / 60)
    if minutes < 60:
        return translate("{n} min", language, n=minutes)
    hours, minutes = divmod(minutes, 60)
    if not minutes:
        return translate("{n} h", language, n=hours)
    return translate("{hours} h {minutes} min", language, hours=hours, minutes=minutes)


def time_left(seconds: float | None, language: str) -> str:
    """``4 min left``; '' if nobody knows. Whole minutes from two minutes on: finer is noise."""
    if seconds is None:
        return ""
    whole = seconds if seconds < 120 else 60 * round(seconds / 60)
    return translate("{time} left", language, time=duration(whole, language))
