"""Curves of one run, or of several over each other."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd
import pyarrow as pa
import streamlit as st

from core.jobs.metrics import Series

#: (field, title, axis format) of the small curves.
_SMALL = (
    ("lr", "Learning rate", ".1e"),
    ("grad_norm", "Gradient norm", ".2f"),
    ("tokens_per_s", "Tokens per second", ",.0f"),
    ("memory_gb", "Memory (GB)", ".1f"),
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


def _color(names: tuple[str, ...], *, legend: bool) -> alt.Color:
    shown = alt.Legend(orient="top", title=None) if legend and len(names) > 1 else None
    return alt.Color("run:N", legend=shown, sort=list(names))


def loss_chart(series: dict[str, Series], *, log_scale: bool) -> None:
    """Raw loss thin, its running mean bold; the step under the pointer is read out."""
    data = _shared_tables(series).get("loss")
    if data is None:
        st.info(
            "The first loss appears after the first optimizer step.", icon=":material/hourglass:"
        )
        return
    st.vega_lite_chart(
        data, _loss_spec(tuple(series), "lr" in data.column_names, log_scale), width="stretch"
    )


@lru_cache(maxsize=64)
def _loss_spec(names: tuple[str, ...], with_lr: bool, log_scale: bool) -> dict[str, Any]:
    """The chart without its data: Altair checks it against a schema, once and not at each look."""
    scale = alt.Scale(type="log", nice=False) if log_scale else alt.Scale(zero=False)
    x = alt.X(
        "step:Q", title="optimizer step", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1)
    )
    base = alt.Chart().encode(x=x, color=_color(names, legend=True))
    raw = base.mark_line(strokeWidth=1, opacity=0.4).encode(
        y=alt.Y("loss:Q", title="loss", scale=scale)
    )
    smooth = base.mark_line(strokeWidth=2.6).encode(y=alt.Y("smooth:Q", scale=scale))
    hover = alt.selection_point(
        "step", fields=["step"], nearest=True, on="pointerover", empty=False
    )
    points = (
        base.mark_point(filled=True, size=60)
        .encode(
            y=alt.Y("smooth:Q", scale=scale),
            opacity=alt.condition(hover, alt.value(1), alt.value(0)),
            tooltip=[
                alt.Tooltip("run:N", title="run"),
                alt.Tooltip("step:Q"),
                alt.Tooltip("loss:Q", format=".4f"),
                alt.Tooltip("smooth:Q", title="smoothed", format=".4f"),
                *([alt.Tooltip("lr:Q", format=".2e")] if with_lr else []),
            ],
        )
        .add_params(hover)
    )
    return alt.layer(raw, smooth, points).properties(height=320).to_dict()


def small_charts(series: dict[str, Series]) -> None:
    """Learning rate, gradient norm, speed and memory, where the run reports them."""
    tables = _shared_tables(series)
    shown = [row for row in _SMALL if row[0] in tables]
    if not shown:
        return
    row = st.container(horizontal=True)
    for name, title, form in shown:
        spec = _small_spec(tuple(series), name, title, form)
        row.vega_lite_chart(tables[name], spec, width=_SMALL_WIDTH)


@lru_cache(maxsize=256)
def _small_spec(names: tuple[str, ...], name: str, title: str, form: str) -> dict[str, Any]:
    chart = (
        alt.Chart(title=alt.TitleParams(title, fontSize=13))
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X(
                "step:Q",
                title=None,
                scale=alt.Scale(nice=False),
                axis=alt.Axis(tickCount=4, tickMinStep=1),
            ),
            y=alt.Y(f"{name}:Q", title=None, axis=alt.Axis(format=form, tickCount=4)),
            color=_color(names, legend=False),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("step:Q"),
                alt.Tooltip(f"{name}:Q", title=title, format=form),
            ],
        )
        .properties(height=150)
    )
    return chart.to_dict()
