"""``NAME=VALUE`` on a command line."""

from __future__ import annotations

from core.errors import UserError


def parse_pairs(texts: list[str], option: str) -> dict[str, str]:
    """``["name=Luna"]`` -> ``{"name": "Luna"}``.

    Args:
        option: that was given them, for the message.

    Raises:
        UserError: a text has no '=' or nothing before it.
    """
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} {text!r} has no value", fix="write NAME=VALUE")
        pairs[name.strip()] = value
    return pairs
