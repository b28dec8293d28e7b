"""The form of a new run: dataset, model, stock config, and the parts of an XTuner config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core import fsio, paths
from core.chat.render import literal
from core.errors import UserError
from core.training import drafts
from core.training.defaults import choose, following, passes
from core.training.drafts import FormDraft
from core.training.lengths import Name, RunLength, lengths
from core.training.preflight import preflight
from core.training.spec import TrainSpec
from core.training.spec_fields import FIELDS, Field
from pages._ui.shell.common import device
from pages._ui.shell.language import N_, from_core, t, tn
from pages._ui.train.preflight import about_duration

#: Title, whether it is open at first, what to say about it.
_PARTS = {
    1: (N_("PART 1 · Settings"), True, ""),
    2: (N_("PART 2 · Model and LoRA"), False, ""),
    3: (N_("PART 3 · Data"), False, ""),
    5: (N_("PART 4-5 · Schedule and runtime"), False, N_("Rarely needed.")),
    0: (N_("GPUs and DeepSpeed"), False, ""),
}
#: Fields that have a place of their own on the page.
_ELSEWHERE = {"dataset", "model", "stock_config", "resume_from", "config_text"}
_NEEDS_GPU = {"deepspeed", "gpus", "nodes"}


@dataclass(frozen=True)
class _Auto:
    """What is chosen for a dataset, a model and this machine."""

    values: dict[str, Any]
    reasons: dict[str, str]
    usable: int
    presets: list[RunLength]


@st.cache_data(show_spinner=False, max_entries=16)
def _auto(dataset: str, model: str, stock: str, stamp: int) -> _Auto:
    spec, choices = choose(dataset, model, device(), {"stock_config": stock})
    found = preflight(spec, device())
    usable = found.rows - found.rows_unusable
    return _Auto(spec.to_dict(), {c.name: c.reason for c in choices}, usable, lengths(found))


def settings(dataset: Path, model: str, stock: str, presets: DeltaGenerator) -> TrainSpec:
    """Draw the form, and the plans that fill it into ``presets``; the spec as it stands.

    Raises:
        UserError: the model or dataset cannot be used, or a value cannot be read.
    """
    stamp = paths.DatasetPaths(dataset).manifest.stat().st_mtime_ns
    with st.spinner(t("Choosing defaults for this dataset, model and machine")):
        auto = _auto(str(dataset), model, stock, stamp)
    # A change of dataset or model brings new defaults, hence new widgets.
    scope = hashlib.sha256(f"{dataset}\0{model}\0{stamp}".encode()).hexdigest()[:8]
    _from_draft(scope, dataset.name, model)
    _take_over(scope)
    with presets:
        _presets(scope, auto)
    values = {**auto.values, "stock_config": stock}
    for part, (_, is_open, note) in _PARTS.items():
        with st.expander(t(_PARTS[part][0]), expanded=is_open):
            if note:
                st.caption(t(_PARTS[part][2]))
            values |= _part(part, scope, values, auto)
    spec = TrainSpec.from_dict(values)
    changed = {k: v for k, v in spec.to_dict().items() if v != auto.values[k]}
    _keep(FormDraft(dataset=dataset.name, model=model, stock_config=stock, values=changed))
    return spec


def _from_draft(scope: str, dataset: str, model: str) -> None:
    """Once a session: what was in the form when it was last seen."""
    if st.session_state.get("train_draft_read"):
        return
    st.session_state["train_draft_read"] = True
    draft = drafts.load()
    if (draft.dataset, draft.model) == (dataset, model):
        _fill(scope, draft.values)


def _keep(draft: FormDraft) -> None:
    if st.session_state.get("train_draft") != draft:
        st.session_state["train_draft"] = draft
        drafts.save(draft)


_PRESETS = {
    "quick": (N_("Quick"), N_("A first look.")),
    "good": (N_("Good"), N_("What suits most personas.")),
    "thorough": (N_("Thorough"), N_("More passes, more to choose from.")),
}


def _presets(scope: str, auto: _Auto) -> None:
    """Three plans with their time on this device; the form below shows what each of them sets."""
    plans = {plan.name: plan for plan in auto.presets}
    steps = st.session_state.get(f"train_{scope}_steps", auto.values["steps"])
    now = next((name for name, plan in plans.items() if plan.steps == steps), None)
    key = "train_preset"
    st.session_state[key] = now

    def label(name: Name) -> str:
        plan = plans[name]
        time = "" if plan.seconds is None else about_duration(plan.seconds)
        told = [t(_PRESETS[name][0]), tn("{n} step", "{n} steps", plan.steps), time]
        return " · ".join(filter(None, told))

    def fill() -> None:
        if chosen := st.session_state[key]:
            _fill(scope, plans[chosen].settings)

    st.segmented_control(
        t("How thorough"), list(plans), format_func=label, key=key, on_change=fill,
        help=t("The form below shows what each of them sets."),
    )  # fmt: skip
    if now:
        st.caption(t(_PRESETS[now][1]))


def _fill(scope: str, changes: Mapping[str, Any]) -> None:
    """Put settings into the form; they stay there until somebody changes them."""
    for info in FIELDS:
        if info.name in changes and info.name not in _ELSEWHERE:
            key = f"train_{scope}_{info.name}"
            st.session_state[key] = _shown(info, changes[info.name])
            st.session_state.pop(f"{key}_followed", None)


def _take_over(scope: str) -> None:
    """Put the settings of an earlier run into the form, once, if it was asked for."""
    _fill(scope, st.session_state.pop("train_take_over", {}))


def _part(part: int, scope: str, values: dict[str, Any], auto: _Auto) -> dict[str, Any]:
    fields = [f for f in FIELDS if f.part == part and f.name not in _ELSEWHERE]
    got: dict[str, Any] = {}
    for first in range(0, len(fields), 2):  # a row of its own for each pair keeps them level
        for column, info in zip(st.columns(2), fields[first : first + 2], strict=False):
            with column:
                got[info.name] = _field(info, f"train_{scope}_{info.name}", values[info.name])
                if info.name == "steps":
                    _follow(scope, got["steps"])
                if reason := _reason(info.name, {**values, **got}, auto):
                    st.caption(f":material/auto_awesome: {literal(from_core(reason))}")
    return got


def _reason(name: str, values: Mapping[str, Any], auto: _Auto) -> str:
    """Why a setting is what it is; what is not the automatic choice any more has no such reason."""
    if name == "steps" and auto.usable:
        rows = values["batch_size"] * values["accumulation"] * values["gpus"] * values["nodes"]
        return passes(values["steps"], rows, auto.usable)
    return auto.reasons.get(name, "") if values[name] == auto.values[name] else ""


def _follow(scope: str, steps: int) -> None:
    """Let warm-up and checkpoint interval follow the steps until somebody changes them.

    They are drawn after the steps. A form that was taken over from an earlier run keeps its own.
    """
    for name, (value, _) in following(steps).items():
        key = f"train_{scope}_{name}"
        if st.session_state.get(key) == st.session_state.get(f"{key}_followed"):
            st.session_state[key] = value
        st.session_state[f"{key}_followed"] = value


def _shown(info: Field, value: Any) -> Any:
    """A value as its widget holds it."""
    return "\n".join(value) if info.type == "list" else value


def _field(info: Field, key: str, value: Any) -> Any:
    """The widget that fits a field's type."""
    label, about = from_core(info.label), from_core(info.help)
    common: dict[str, Any] = {"key": key, "help": about, "persist_state": "session"}
    if key not in st.session_state:
        st.session_state[key] = _shown(info, value)
    if info.name in _NEEDS_GPU and device().kind == "cpu":
        st.session_state[key] = info.default
        common |= {"disabled": True, "help": f"{about} {t('Off: no GPU was found.')}"}
    if info.type == "choice":
        return st.selectbox(label, info.choices, format_func=lambda v: v or t("none"), **common)
    if info.type == "bool":
        return st.toggle(label, **common)
    if info.type == "int":
        return int(st.number_input(label, min_value=int(info.minimum or 0), step=1, **common))
    if info.type == "float":
        return float(
            st.number_input(
                label,
                min_value=info.minimum or 0.0,
                format="%.6g",
                step=_step(value),
                **common,
            )
        )
    if info.type == "list":
        several = t("{label} (one a line)", label=label)
        text = st.text_area(several, height=100, **common)
        return [line for _, line in fsio.numbered_lines(text)]
    return st.text_input(label, **common)


def _step(value: float) -> float:
    """A press of + changes the value by a tenth to a half of it."""
    return (
        10.0 ** len(str(int(value))) / 10
        if value >= 1
        else float(f"1e{f'{value:e}'.split('e')[1]}")
        if value
        else 0.01
    )


def run_name(dataset: str) -> str:
    """What to call the run."""
    name = st.text_input(
        t("Name of the run"),
        value=Path(dataset).name,
        key="train_name",
        max_chars=60,
        persist_state="session",
    )
    if not name.strip():
        raise UserError("the run has no name", fix="give it one")
    return name
