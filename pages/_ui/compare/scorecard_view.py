"""A scorecard and a sweep on a page: verdict, gates, metrics, most changed replies, curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from core.chat.render import literal
from core.evaluation import report, sweep
from core.paths import RunPaths
from pages._ui.shell import words
from pages._ui.shell.common import errors_shown

_ICON = {
    "pass": ":material/check_circle: pass",
    "warn": ":material/warning: near the limit",
    "fail": ":material/cancel: fail",
    "unknown": ":material/help: not enough evidence",
}
#: (key of a checkpoint's metrics, title, limit line) of the sweep's picture.
_CURVES = (("recall", "recall"), ("leak", "leak"))


def draw_scorecard(path: Path) -> None:
    """Everything about one saved scorecard (``scorecard.json``)."""
    with errors_shown():
        card = report.load(path)
        _verdict(card)
        _headline(card)
        gates, metrics, changed, missed, files = st.tabs(
            ["Gates", "All numbers", "Most changed replies", "Missed questions", "Files"]
        )
        with gates:
            _gates(card)
        with metrics:
            st.dataframe(pd.DataFrame(report.table([card])), hide_index=True)
            _intents(card)
        with changed:
            _changes(card, path.parent / "replies.jsonl")
        with missed:
            _missed(card, path.parent / "replies.jsonl")
        with files:
            _files(card, path)


def _verdict(card: dict[str, Any]) -> None:
    name, explanation = card["verdict"], card["explanation"]
    box = (
        st.success
        if name == "LEARNED"
        else (st.info if name == "NOT ENOUGH EVIDENCE" else st.warning)
    )
    box(
        f"**{literal(name)}**: {literal(explanation['why'])}",
        icon=":material/verified:" if name == "LEARNED" else ":material/rule:",
    )
    st.markdown("**Next:**")
    st.text(explanation["next"])
    for note in card["notes"]:
        st.caption(literal(note))


def _headline(card: dict[str, Any]) -> None:
    """Recall and leak, before and after, with their intervals."""
    base, tuned = card["models"]["base"], card["models"][card["subject"]]
    shown = [
        ("recall", "Recall on held-out wordings", "normal"),
        ("leak", "Leak into general replies", "inverse"),
    ]
    for column, (key, title, colour) in zip(st.columns(len(shown) + 1), shown, strict=False):
        after, before = tuned[key], base[key]
        if after["n"]:
            column.metric(
                title,
                f"{after['hits']}/{after['n']}",
                f"{after['value'] - (before['value'] or 0):+.1%} against the base",
                delta_color=colour,  # type: ignore[arg-type]
                help=f"95 % interval {after['low']:.1%} to {after['high']:.1%}",
            )
            column.caption(f"95 %: {after['low']:.1%} to {after['high']:.1%}")


def _gates(card: dict[str, Any]) -> None:
    rows = [
        {
            "Gate": g["title"],
            "Measured": g["shown"],
            "Limit": g["limit"],
            "Outcome": _ICON[g["outcome"]],
        }
        for g in card["explanation"]["gates"]
    ]
    st.table(pd.DataFrame(rows).set_index("Gate"))
    st.caption("The limits stand in core/evaluation/gates.yaml and can be changed there.")


def _intents(card: dict[str, Any]) -> None:
    """Recall by intent as bars: where more wordings are needed."""
    groups = card["models"][card["subject"]].get("recall_by_intent") or {}
    data = pd.DataFrame([{"intent": k, **v} for k, v in groups.items()])
    if data.empty:
        return
    base = alt.Chart(data).encode(y=alt.Y("intent:N", sort="x", title=None))
    bars = base.mark_bar().encode(
        x=alt.X(
            "value:Q", title="recall", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")
        ),
        tooltip=["intent", "hits", "n"],
    )
    ranges = base.mark_rule(color="#8a8a8a").encode(x="low:Q", x2="high:Q")
    st.altair_chart(bars + ranges)


def _changes(card: dict[str, Any], replies: Path) -> None:
    changes = report.most_changed(card, replies)
    if not changes:
        st.caption("No general reply changed, or the replies were not kept.")
    for change in changes:
        with st.container(border=True):
            tags = [
                words.suite(change.suite),
                *(["leak"] if change.leak else []),
                *([f"KL {change.kl:.3f}"] if change.kl is not None else []),
            ]
            st.caption(literal(" · ".join(tags)))
            st.text(change.prompt)
            left, right = st.columns(2)
            left.caption("base")
            left.text(change.base)
            right.caption(literal(card["subject"]))
            right.text(change.tuned)


def _missed(card: dict[str, Any], replies: Path) -> None:
    rows = report.missed(card, replies)
    if not rows:
        st.caption("Every identity question was answered as the persona.")
        return
    st.dataframe(
        pd.DataFrame(
            [{k: r[k] for k in ("suite", "intent", "prompt", "reply", "label")} for r in rows]
        ),
        hide_index=True,
    )


def _files(card: dict[str, Any], path: Path) -> None:
    st.download_button(
        "scorecard.json",
        path.read_bytes(),
        f"scorecard-{path.parent.name}.json",
        icon=":material/download:",
        key=f"json-{path}",
    )
    page = path.parent / "report.html"
    if page.is_file():
        st.download_button(
            "report.html (one file, for sharing)",
            page.read_bytes(),
            f"report-{path.parent.name}.html",
            icon=":material/download:",
            key=f"html-{path}",
        )
    st.caption(
        f"{literal(card['size'])} scorecard of {literal(card['created'])}, "
        f"{card['timing']['cold_total']:.0f} s of computing"
    )
    st.dataframe(
        pd.DataFrame([{"suite": words.suite(k), **v} for k, v in card["suites"].items()]),
        hide_index=True,
    )


def draw_comparison(first: Path, second: Path) -> None:
    """The judged models of two scorecards, side by side."""
    with errors_shown():
        cards = [report.load(first), report.load(second)]
        for reason in report.comparable(*cards):
            st.warning(literal(reason), icon=":material/warning:")
        for column, card, path in zip(st.columns(2), cards, (first, second), strict=True):
            column.caption(literal(path.parent.name))
            column.markdown(f"**{literal(card['verdict'])}**")
        st.dataframe(pd.DataFrame(report.compare(*cards)), hide_index=True)


def draw_sweep(run: RunPaths) -> str | None:
    """Recall, leak and KL against steps; returns the checkpoint that was chosen for merging.

    The recommended one is selected to begin with. None if the run was not swept yet.
    """
    with errors_shown():
        found = sweep.read(run)
        if not found or not found["checkpoints"]:
            return None
        rows = found["checkpoints"]
        chosen = found["recommended"]
        st.info(literal(found["reason"]), icon=":material/recommend:")
        st.altair_chart(_curves(rows, chosen["step"]))
        st.dataframe(pd.DataFrame([_sweep_row(r) for r in rows]), hide_index=True)
        steps = [r["step"] for r in rows]
        step = st.selectbox(
            "Checkpoint to merge",
            steps,
            index=steps.index(chosen["step"]),
            format_func=lambda s: f"step {s}" + (" (recommended)" if s == chosen["step"] else ""),
            key=f"sweep-{run.root.name}",
        )
        return str(next(r["checkpoint"] for r in rows if r["step"] == step))
    return None


def _sweep_row(row: dict[str, Any]) -> dict[str, Any]:
    metrics = row["metrics"]
    kl = (metrics.get("kl_general") or {}).get("kl")
    return {
        "step": row["step"],
        "recall": report.show(metrics, "recall"),
        "leak": report.show(metrics, "leak"),
        "near-miss leak": report.show(metrics, "near_miss_leak"),
        "KL": None if kl is None else round(kl, 4),
        "verdict": row["verdict"],
    }


def _curves(rows: list[dict[str, Any]], recommended: int) -> alt.Chart:
    """Recall and leak with their intervals above, KL below, on the same steps."""
    rates = pd.DataFrame(
        [
            {"step": r["step"], "metric": title, **r["metrics"][key]}
            for r in rows
            for key, title in _CURVES
            if r["metrics"][key]["n"]
        ]
    )
    x = alt.X("step:Q", title="optimizer step", axis=alt.Axis(tickMinStep=1))
    colour = alt.Color("metric:N", legend=alt.Legend(orient="top", title=None))
    base = alt.Chart(rates).encode(x=x, color=colour)
    band = base.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", title="share", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        y2="high:Q",
    )
    line = base.mark_line(point=True).encode(y="value:Q", tooltip=["metric", "step", "hits", "n"])
    mark = (
        alt.Chart(pd.DataFrame([{"step": recommended}]))
        .mark_rule(strokeDash=[4, 4], color="#8a8a8a")
        .encode(x="step:Q")
    )
    upper = (band + line + mark).properties(height=260)
    kls = pd.DataFrame(
        [
            {"step": r["step"], "KL": r["metrics"]["kl_general"]["kl"]}
            for r in rows
            if (r["metrics"].get("kl_general") or {}).get("kl") is not None
        ]
    )
    if kls.empty:
        return upper
    lower = (
        alt.Chart(kls)
        .mark_line(point=True)
        .encode(x=x, y=alt.Y("KL:Q", title="KL to the base (nats)"), tooltip=["step", "KL"])
        .properties(height=120)
    )
    return alt.vconcat(upper, lower + mark)
