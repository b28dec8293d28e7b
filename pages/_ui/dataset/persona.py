"""Choose a pack, fill its slots, see ten conversations, build."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.chat.render import literal
from core.data import drafts
from core.persona import packs
from core.persona.persona import Persona
from core.persona.schema import Slot
from core.pipeline import projects
from pages._ui.dataset import build as dataset_build
from pages._ui.dataset import pack as dataset_pack
from pages._ui.dataset.state import bubbles
from pages._ui.shell import current, model_picker
from pages._ui.shell.common import errors_shown, form_and_rest
from pages._ui.shell.language import N_, listed, t
from pages._ui.shell.words import language_name, pack_title, slot_name
from pages._ui.start.make import FORM as START
from pages._ui.start.make import WHO

#: Text longer than this gets a box of several lines.
_LONG = 60
#: What belongs to the persona and not to a pack: typed once, kept with every pack.
_OWN = ("name", "author")
_DISCLOSE = {"never": N_("never"), "optional": N_("optional"), "always": N_("always")}


def draw() -> None:
    """The Persona part."""
    form = drafts.load_form()
    names = list(packs.all_packs())
    if not names:
        st.info(
            t("No persona pack is installed: data_templates/ is empty."),
            icon=":material/lightbulb:",
        )
        return
    left, right = form_and_rest()
    with left:
        _follow(form)
        pack = _choose_pack(form, names)
        persona = _plain(pack)
        if persona is None:
            dataset_pack.editor(pack)
            return
        _from_start(form, persona)
        locales = _model_and_locales(form)
        usable = [loc for loc in persona.locales if loc in locales]
        slots, empty = _slots(form, pack, persona, usable or persona.locales)
        dataset_build.mix(form)
        dataset_pack.editor(pack)
    with right:
        filled = _filled(pack, slots)
        if filled is not None:
            ready = bool(usable) and not empty
            dataset_build.draw(form, pack, filled, slots, ready)
            if empty:
                st.caption(
                    t(
                        ":red[Fill in: {fields}]",
                        fields=literal(listed([slot_name(s) for s in empty])),
                    )
                )
            _samples(form, filled, usable)
    with errors_shown():  # the page works without; it is only not remembered
        drafts.save_form(form)


def _follow(form: dict[str, Any]) -> None:
    """Another persona was chosen: the form shows how it was made."""
    here = current.current()
    if here is None or form.get("persona") == here.key:
        return
    first = "persona" not in form and form.get("own")
    form["persona"] = here.key
    asked = projects.request_of(here)
    if asked is None or first:  # what was typed before there was any persona stays
        return
    pack, slots = asked
    persona = _plain(pack) if pack in packs.all_packs() else None
    if persona is None:
        return
    form["pack"] = pack
    filled = {
        f"{name}.{locale}": slots.get(f"{name}.{locale}", slots.get(name))
        for name in persona.pack.slots
        for locale in persona.locales
    }
    given = {key: value for key, value in filled.items() if value is not None}
    given |= {k: v for k, v in slots.items() if k == "base.disclose"}
    form["own"] = {k: v for k, v in given.items() if k.partition(".")[0] in _OWN}
    form.setdefault("slots", {})[pack] = {k: v for k, v in given.items() if k not in form["own"]}
    for key in [k for k in st.session_state if str(k).startswith(("own-", f"slot-{pack}-"))]:
        del st.session_state[key]


def _from_start(form: dict[str, Any], persona: Persona) -> None:
    """Who was typed on the Start page since this form was last seen."""
    kept = drafts.load_form(START)
    who = {slot: str(kept[key]).strip() for slot, key in WHO.items() if kept.get(key)}
    if not who or who == form.get("from_start"):
        return
    form["from_start"] = who
    form.setdefault("own", {}).update(
        {f"{slot}.{locale}": text for slot, text in who.items() for locale in persona.locales}
    )
    for key in [k for k in st.session_state if str(k).startswith("own-")]:
        del st.session_state[key]


def _choose_pack(form: dict[str, Any], names: list[str]) -> str:
    at = names.index(form["pack"]) if form.get("pack") in names else 0
    with st.container(horizontal=True, vertical_alignment="bottom"):
        pack = st.selectbox(
            t("Persona pack"), names, index=at, format_func=pack_title, key=f"pack-{len(names)}",
            width=240,
        )  # fmt: skip
        with st.popover(t("Duplicate"), icon=":material/content_copy:"):
            dataset_pack.duplicate(form, pack)
    form["pack"] = pack
    return pack


def _plain(name: str) -> Persona | None:
    with errors_shown():
        return _load(name, packs.find(name).stat().st_mtime_ns, ())
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
    model = model_picker.pick(
        t("Model to train"),
        "dataset-model",
        form.get("model", "bundled"),
    )
    st.caption(t("The languages of the dataset follow the model."))
    form["model"] = st.session_state["dataset-model"] or "bundled"
    if model is None:
        return ()
    if model == "bundled":
        st.caption(
            t("The bundled model speaks English only, so the other languages of a pack are left "
              "out.")
        )  # fmt: skip
        return ("en",)
    locales: tuple[str, ...] = ()
    with errors_shown(), st.spinner(t("Looking at the model")):
        locales, introduction = _look_at(model)
    if locales:
        spoken = listed([language_name(loc) for loc in locales])
        st.caption(t("This model speaks {languages}.", languages=literal(spoken)))
        if introduction:
            st.info(
                t("It has an identity of its own, by default it is told: {text}",
                  text=literal(introduction))
            )  # fmt: skip
    return locales


@st.cache_data(show_spinner=False, max_entries=8)
def _look_at(model: str) -> tuple[tuple[str, ...], str]:
    """Languages of the model, and who its chat template says that it is."""
    from core.inference.load import introduction
    from core.models.catalog import resolve

    ref = resolve(model)
    return ref.locales, introduction(ref.path)


def _slots(
    form: dict[str, Any], pack: str, persona: Persona, locales: list[str]
) -> tuple[dict[str, str], list[str]]:
    """One field a slot and language.

    Returns:
        What differs from the pack, and the slots that must be filled and are not. These are left
        as the pack has them in the first, so that the page stays.
    """
    kept: dict[str, str] = form.setdefault("slots", {}).setdefault(pack, {})
    own: dict[str, str] = form.setdefault("own", {})
    empty: list[str] = []
    for name, slot in persona.pack.slots.items():
        for locale in locales:
            key, store = f"{name}.{locale}", own if name in _OWN else kept
            default = (
                "; ".join(slot.items[locale])
                if slot.items.get(locale)
                else slot.text.get(locale, "")
            )
            value = _field(pack, name, slot, locale, store.get(key, default), len(locales) > 1)
            if value == default:
                store.pop(key, None)
            else:
                store[key] = value
            if slot.required and not value.strip():
                st.caption(t(":red[This cannot be empty.]"))
                empty.append(name)
        if slot.disclose:
            _disclosure(pack, slot, kept)
    typed = {**kept, **{k: v for k, v in own.items() if k.partition(".")[2] in locales}}
    slots = {k: v for k, v in typed.items() if v.strip() or k.partition(".")[0] not in empty}
    return slots, list(dict.fromkeys(empty))


def _field(pack: str, name: str, slot: Slot, locale: str, value: str, several: bool) -> str:
    label = literal(slot_name(name)) + (f" ({language_name(locale)})" if several else "")
    label += " *" if slot.required else ""
    help_text = t("Separate the items with ;") if slot.items else None
    # A field of the persona's own is one field for all packs, and keeps what was typed.
    key = f"own-{name}-{locale}" if name in _OWN else f"slot-{pack}-{name}-{locale}"
    if slot.items or len(value) > _LONG:
        return st.text_area(label, value, key=key, help=help_text, height=80)
    return st.text_input(label, value, key=key, help=help_text, max_chars=500)


def _disclosure(pack: str, slot: Slot, kept: dict[str, str]) -> None:
    choices = list(_DISCLOSE)
    now = kept.get("base.disclose", slot.disclose or "never")
    value = st.selectbox(
        t("May the persona name the model it is built on?"),
        choices,
        index=choices.index(now),
        format_func=lambda choice: t(_DISCLOSE[choice]),
        key=f"slot-{pack}-disclose",
    )
    if value == slot.disclose:
        kept.pop("base.disclose", None)
    else:
        kept["base.disclose"] = value


def _samples(form: dict[str, Any], persona: Persona, locales: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader(t("Ten sample conversations"))
        if st.button(t("Ten others"), icon=":material/shuffle:", key="ten-others"):
            form["sample_seed"] = int(form.get("sample_seed", 0)) + 1
    if not locales:
        spoken = listed([language_name(loc) for loc in persona.locales])
        st.caption(
            t("This persona speaks {languages}. The samples appear once the model can be used.",
              languages=literal(spoken))
        )  # fmt: skip
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
