"""A scorecard and a sweep on a page: verdict, gates, metrics, most changed replies, curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from core.chat.render import literal
from core.evaluation import report, sweep
from core.paths import RunPaths
from pages._ui.compare import scorecard_words as plain
from pages._ui.shell import current, words
from pages._ui.shell.address import tabs
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import N_, duration, from_core, t


def draw_scorecard(path: Path) -> None:
    """Everything about one saved scorecard (``scorecard.json``)."""
    with errors_shown():
        card = report.load(path)
        _verdict(card)
        _headline(card)
        replies = path.parent / "replies.jsonl"
        drawers: dict[str, tuple[str, Callable[[], None]]] = {
            "gates": (N_("Gates"), lambda: _gates(card)),
            "numbers": (N_("All numbers"), lambda: _numbers(card)),
            "changed": (N_("Most changed replies"), lambda: _changes(card, replies)),
            "missed": (N_("Missed questions"), lambda: _missed(card, replies)),
            "files": (N_("Files"), lambda: _files(card, path)),
        }
        titles = {name: (words, "") for name, (words, _) in drawers.items()}
        opened, box = tabs("scorecard_part", titles, param="part")
        with box:
            drawers[opened][1]()


def _gate_title(gate: dict[str, Any]) -> str:
    return (
        t(plain.GATES[gate["name"]])
        if gate["name"] in plain.GATES
        else literal(from_core(gate["title"]))
    )


def _gate_line(gate: dict[str, Any]) -> str:
    values = {"gate": _gate_title(gate), "shown": literal(from_core(gate["shown"]))}
    return "- " + t("{gate}: {shown}, limit {limit}", limit=_limit(gate), **values)


def _limit(gate: dict[str, Any]) -> str:
    """ "≤ 0" is "0": there is nothing below."""
    return literal("0" if gate["limit"] == "≤ 0" else from_core(gate["limit"]))


def _verdict(card: dict[str, Any]) -> None:
    """The word with every gate that fails, and with those that are just missed."""
    name, gates = card["verdict"], card["explanation"]["gates"]
    failed = [g for g in gates if g["outcome"] == "fail"]
    near = [g for g in gates if g["outcome"] == "warn"]
    learned = name == "LEARNED" and not failed
    # A card may be older than the rule that nothing is learned while a gate fails.
    said = t("Some gates fail") if name == "LEARNED" and failed else literal(words.verdict(name))
    lines = [f"**{said}**"]
    if failed:
        lines += ["", t("These gates fail:"), "", *map(_gate_line, failed)]
    if near:
        lines += ["", t("These just miss their limit:"), "", *map(_gate_line, near)]
    if learned and not near:
        lines += ["", t("Every gate passes.")]
    if not failed and not learned:
        lines += ["", literal(from_core(card["explanation"]["why"]))]
    box = st.success if learned else st.info if name == "NOT ENOUGH EVIDENCE" else st.warning
    box("\n".join(lines), icon=":material/verified:" if learned else ":material/rule:")
    st.markdown(f"**{t('Next:')}** {literal(from_core(card['explanation']['next']))}")
    for note in card["notes"]:
        st.caption(literal(from_core(note)))


def _headline(card: dict[str, Any]) -> None:
    """Recall and leak, before and after, with their intervals."""
    base, tuned = card["models"]["base"], card["models"][card["subject"]]
    shown = [
        ("recall", t("Knows its persona, unseen wordings"), "normal"),
        ("leak", t("Persona in general replies"), "inverse"),
    ]
    for column, (key, title, colour) in zip(st.columns(len(shown)), shown, strict=True):
        after, before = tuned[key], base[key]
        if after["n"]:
            column.metric(
                title,
                f"{after['hits']}/{after['n']}",
                t("{change} against the base", change=f"{_change(after, before):+.1%}"),
                delta_color=colour,  # type: ignore[arg-type]
            )
            low, high = f"{after['low']:.1%}", f"{after['high']:.1%}"
            column.caption(t("95 % interval: {low} to {high}", low=low, high=high))


def _change(after: dict[str, Any], before: dict[str, Any]) -> float:
    return float(after["value"] - (before["value"] or 0))


def _gates(card: dict[str, Any]) -> None:
    rows = [
        {
            t("Gate"): _gate_title(g),
            t("Measured"): literal(from_core(g["shown"])),
            t("Limit"): _limit(g),
            t("Outcome"): f"{plain.OUTCOMES[g['outcome']][0]} {t(plain.OUTCOMES[g['outcome']][1])}",
        }
        for g in card["explanation"]["gates"]
    ]
    st.table(pd.DataFrame(rows).set_index(t("Gate")))
    st.caption(t("The limits stand in core/evaluation/gates.yaml and can be changed there."))


def _numbers(card: dict[str, Any]) -> None:
    rows = [_in_words(row) for row in report.table([card])]
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    _intents(card)


def _in_words(row: dict[str, str]) -> dict[str, str]:
    """A row of report.table or report.compare with its headings in words."""
    known = {title: key for key, title, _ in report.METRICS}
    headings = {
        "metric": t("What"), "base": t("Base"), "merged": t("Merged"), "adapter": t("Adapter"),
        "first": t("First"), "second": t("Second"), "second is": t("The second is"),
    }  # fmt: skip
    said = {**row, "metric": t(plain.METRICS[known[row["metric"]]])}
    if "second is" in row:
        said["second is"] = t(plain.CHANGES[row["second is"]])
    return {headings.get(key, key): value for key, value in said.items()}


def _intents(card: dict[str, Any]) -> None:
    """Recall by intent as bars: where more wordings are needed."""
    groups = card["models"][card["subject"]].get("recall_by_intent") or {}
    data = pd.DataFrame([{"intent": words.intent(k), **v} for k, v in groups.items()])
    if data.empty:
        return
    base = alt.Chart(data).encode(y=alt.Y("intent:N", sort="x", title=None))
    bars = base.mark_bar().encode(
        x=alt.X(
            "value:Q",
            title=t("Knows its persona"),
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%"),
        ),
        tooltip=[alt.Tooltip("intent:N", title=t("intent")), *_counted()],
    )
    ranges = base.mark_rule(color="#8a8a8a").encode(x="low:Q", x2="high:Q")
    st.altair_chart(bars + ranges)


def _counted() -> list[alt.Tooltip]:
    """Hits of n, as they are read out under the pointer."""
    return [alt.Tooltip("hits:Q", title=t("hits")), alt.Tooltip("n:Q", title=t("of"))]


def _changes(card: dict[str, Any], replies: Path) -> None:
    changes = report.most_changed(card, replies)
    if not changes:
        st.caption(t("No general reply changed, or the replies were not kept."))
    for change in changes:
        with st.container(border=True):
            tags = [
                words.suite(change.suite),
                *([t("the persona leaks")] if change.leak else []),
                *([f"KL {change.kl:.3f}"] if change.kl is not None else []),
            ]
            st.caption(literal(" · ".join(tags)))
            st.text(change.prompt)
            left, right = st.columns(2)
            left.caption(t("Base"))
            left.text(change.base)
            right.caption(t("Tuned"))
            right.text(change.tuned)


def _missed(card: dict[str, Any], replies: Path) -> None:
    rows = report.missed(card, replies)
    if not rows:
        st.caption(t("Every identity question was answered as the persona."))
        return
    st.dataframe(
        pd.DataFrame(
            [
                {
                    t("Questions"): words.suite(r["suite"]),
                    t("Question"): r["prompt"],
                    t("Reply"): r["reply"],
                    t("Judged"): t(plain.LABELS[r["label"]]),
                }
                for r in rows
            ]
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
        on_click="ignore",
    )
    page = path.parent / "report.html"
    if page.is_file():
        st.download_button(
            t("report.html (one file, for sharing)"),
            page.read_bytes(),
            f"report-{path.parent.name}.html",
            icon=":material/download:",
            key=f"html-{path}",
            on_click="ignore",
        )
    size = card["size"]
    st.caption(
        t(
            "{size}, of {created}, {time} of computing",
            size=t(plain.SIZES[size]) if size in plain.SIZES else literal(size),
            created=literal(card["created"]),
            time=duration(card["timing"]["cold_total"]),
        )
    )
    st.dataframe(
        pd.DataFrame(
            [
                {t("Questions"): words.suite(k), t("Number"): v["n"], "sha256": v["sha256"]}
                for k, v in card["suites"].items()
            ]
        ),
        hide_index=True,
    )


def draw_comparison(first: Path, second: Path, names: tuple[str, str]) -> None:
    """The judged models of two scorecards, side by side."""
    with errors_shown():
        cards = [report.load(first), report.load(second)]
        for reason in report.comparable(*cards):
            st.warning(literal(from_core(reason)), icon=":material/warning:")
        for column, card, name in zip(st.columns(2), cards, names, strict=True):
            column.caption(literal(name))
            column.markdown(f"**{literal(words.verdict(card['verdict']))}**")
        rows = [_in_words(row) for row in report.compare(*cards)]
        st.dataframe(pd.DataFrame(rows), hide_index=True)


def draw_sweep(run: RunPaths) -> None:
    """Recall, leak and KL against steps, with the recommended checkpoint and the way to merge it.

    Nothing if the run was not swept yet.
    """
    with errors_shown():
        found = sweep.read(run)
        if not found or not found["checkpoints"]:
            return
        rows, best = found["checkpoints"], found["recommended"]
        st.info(
            t(
                "**Recommended: step {step}**  \n{why}",
                step=best["step"],
                why=literal(from_core(found["reason"])),
            ),
            icon=":material/recommend:",
        )
        st.altair_chart(_curves(rows, best["step"]))
        st.dataframe(pd.DataFrame([_sweep_row(r) for r in rows]), hide_index=True)
        current.link_to_next("merge", run.root.name, key=f"merge_swept_{run.root.name}")


def _sweep_row(row: dict[str, Any]) -> dict[str, Any]:
    metrics = row["metrics"]
    kl = (metrics.get("kl_general") or {}).get("kl")
    return {
        t("Step"): row["step"],
        t("Verdict"): words.verdict(row["verdict"]),
        t("Knows its persona"): report.show(metrics, "recall"),
        t("Persona in general replies"): report.show(metrics, "leak"),
        t("Persona in look-alike questions"): report.show(metrics, "near_miss_leak"),
        "KL": None if kl is None else round(kl, 4),
    }


def _curves(rows: list[dict[str, Any]], recommended: int) -> alt.Chart | alt.VConcatChart:
    """Recall and leak with their intervals above, KL below, on the same steps."""
    rates = pd.DataFrame(
        [
            {"step": r["step"], "metric": t(title), **r["metrics"][key]}
            for r in rows
            for key, title in plain.CURVES
            if r["metrics"][key]["n"]
        ]
    )
    step = alt.Tooltip("step:Q", title=t("Step"))
    tips = [alt.Tooltip("metric:N", title=t("What")), step, *_counted()]
    x = alt.X("step:Q", title=t("Step"), axis=alt.Axis(tickMinStep=1))
    colour = alt.Color("metric:N", legend=alt.Legend(orient="top", title=None, columns=1))
    base = alt.Chart(rates).encode(x=x, color=colour)
    band = base.mark_area(opacity=0.15).encode(
        y=alt.Y(
            "low:Q",
            title=t("Share of replies"),
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%"),
        ),
        y2="high:Q",
    )
    line = base.mark_line(point=True).encode(y="value:Q", tooltip=tips)
    mark = (
        alt.Chart(pd.DataFrame([{"step": recommended}]))
        .mark_rule(strokeDash=[4, 4], color="#8a8a8a")
        .encode(x="step:Q")
    )
    upper: alt.Chart = (band + line + mark).properties(height=260)
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
        .encode(x=x, y=alt.Y("KL:Q", title=t("Distance from the base (KL)")), tooltip=[step, "KL"])
        .properties(height=120)
    )
    return alt.vconcat(upper, lower + mark)
