"""Choose a pack, fill its slots, see ten conversations, build."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.chat.render import literal
from core.data import drafts
from core.errors import UserError
from core.persona import packs
from core.persona.persona import Persona
from core.persona.schema import Slot
from pages._ui.dataset import build as dataset_build
from pages._ui.dataset import pack as dataset_pack
from pages._ui.dataset.state import bubbles
from pages._ui.shell.common import errors_shown, show_error

#: Text longer than this gets a box of several lines.
_LONG = 60


def draw(building: bool) -> None:
    """The Persona part; ``building``: a dataset job runs or waits."""
    form = drafts.load_form()
    names = list(packs.all_packs())
    if not names:
        st.info(
            "No persona pack is installed: data_templates/ is empty.", icon=":material/lightbulb:"
        )
        return
    left, right = st.columns([2, 3], gap="large")
    with left:
        pack = _choose_pack(form, names)
        persona = _plain(pack)
        if persona is None:
            dataset_pack.editor(pack)
            return
        locales = _model_and_locales(form)
        usable = [loc for loc in persona.locales if loc in locales]
        overrides = _slots(form, pack, persona, usable or persona.locales)
        dataset_pack.editor(pack)
    with right:
        filled = _filled(pack, overrides)
        if filled is None:
            return
        _samples(form, filled, usable)
    with left:
        dataset_build.draw(form, pack, filled, overrides, usable, building)
    drafts.save_form(form)


def _choose_pack(form: dict[str, Any], names: list[str]) -> str:
    at = names.index(form["pack"]) if form.get("pack") in names else 0
    with st.container(horizontal=True, vertical_alignment="bottom"):
        pack = st.selectbox(
            "Persona pack", names, index=at, format_func=_title, key=f"pack-{len(names)}", width=240
        )
        with st.popover("Duplicate", icon=":material/content_copy:"):
            dataset_pack.duplicate(form, pack)
    form["pack"] = pack
    return pack


def _title(name: str) -> str:
    path = packs.find(name)
    own = " (yours)" if packs.is_own(path) else ""
    persona = _plain(name, quiet=True)
    return f"{persona.title() if persona else name}{own}"


def _plain(name: str, quiet: bool = False) -> Persona | None:
    try:
        path = packs.find(name)
        return _load(name, path.stat().st_mtime_ns, ())
    except UserError as error:
        if not quiet:
            show_error(error)
        return None


@st.cache_data(show_spinner=False, max_entries=32)
def _load(name: str, _changed: int, overrides: tuple[tuple[str, str], ...]) -> Persona:
    return packs.load(name, dict(overrides))


def _filled(pack: str, overrides: dict[str, str]) -> Persona | None:
    with errors_shown():
        changed = packs.find(pack).stat().st_mtime_ns
        return _load(pack, changed, tuple(sorted(overrides.items())))
    return None


def _model_and_locales(form: dict[str, Any]) -> tuple[str, ...]:
    model = (
        st.text_input(
            "Model to train",
            form.get("model", "bundled"),
            key="dataset-model",
            help="`bundled`, a folder, or a hub id. The languages of the dataset follow the model.",
        ).strip()
        or "bundled"
    )
    form["model"] = model
    if model == "bundled":
        st.caption(
            "The bundled model speaks English only, so the other languages of a pack are left out."
        )
        return ("en",)
    locales: tuple[str, ...] = ()
    with errors_shown():
        locales, introduction = _look_at(model)
    if locales:
        st.caption(f"This model speaks: {literal(', '.join(locales))}.")
        if introduction:
            st.info(
                f"It has an identity of its own, by default it is told: {literal(introduction)}"
            )
    return locales


@st.cache_data(show_spinner="Looking at the model", max_entries=8)
def _look_at(model: str) -> tuple[tuple[str, ...], str]:
    """Languages of the model, and who its chat template says that it is."""
    from core.inference.load import introduction
    from core.models.catalog import resolve

    ref = resolve(model)
    return ref.locales, introduction(ref.path)


def _slots(form: dict[str, Any], pack: str, persona: Persona, locales: list[str]) -> dict[str, str]:
    """One field a slot and language; returns what differs from the pack."""
    kept: dict[str, str] = form.setdefault("slots", {}).setdefault(pack, {})
    for name, slot in persona.pack.slots.items():
        for locale in locales:
            key = f"{name}.{locale}"
            default = (
                "; ".join(slot.items[locale])
                if slot.items.get(locale)
                else slot.text.get(locale, "")
            )
            value = _field(pack, name, slot, locale, kept.get(key, default), len(locales) > 1)
            if value == default:
                kept.pop(key, None)
            else:
                kept[key] = value
        if slot.disclose:
            _disclosure(pack, slot, kept)
    return dict(kept)


def _field(pack: str, name: str, slot: Slot, locale: str, value: str, several: bool) -> str:
    label = literal(name.replace("_", " ").capitalize()) + (f" ({locale})" if several else "")
    label += " *" if slot.required else ""
    help_text = "Separate the items with ;" if slot.items else None
    key = f"slot-{pack}-{name}-{locale}"
    if slot.items or len(value) > _LONG:
        return st.text_area(label, value, key=key, help=help_text, height=80)
    return st.text_input(label, value, key=key, help=help_text, max_chars=500)


def _disclosure(pack: str, slot: Slot, kept: dict[str, str]) -> None:
    choices = ["never", "optional", "always"]
    now = kept.get("base.disclose", slot.disclose or "never")
    value = st.selectbox(
        "May the persona name the model it is built on?",
        choices,
        index=choices.index(now),
        key=f"slot-{pack}-disclose",
    )
    if value == slot.disclose:
        kept.pop("base.disclose", None)
    else:
        kept["base.disclose"] = value


def _samples(form: dict[str, Any], persona: Persona, locales: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader("Ten sample conversations")
        if st.button("Ten others", icon=":material/shuffle:"):
            form["sample_seed"] = int(form.get("sample_seed", 0)) + 1
    if not locales:
        st.warning(
            f"This persona speaks {literal(', '.join(persona.locales))}, the model none of these. "
            "Choose another pack or model.",
            icon=":material/translate:",
        )
        return
    with errors_shown():
        bubbles(
            _sample_rows(
                persona.dump(),
                tuple(locales),
                int(form.get("sample_seed", 0)),
                float(form.get("multi_turn", 0.3)),
            )
        )


@st.cache_data(show_spinner=False, max_entries=16)
def _sample_rows(text: str, locales: tuple[str, ...], seed: int, multi_turn: float) -> list[Any]:
    from core.data.generation import identity_rows
    from core.persona.persona import parse_persona

    persona = parse_persona(text)
    rows = identity_rows(persona, locales=list(locales), seed=seed, multi_turn=multi_turn, limit=10)
    return list(rows)
