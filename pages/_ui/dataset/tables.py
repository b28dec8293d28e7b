"""The tables of the Report part: variety, and the checks of simulated dialogues."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.chat.render import literal
from core.data.diversity import Diversity
from core.data.report import DatasetReport

#: What a hand-written identity set of 91 rows measures (see core.data.diversity).
_USUAL = {
    "distinct_1": "0.11",
    "distinct_2": "0.31",
    "self_bleu": "77",
    "gzip_ratio": "4",
    "near_duplicates": "12 %",
}


def diversity(report: DatasetReport) -> None:
    """How varied the texts are, beside a usual set."""
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


def simulation(record: dict[str, Any] | None) -> None:
    """What the turn checks of the UltraChat loop rejected, if dialogues were simulated."""
    if not record:
        return
    st.subheader("Simulated dialogues")
    tries, models = record["attempts"], record["models"]
    st.caption(
        f"{record['dialogues']:,} dialogues kept, {record['dropped']:,} dropped at the first "
        f"reply; {tries.get('user', 0):,} tries of a user turn "
        f"(by {literal(models.get('user'))}) and {tries.get('assistant', 0):,} of a reply "
        f"(by {literal(models.get('assistant'))})."
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
