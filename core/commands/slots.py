"""``--set SLOT=VALUE``: the slots of a persona on a command line."""

from __future__ import annotations

from core.errors import UserError


def parse_slots(pairs: list[str]) -> dict[str, str]:
    """``["name=Luna"]`` -> ``{"name": "Luna"}``.

    Raises:
        UserError: a pair has no '=' or no slot name.
    """
    slots = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {pair!r} is not SLOT=VALUE", fix="write it as --set name=Luna")
        slots[name.strip()] = value
    return slots
