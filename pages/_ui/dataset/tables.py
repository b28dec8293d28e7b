"""The tables of the Report part: variety, and the checks of simulated dialogues."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.chat.render import literal
from core.data.diversity import Diversity
from core.data.report import DatasetReport
from pages._ui.shell.language import N_, number, percent, t

#: What a hand-written identity set of 91 rows measures (see core.data.diversity).
_USUAL = {
    "distinct_1": "0.11",
    "distinct_2": "0.31",
    "self_bleu": "77",
    "gzip_ratio": "4",
    "near_duplicates": "12%",
}

_SIDES = {"user": N_("Person"), "assistant": N_("Answers")}
#: What core.data.ultrachat.turns rejects a turn for.
_CHECKS = {
    "empty": N_("empty"),
    "marker_leak": N_("control tokens in the text"),
    "role_exchange": N_("speaks for the other side"),
    "politeness_only": N_("nothing but politeness"),
    "wrong_language": N_("another language"),
    "no_request": N_("asks for nothing"),
    "too_long": N_("too long"),
    "repeat": N_("repeats an earlier turn"),
    "truncated": N_("cut off"),
    "ai_disclaimer": N_("speaks of being an AI"),
    "identity": N_("says who it is"),
    "loop": N_("a loop"),
}
_MEASURES = {
    "texts": N_("Texts"),
    "unique": N_("Unique"),
    "distinct_1": N_("Distinct words (distinct-1)"),
    "distinct_2": N_("Distinct word pairs (distinct-2)"),
    "distinct_3": N_("Distinct word triples (distinct-3)"),
    "self_bleu": N_("Self-BLEU"),
    "gzip_ratio": N_("Gzip ratio"),
    "near_duplicates": N_("Near duplicates"),
    "most_copies": N_("Most copies of one"),
}


def diversity(report: DatasetReport) -> None:
    """How varied the texts are, beside a usual set."""
    st.subheader(t("Variety"))
    st.caption(
        t("Copies of one sentence teach one sentence. High distinct-n and low self-BLEU, gzip "
          "ratio and near-duplicate share mean variety; the last column is what a hand-written "
          "public identity set measures.")
    )  # fmt: skip
    columns = {
        t("Identity questions"): report.questions,
        t("Identity replies"): report.replies,
        t("All replies"): report.all_replies,
    }
    values = {name: _measures(d) for name, d in columns.items()}
    st.dataframe(
        [
            {
                t("Measure"): t(_MEASURES[m]),
                **{c: v[m] for c, v in values.items()},
                t("Usual"): _USUAL.get(m, ""),
            }
            for m in next(iter(values.values()))
        ],
        hide_index=True,
        width="stretch",
    )


def _measures(found: Diversity) -> dict[str, str]:
    return {
        "texts": number(found.texts),
        "unique": number(found.unique),
        **{f"distinct_{n}": f"{v:.2f}" for n, v in enumerate(found.distinct, 1)},
        "self_bleu": f"{found.self_bleu:.0f}",
        "gzip_ratio": f"{found.gzip_ratio:.1f}",
        "near_duplicates": percent(found.near_duplicates),
        "most_copies": number(found.most_copies),
    }


def simulation(record: dict[str, Any] | None) -> None:
    """What the turn checks of the UltraChat loop rejected, if dialogues were simulated."""
    if not record:
        return
    st.subheader(t("Simulated dialogues"))
    tries, models = record["attempts"], record["models"]
    st.caption(
        t("{kept:,} dialogues kept, {dropped:,} dropped at the first reply; {asked:,} tries of a "
          "user turn (by {user}) and {replied:,} of a reply (by {assistant}).",
          kept=record["dialogues"], dropped=record["dropped"], asked=tries.get("user", 0),
          user=literal(models.get("user")), replied=tries.get("assistant", 0),
          assistant=literal(models.get("assistant")))
    )  # fmt: skip
    rows = [
        (*check.split("."), record["rejected"][check], share)
        for check, share in record["rejected_share"].items()
    ]
    st.dataframe(
        [
            {
                t("Side"): t(_SIDES[side]) if side in _SIDES else side,
                t("Check"): t(_CHECKS[name]) if name in _CHECKS else name,
                t("Rejected"): count,
                t("Share of tries"): share,
            }
            for side, name, count, share in rows
        ],
        hide_index=True,
        width="stretch",
        column_config={t("Share of tries"): st.column_config.NumberColumn(format="percent")},
    )
