"""What a dataset holds and what is wrong with it, in pictures."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.data import store
from core.data.budget import Budget
from core.data.diversity import Diversity
from core.data.drafts import Draft
from core.data.report import DatasetReport
from pages._ui import dataset_charts
from pages._ui.common import errors_shown
from pages._ui.dataset_state import choose_dataset

_ICONS = {
    "ok": ":material/check_circle:",
    "warning": ":material/warning:",
    "error": ":material/error:",
    "note": ":material/info:",
}
#: What a hand-written identity set of 91 rows measures (see core.data.diversity).
_USUAL = {
    "distinct_1": "0.11",
    "distinct_2": "0.31",
    "self_bleu": "77",
    "gzip_ratio": "4",
    "near_duplicates": "12 %",
}


def draw() -> None:
    """The Report part."""
    name = choose_dataset()
    if not name:
        return
    model, length, step, steps = _settings()
    with errors_shown():
        if Draft(name).changed:
            st.info(
                "There are unsaved edits; the report is about the saved version.",
                icon=":material/edit_note:",
            )
        stamp = store.dataset(name).manifest.stat().st_mtime_ns
        report = _report(name, stamp, model, length, step, steps or None)
        _head(report)
        _findings(report)
        _pictures(report)
        _diversity(report)
        _simulation(store.manifest(name).get("simulation"))


def _settings() -> tuple[str, int, int, int]:
    with st.expander("Planned training", icon=":material/tune:"), st.container(horizontal=True):
        model = st.text_input("Model", "bundled", key="report-model", width=260)
        length = st.number_input("Longest row (tokens)", 16, 131_072, 512, width=180)
        step = st.number_input("Rows a step (batch x accumulation)", 1, 4096, 16, width=240)
        steps = st.number_input("Optimizer steps (0 = advised)", 0, 100_000, 0, width=220)
    return model.strip() or "bundled", int(length), int(step), int(steps)


@st.cache_data(show_spinner="Reading the rows", max_entries=8)
def _report(
    name: str, _stamp: int, model: str, length: int, step: int, steps: int | None
) -> DatasetReport:
    from core.data.report import report_dataset
    from core.models.catalog import resolve

    return report_dataset(
        store.dataset(name), resolve(model).path, max_length=length, rows_per_step=step, steps=steps
    )


def _head(report: DatasetReport) -> None:
    with st.container(horizontal=True):
        st.metric("Conversations", f"{report.rows:,}", width=150)
        if report.general_to_identity:
            by_rows, by_loss = report.general_to_identity
            st.metric(
                "General : identity",
                f"{by_rows:.1f} : 1",
                width=180,
                help=f"By rows; {by_loss:.1f} : 1 by learned tokens.",
            )
        st.metric("Tokens, median", f"{report.lengths.p50:,}", width=150)
        st.metric(
            f"Over {report.lengths.limit} tokens",
            f"{report.lengths.over_limit:,}",
            width=170,
            help="Their end is cut off, and with it the last replies.",
        )
        st.metric("Optimizer steps", f"{report.budget.steps:,}", width=160)
        st.metric("Times each row is seen", f"{report.budget.exposures:.1f}", width=200)
    advice(report.budget)


def advice(budget: Budget) -> None:
    """The judgements on a plan, bad ones first."""
    order = ["error", "warning", "ok"]
    for one in sorted(budget.advice, key=lambda a: order.index(a.level)):
        text = f"**{one.text[0].upper()}{one.text[1:]}.** {one.why[0].upper()}{one.why[1:]}."
        if one.level == "ok":
            st.caption(f"{_ICONS['ok']} {text}")
        else:
            (st.error if one.level == "error" else st.warning)(text, icon=_ICONS[one.level])


def _findings(report: DatasetReport) -> None:
    st.subheader("Findings")
    if not report.findings:
        st.success(
            "Nothing wrong was found: no leftover placeholder, no forbidden claim, no row "
            "that gives a held-out question away.",
            icon=":material/check_circle:",
        )
        return
    st.dataframe(
        [
            {
                "Level": f.level,
                "Problem": f.message,
                "Fix": f.fix,
                "First at": f.where,
                "Times": f.count,
            }
            for f in report.findings
        ],
        hide_index=True,
        width="stretch",
    )


def _pictures(report: DatasetReport) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Mix")
        dataset_charts.mix(report)
        st.subheader("Rounds")
        dataset_charts.rounds(report)
        st.subheader("Lengths")
        dataset_charts.lengths(report)
    with right:
        if report.intents:
            st.subheader("Identity turns by intent")
            dataset_charts.coverage(report)
        if report.slot_coverage:
            st.subheader("Slots in the replies")
            dataset_charts.slots(report)


def _diversity(report: DatasetReport) -> None:
    st.subheader("Variety")
    st.caption(
        "Copies of one sentence teach one sentence. High distinct-n and low self-BLEU, "
        "gzip ratio and near-duplicate share mean variety; the last column is what a "
        "hand-written public identity set measures."
    )
    columns = {
        "Identity questions": report.questions,
        "Identity replies": report.replies,
        "All replies": report.all_replies,
    }
    values = {name: _measures(d) for name, d in columns.items()}
    st.dataframe(
        [
            {
                "Measure": m.replace("_", " "),
                **{c: v[m] for c, v in values.items()},
                "Usual": _USUAL.get(m, ""),
            }
            for m in next(iter(values.values()))
        ],
        hide_index=True,
        width="stretch",
    )


def _measures(found: Diversity) -> dict[str, str]:
    return {
        "texts": f"{found.texts:,}",
        "unique": f"{found.unique:,}",
        **{f"distinct_{n}": f"{v:.2f}" for n, v in enumerate(found.distinct, 1)},
        "self_bleu": f"{found.self_bleu:.0f}",
        "gzip_ratio": f"{found.gzip_ratio:.1f}",
        "near_duplicates": f"{found.near_duplicates:.0%}".replace("%", " %"),
        "most_copies": f"{found.most_copies:,}",
    }


def _simulation(record: dict[str, Any] | None) -> None:
    """What the turn checks of the UltraChat loop rejected, if dialogues were simulated."""
    if not record:
        return
    st.subheader("Simulated dialogues")
    tries = record["attempts"]
    st.caption(
        f"{record['dialogues']:,} dialogues kept, {record['dropped']:,} dropped at the first reply; "
        f"{tries.get('user', 0):,} tries of a user turn and {tries.get('assistant', 0):,} of a "
        f"reply, by {record['models'].get('user')} and {record['models'].get('assistant')}."
    )
    rows = [
        (*check.split("."), record["rejected"][check], share)
        for check, share in record["rejected_share"].items()
    ]
    st.dataframe(
        [
            {
                "Side": side,
                "Check": name.replace("_", " "),
                "Rejected": count,
                "Share of tries": share,
            }
            for side, name, count, share in rows
        ],
        hide_index=True,
        width="stretch",
        column_config={"Share of tries": st.column_config.NumberColumn(format="percent")},
    )
