"""Altair pictures of a DatasetReport."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from core.data.report import DatasetReport
from pages._ui.shell import words
from pages._ui.shell.language import t
from pages._ui.shell.words import KINDS

#: One colour a kind, the same in every picture.
_COLORS = ["#2f6f6a", "#c98a2b", "#8aa6b4", "#8d6a9f"]


def mix(report: DatasetReport) -> None:
    """Share of each kind, by rows (and by those of each language) and by what is learned from."""
    bars = {t("rows"): report.kinds, t("learned tokens"): report.loss_tokens}
    if len(report.locales) > 1:
        bars |= {
            f"{t('rows')}, {words.language_name(locale)}": kinds
            for locale, kinds in report.locales.items()
        }
    order = [*KINDS, *(k for k in report.kinds if k not in KINDS)]
    color = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=[words.kind(k) for k in KINDS], range=_COLORS),
        legend=alt.Legend(orient="top", title=None, columns=2),  # a telephone shows no more
    )
    rows = [
        {"by": by, "kind": words.kind(k), "count": n, "rank": order.index(k)}
        for by, ks in bars.items()
        for k, n in ks.items()
    ]
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar()
        .encode(
            y=alt.Y("by:N", title=None, sort=list(bars)),
            x=alt.X("count:Q", stack="normalize", title=None, axis=alt.Axis(format="%")),
            color=color,
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("kind:N", title=t("Kind")),
                alt.Tooltip("count:Q", title=t("Number"), format=","),
            ],
        )
        .properties(height=170)
    )
    st.altair_chart(chart, width="stretch")


def rounds(report: DatasetReport) -> None:
    """How many exchanges the conversations have."""
    data = pd.DataFrame([{"rounds": r, "conversations": n} for r, n in report.rounds.items()])
    chart = (
        alt.Chart(data)
        .mark_bar(color=_COLORS[0])
        .encode(
            x=alt.X("rounds:O", title=t("rounds"), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("conversations:Q", title=t("conversations")),
            tooltip=[
                alt.Tooltip("rounds:O", title=t("rounds")),
                alt.Tooltip("conversations:Q", title=t("conversations"), format=","),
            ],
        )
    )
    st.altair_chart(chart.properties(height=220), width="stretch")


def lengths(report: DatasetReport) -> None:
    """Tokens of whole conversations, with the limit of training as a line if it is in sight."""
    found = report.lengths
    width = found.histogram[1][0] if len(found.histogram) > 1 else found.longest + 1
    data = pd.DataFrame(
        [{"from": start, "to": start + width, "rows": n} for start, n in found.histogram]
    )
    bars = (
        alt.Chart(data)
        .mark_bar(color=_COLORS[0])
        .encode(
            x=alt.X("from:Q", bin="binned", title=t("tokens of a conversation")),
            x2="to:Q",
            y=alt.Y("rows:Q", title=t("conversations")),
            tooltip=[
                alt.Tooltip("from:Q", title=t("from")),
                alt.Tooltip("to:Q", title=t("up to")),
                alt.Tooltip("rows:Q", title=t("conversations"), format=","),
            ],
        )
    )
    layers: list[Any] = [bars]
    if found.longest > found.limit * 0.8:
        rule = alt.Chart(pd.DataFrame([{"limit": found.limit}])).mark_rule(
            color="#b3432f", strokeDash=[4, 3]
        )
        layers.append(rule.encode(x="limit:Q", tooltip=alt.Tooltip("limit:Q", title=t("limit"))))
    st.altair_chart(alt.layer(*layers).properties(height=220), width="stretch")


def coverage(report: DatasetReport) -> None:
    """Identity turns by intent and language; what is missing stands out."""
    cells = [c for c in report.intents if c.locale in report.locales]
    if not cells:
        return
    data = pd.DataFrame(
        [
            {
                "intent": words.intent(c.intent),
                "locale": words.language_name(c.locale),
                "turns": c.turns,
                "missing": c.turns == 0,
                "trained": c.clusters_trained,
                "held out": c.clusters_held_out,
                "family": c.family,
            }
            for c in cells
        ]
    )
    base = alt.Chart(data).encode(
        x=alt.X("locale:N", title=None, axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("intent:N", title=None, sort=None),
        tooltip=[
            alt.Tooltip("intent:N", title=t("intent")),
            alt.Tooltip("family:N", title=t("family")),
            alt.Tooltip("locale:N", title=t("language")),
            alt.Tooltip("turns:Q", title=t("turns")),
            alt.Tooltip("trained:Q", title=t("clusters trained on")),
            alt.Tooltip("held out:Q", title=t("clusters held out")),
        ],
    )
    boxes = base.mark_rect(stroke="white").encode(
        color=alt.condition(
            "datum.missing",
            alt.value("#e8b8ad"),
            alt.Color("turns:Q", scale=alt.Scale(range=["#dcebe9", _COLORS[0]]), legend=None),
        )
    )
    middle = max(1, int(data["turns"].max())) / 2
    numbers = base.mark_text().encode(
        text="turns:Q",
        color=alt.condition(f"datum.turns > {middle}", alt.value("white"), alt.value("#22272b")),
    )
    st.altair_chart(
        alt.layer(boxes, numbers).properties(height=24 * data["intent"].nunique() + 30),
        width="stretch",
    )


def slots(report: DatasetReport) -> None:
    """In how many of the identity replies each slot's value occurs."""
    data = pd.DataFrame(
        [{"slot": words.slot_name(s), "share": v} for s, v in report.slot_coverage.items()]
    )
    if data.empty:
        return
    chart = (
        alt.Chart(data)
        .mark_bar(color=_COLORS[0])
        .encode(
            y=alt.Y("slot:N", title=None, sort=None, axis=alt.Axis(labelOverlap=False)),
            x=alt.X(
                "share:Q",
                title=t("identity replies that hold it"),
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, 1]),
            ),
            tooltip=[
                alt.Tooltip("slot:N", title=t("slot")),
                alt.Tooltip("share:Q", title=t("Share"), format=".0%"),
            ],
        )
    )
    st.altair_chart(chart.properties(height=28 * len(data) + 60), width="stretch")
