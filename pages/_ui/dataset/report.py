"""What a dataset holds and what is wrong with it, in pictures."""

from __future__ import annotations

import streamlit as st

from core.chat.render import literal
from core.data import store
from core.data.drafts import DatasetDraft
from core.data.report import DatasetReport
from core.training import budget
from core.training.budget import Budget
from pages._ui.dataset import charts as dataset_charts
from pages._ui.dataset import tables as dataset_tables
from pages._ui.dataset.state import choose_dataset
from pages._ui.shell.common import errors_shown, model_libraries
from pages._ui.shell.language import N_, from_core, number, t

_ICONS = {
    "ok": ":material/check_circle:",
    "warning": ":material/warning:",
    "error": ":material/error:",
    "note": ":material/info:",
}
_LEVELS = {"error": N_("Error"), "warning": N_("Warning"), "note": N_("Note")}


def draw() -> None:
    """The Report part."""
    name = choose_dataset()
    if not name:
        return
    model, length, step, steps = _settings()
    with errors_shown():
        if DatasetDraft(name).changed:
            st.info(
                t("There are unsaved edits; the report is about the saved version."),
                icon=":material/edit_note:",
            )
        stamp = store.dataset(name).manifest.stat().st_mtime_ns
        model_libraries()
        with st.spinner(t("Reading the rows")):
            report = _report(name, stamp, model, length)
        _head(report, budget.for_dataset(report, rows_per_step=step, steps=steps or None))
        _findings(report)
        _pictures(report)
        dataset_tables.diversity(report)
        dataset_tables.simulation(store.manifest(name).get("simulation"))


def _settings() -> tuple[str, int, int, int]:
    with st.expander(t("Planned training"), icon=":material/tune:"), st.container(horizontal=True):
        model = st.text_input(t("Model"), "bundled", key="report-model", width=260)
        length = st.number_input(t("Longest row (tokens)"), 16, 131_072, 512, width=180)
        step = st.number_input(t("Rows a step (batch x accumulation)"), 1, 4096, 16, width=240)
        steps = st.number_input(t("Optimizer steps (0 = advised)"), 0, 100_000, 0, width=220)
    return model.strip() or "bundled", int(length), int(step), int(steps)


@st.cache_data(show_spinner=False, max_entries=8)
def _report(name: str, _stamp: int, model: str, length: int) -> DatasetReport:
    from core.data.report import report_dataset
    from core.models.catalog import resolve

    return report_dataset(store.dataset(name), resolve(model).path, max_length=length)


def _head(report: DatasetReport, plan: Budget) -> None:
    with st.container(horizontal=True):
        st.metric(t("Conversations"), number(report.rows), width=150)
        if report.general_to_identity:
            by_rows, by_loss = report.general_to_identity
            st.metric(
                t("General : identity"),
                f"{by_rows:.1f} : 1",
                width=180,
                help=t("By rows; {share:.1f} : 1 by learned tokens.", share=by_loss),
            )
        st.metric(t("Tokens, median"), number(report.lengths.p50), width=150)
        st.metric(
            t("Over {n} tokens", n=report.lengths.limit),
            f"{report.lengths.over_limit:,}",
            width=170,
            help=t("Their end is cut off, and with it the last replies."),
        )
        st.metric(t("Optimizer steps"), number(plan.steps), width=160)
        st.metric(t("Times each row is seen"), f"{plan.exposures:.1f}", width=200)
    advice(plan)


def advice(plan: Budget) -> None:
    """The judgements on a plan, bad ones first."""
    order = ["error", "warning", "ok"]
    for one in sorted(plan.advice, key=lambda a: order.index(a.level)):
        what, why = (x[0].upper() + x[1:] for x in (from_core(one.text), from_core(one.why)))
        text = t("**{what}.** {why}.", what=literal(what), why=literal(why))
        if one.level == "ok":
            st.caption(f"{_ICONS['ok']} {text}")
        else:
            (st.error if one.level == "error" else st.warning)(text, icon=_ICONS[one.level])


def _findings(report: DatasetReport) -> None:
    st.subheader(t("Findings"))
    if not report.findings:
        st.success(
            t("Nothing wrong was found: no leftover placeholder, no forbidden claim, no row that "
              "gives a held-out question away, no crowd of near copies."),
            icon=":material/check_circle:",
        )  # fmt: skip
        return
    st.dataframe(
        [
            {
                t("Level"): t(_LEVELS[f.level]),
                t("Problem"): from_core(f.message),
                t("Fix"): from_core(f.fix),
                t("First at"): f.where,
                t("Times"): f.count,
            }
            for f in report.findings
        ],
        hide_index=True,
        width="stretch",
    )


def _pictures(report: DatasetReport) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader(t("Mix"))
        dataset_charts.mix(report)
        st.subheader(t("Rounds"))
        dataset_charts.rounds(report)
        st.subheader(t("Lengths"))
        dataset_charts.lengths(report)
    with right:
        if report.intents:
            st.subheader(t("Identity turns by intent"))
            dataset_charts.coverage(report)
        if report.slot_coverage:
            st.subheader(t("Slots in the replies"))
            dataset_charts.slots(report)
