"""Curves of one run, or of several over each other; a resumed run is one curve with its parents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd
import pyarrow as pa
import streamlit as st

from core.jobs.metrics import Series
from core.training.figures import Figures, Margin
from core.training.health import DAMAGED_PERPLEXITY
from pages._ui.shell import words
from pages._ui.shell.language import N_, t

#: Told apart on white and on black; the first is the run that is looked at.
_COLORS = ("#2f8f86", "#d0902f", "#9a76ad", "#c2604c", "#4f8fd0", "#7f9a4a", "#b05c8a", "#8c8c8c")
#: Raw values behind a running mean.
_FAINT = "#a9b8b6"
#: (field, title, axis format) of the small curves.
_SMALL = (
    ("lr", N_("Learning rate"), ".1e"),
    ("grad_norm", N_("Gradient norm"), ".2f"),
    ("tokens_per_s", N_("Tokens per second"), ",.0f"),
    ("memory_gb", N_("Memory (GB)"), ".1f"),
)
#: (field, title, axis format, line across) of what is measured at checkpoints.
_FIGURES: tuple[tuple[str, str, str, float | None], ...] = (
    ("margin", N_("Identity margin (nats a token)"), ".2f", 0.0),
    ("kl", N_("Difference from the base (nats a token)"), ".2f", None),
    ("ppl_ratio", N_("Perplexity of general replies, times the base's"), ".2f", DAMAGED_PERPLEXITY),
)
#: Four fit beside each other on a laptop, two in a narrow window.
_SMALL_WIDTH = 210
#: Points of a small curve: two a pixel would be drawn over each other.
_SMALL_POINTS = 400


@st.cache_resource(max_entries=32, show_spinner=False)
def _tables(versions: tuple[Any, ...], _series: dict[str, Series]) -> dict[str, pa.Table]:
    """What the charts draw, by field, made once for every window that looks at the same runs.

    Arrow tables, which go to the browser as they are: with 20 windows on one run, most of a
    refresh was turning the same data frames into them.
    """
    data = frame(_series)
    tables = {}
    if "loss" in data and data["loss"].notna().any():
        tables["loss"] = pa.Table.from_pandas(data, preserve_index=False)
    for name, _, _ in _SMALL:
        if name in data and data[name].notna().any():
            columns = data[["step", "run", name]]
            few = columns.iloc[:: 1 + len(columns) // (_SMALL_POINTS * len(_series))]
            tables[name] = pa.Table.from_pandas(few, preserve_index=False)
    return tables


def _shared_tables(series: dict[str, Series]) -> dict[str, pa.Table]:
    versions = tuple(
        (name, id(one), len(one.points), one.last.get("step"), one.last.get("seq"))
        for name, one in series.items()
    )
    return _tables(versions, series)


def frame(series: dict[str, Series]) -> pd.DataFrame:
    """One row a point, with the run's name; empty if no run has points yet."""
    rows: list[dict[str, Any]] = [
        {**point, "run": name} for name, one in series.items() for point in one.points
    ]
    data = pd.DataFrame(rows)
    if "memory_bytes" in data:
        data["memory_gb"] = data["memory_bytes"] / 1e9
    return data


def _color(names: Sequence[str], *, legend: bool) -> alt.Color:
    """A colour a run, the same on every chart of the page."""
    shown = alt.Legend(orient="top", title=None) if legend and len(names) > 1 else None
    colors = [_COLORS[i % len(_COLORS)] for i in range(len(names))]
    return alt.Color("run:N", legend=shown, scale=alt.Scale(domain=[*names], range=colors))


def loss_chart(series: dict[str, Series], *, log_scale: bool) -> None:
    """Raw loss thin, its running mean bold; the step under the pointer is read out."""
    data = _shared_tables(series).get("loss")
    if data is None:
        st.info(
            t("The first loss appears after the first optimizer step."), icon=":material/hourglass:"
        )
        return
    lines = t("each step"), t("running mean")
    said = (t("optimizer step"), t("loss"), *lines, t("run"), t("learning rate"))
    spec = _loss_spec(tuple(series), "lr" in data.column_names, log_scale, said)
    st.vega_lite_chart(data, spec, width="stretch")


@lru_cache(maxsize=64)
def _loss_spec(
    names: tuple[str, ...], with_lr: bool, log_scale: bool, said: tuple[str, ...]
) -> dict[str, Any]:
    """The chart without its data: Altair checks it against a schema, once and not at each look."""
    scale = alt.Scale(type="log", nice=False) if log_scale else alt.Scale(zero=False)
    x_title, y_title, each, mean, run, rate = said
    x = alt.X(
        "step:Q",
        title=x_title,
        scale=alt.Scale(nice=False),
        axis=alt.Axis(tickMinStep=1, format="d"),
    )
    base = alt.Chart().encode(x=x)
    if len(names) > 1:
        color = _color(names, legend=True)
    else:  # one run: the legend says which line is which
        lines = alt.Scale(domain=[each, mean], range=[_FAINT, _COLORS[0]])
        legend = alt.Legend(orient="top", title=None, symbolType="stroke", columns=1)
        color = alt.Color("line:N", scale=lines, legend=legend)
    raw = (
        base.transform_calculate(line=repr(each))
        .mark_line(strokeWidth=1, opacity=0.4 if len(names) > 1 else 1)
        .encode(y=alt.Y("loss:Q", title=y_title, scale=scale), color=color)
    )
    averaged = base.transform_calculate(line=repr(mean))
    smooth = averaged.mark_line(strokeWidth=2.6).encode(
        y=alt.Y("smooth:Q", scale=scale), color=color
    )
    hover = alt.selection_point(
        "step", fields=["step"], nearest=True, on="pointerover", empty=False
    )
    points = (
        averaged.mark_point(filled=True, size=60)
        .encode(
            y=alt.Y("smooth:Q", scale=scale),
            color=color,
            opacity=alt.condition(hover, alt.value(1), alt.value(0)),
            tooltip=[
                alt.Tooltip("run:N", title=run),
                alt.Tooltip("step:Q", title=x_title),
                alt.Tooltip("loss:Q", title=y_title, format=".4f"),
                alt.Tooltip("smooth:Q", title=mean, format=".4f"),
                *([alt.Tooltip("lr:Q", title=rate, format=".2e")] if with_lr else []),
            ],
        )
        .add_params(hover)
    )
    return _without_data(alt.layer(raw, smooth, points).properties(height=320))


def _without_data(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The specification alone: the table comes with the call.

    Altair puts an empty table of one row in its place, which would have an entry in the legend.
    """
    spec: dict[str, Any] = chart.to_dict()
    for part in (spec, *spec.get("layer", [])):
        part.pop("data", None)
    spec.pop("datasets", None)
    return spec


def small_charts(series: dict[str, Series]) -> None:
    """Learning rate, gradient norm, speed and memory, where the run reports them."""
    tables = _shared_tables(series)
    shown = [row for row in _SMALL if row[0] in tables]
    if not shown:
        return
    row = st.container(horizontal=True)
    for name, title, form in shown:
        spec = _small_spec(tuple(series), name, (t(title), *_tips()), form, None)
        row.vega_lite_chart(tables[name], spec, width=_SMALL_WIDTH)


def _by_language(look: Figures) -> list[tuple[str, Margin | None]]:
    return [*look.margins.items()] or [("", None)]


def figure_charts(figures: Mapping[str, Sequence[Figures]]) -> None:
    """What was measured at the checkpoints: how far the persona has come, and what it costs.

    Args:
        figures: by the run's name, in the order of the colours.
    """
    rows = [
        {
            "run": name,
            "step": one.step,
            "language": words.language_name(locale),
            "margin": margin.median if margin else None,
            "ahead": f"{margin.ahead.hits}/{margin.ahead.n}" if margin else "",
            "kl": one.kl,
            "ppl_ratio": one.ppl_ratio,
        }
        for name, looks in figures.items()
        for one in looks
        for locale, margin in _by_language(one)
    ]
    data = pd.DataFrame(rows)
    for name, title, form, rule in _FIGURES:
        if name in data and data[name].notna().any():
            said = t(title)
            spec = _small_spec(tuple(figures), name, (said, *_tips()), form, rule)
            st.caption(said)  # wraps in a narrow window: a chart's title is cut there
            st.vega_lite_chart(data, spec, width="stretch")


def _tips() -> tuple[str, ...]:
    """What the fields that are read out under the pointer are called."""
    return t("run"), t("optimizer step"), t("language"), t("persona's answer likelier")


@lru_cache(maxsize=256)
def _small_spec(
    names: tuple[str, ...], name: str, said: tuple[str, ...], form: str, rule: float | None
) -> dict[str, Any]:
    """One small curve. ``rule``: a value to hold it against; the margin has a line a language.

    ``said``: the title, and the words of ``_tips``.
    """
    title, run, step, spoken, ahead = said
    measured = name in {figure[0] for figure in _FIGURES}
    tips = [
        alt.Tooltip("run:N", title=run),
        alt.Tooltip("step:Q", title=step),
        alt.Tooltip(f"{name}:Q", title=title, format=form),
    ]
    if name == "margin":
        tips += [alt.Tooltip("language:N", title=spoken), alt.Tooltip("ahead:N", title=ahead)]
    line = (
        alt.Chart()
        .mark_line(strokeWidth=1.8, point={"size": 36} if measured else False)
        .encode(
            x=alt.X(
                "step:Q",
                title=None,
                scale=alt.Scale(nice=False),
                axis=alt.Axis(tickCount=4, tickMinStep=1, format="d"),
            ),
            y=alt.Y(
                f"{name}:Q",
                title=None,
                scale=alt.Scale(zero=not measured),
                axis=alt.Axis(format=form, tickCount=4),
            ),
            color=_color(names, legend=False),
            tooltip=tips,
        )
    )
    if name == "margin":
        legend = alt.Legend(orient="top", title=None, symbolType="stroke")
        line = line.encode(strokeDash=alt.StrokeDash("language:N", legend=legend))
    limit = alt.Chart().mark_rule(color="#a8a8a8").encode(y=alt.datum(rule))
    chart = alt.layer(line, limit) if rule is not None else line
    if measured:
        return _without_data(chart.properties(height=160 if name == "margin" else 120))
    headline = alt.TitleParams(title, fontSize=13, anchor="start")
    return _without_data(chart.properties(height=150, title=headline))  # the title is within
