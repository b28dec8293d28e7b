"""One merge job: progress while it runs; then folder, proof, model card and exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core import fsio, trees
from core.chat.render import literal, safe_markdown
from core.jobs import api
from core.jobs.state import ACTIVE, State, Status
from core.paths import RunPaths
from pages._ui.merge import export as merge_export
from pages._ui.merge.state import NEW, VIEWS, merged_folder, merges
from pages._ui.shell import current, words
from pages._ui.shell.common import errors_shown, folder_tree, show_error
from pages._ui.shell.language import N_, duration, from_core, listed, number, t, time_left, tn
from pages._ui.train.state import badge, run_label

_EVERY = 1.0
_STAGES = {"convert": N_("conversion"), "merge": N_("merge"), "prove": N_("proof")}
_LOSSES = {
    "merged": N_("merged"),
    "unquantized": N_("original base + adapter"),
    "nf4": N_("NF4 base + adapter"),
}


def draw() -> None:
    """Choose a merge; a part that renews itself while it is alive; the result below."""
    jobs = {s.id: s for s in merges()}
    if not jobs:
        st.info(
            t("Nothing has been merged yet. Start under **{new}**.", new=t(VIEWS[NEW][0])),
            icon=":material/merge:",
        )
        return
    st.session_state["merge_job"] = current.chosen("merge", list(jobs))
    job_id = st.selectbox(
        t("Merge"),
        list(jobs),
        format_func=lambda i: run_label(jobs[i]),
        key="merge_job",
        on_change=lambda: current.choose(merge=st.session_state["merge_job"]),
    )
    run = RunPaths(jobs[job_id].root)
    live = jobs[job_id].state in ACTIVE
    panel: Callable[..., None] = st.fragment(_panel, run_every=_EVERY if live else None)
    panel(run, live)
    folder = None if live else merged_folder(run)
    if folder:
        current.link_to_next("compare", job_id)
        _result(run, folder)


def _panel(run: RunPaths, live: bool) -> None:
    with errors_shown():
        now = api.status(run)
        if live and now.state not in ACTIVE:
            st.rerun()
        with st.container(horizontal=True, vertical_alignment="center"):
            badge(now.state, now.reason if now.final else None)
            st.caption(_text(now))
            if now.state in (State.STARTING, State.RUNNING) and st.button(
                t("Stop"), icon=":material/stop:", key="merge_stop"
            ):
                api.stop(run)
                st.rerun(scope="fragment")
        if now.state in ACTIVE:
            st.progress(now.share)
        if now.error:
            show_error(now.error)
            with st.expander(t("Log"), icon=":material/article:"):
                st.code(now.log_tail or t("(empty)"), language=None)


def _text(now: Status) -> str:
    if now.waiting_for:
        return t(
            "waiting for the device, held by {what}", what=literal(words.holding(now.waiting_for))
        )
    active = now.state in ACTIVE
    parts = [literal(words.doing(now.stage))] if now.stage and active else []
    if active and now.total:
        shown = fsio.human_bytes if now.stage == "merge" else number
        parts.append(t("{done} of {total}", done=shown(now.done), total=shown(now.total)))
    if active and now.eta_seconds is not None:
        parts.append(time_left(now.eta_seconds))
    if now.elapsed_seconds is not None:
        spent = duration(now.elapsed_seconds)
        parts.append(t("{time} so far" if active else "took {time}", time=spent))
    return " · ".join(parts)


def _result(run: RunPaths, folder: Path) -> None:
    result = api.status(run).result or {}
    proof, files, card, export = st.tabs(
        [
            ":material/verified: " + t("Proof"),
            ":material/folder: " + t("Files"),
            ":material/description: " + t("Card"),
            ":material/ios_share: " + t("Export"),
        ]
    )
    with proof:
        _proof(result.get("proof", {}), result.get("seconds", {}))
    with files:
        st.code(str(folder), language=None)
        folder_tree(trees.tree(folder))
        st.caption(t("Adapter"))
        st.code(str(result.get("adapter", "")), language=None)
        folder_tree(trees.tree(Path(result["adapter"])))
    with card:
        _card(folder)
    with export:
        merge_export.draw(run, folder)


def _proof(proof: dict[str, Any], seconds: dict[str, float]) -> None:
    if not proof:
        return
    st.success(
        t(
            "The merged model answers as base + adapter does: {prompts} prompts, "
            "{positions} positions compared.",
            prompts=number(proof["prompts"]),
            positions=number(proof["tokens"]),
        ),
        icon=":material/verified:",
    )
    for note in proof.get("notes", []):
        st.info(safe_markdown(from_core(note)))
    # A plain table: it wraps on a narrow screen, and a grid of seven rows needs no scrolling.
    columns = [t("measured"), t("value"), t("limit")]
    st.table(pd.DataFrame(_measured(proof), columns=columns).set_index(columns[0]))
    took = listed(
        [
            t("{stage} {seconds:.1f} s", stage=t(_STAGES[k]), seconds=v)
            for k, v in seconds.items()
            if k in _STAGES
        ]
    )
    st.caption(t("Time: {took}. Hashes of every file are in MANIFEST.json.", took=took))


def _measured(proof: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, the value, and its limit, in words."""
    limit, kl_limit = proof["tolerance"]
    rows = [
        (
            t("Largest logit difference"),
            f"{proof['max_abs_logit_diff']:.2g}",
            t("at most {limit:g}", limit=limit),
        ),
        (
            t("Difference from adapter (KL, 0 = identical)"),
            f"{proof['kl']:.1g}",
            t("at most {limit:g}", limit=kl_limit),
        ),
        (t("Same greedy replies"), _replies(proof), t("all, but for ties")),
        (t("Written / computed in"), f"{proof['dtype']} / {proof['compute_dtype']}", ""),
    ]
    if proof["nf4_kl"] is not None:
        rows += [
            (
                t("NF4 base against the original, logits"),
                f"{proof['nf4_max_abs_logit_diff']:.2g}",
                t("for information"),
            ),
            (
                t("NF4 base against the original, KL"),
                f"{proof['nf4_kl']:.2g}",
                t("for information"),
            ),
        ]
    return rows + [
        (
            t("Training loss, {model}", model=t(_LOSSES[name])),
            f"{loss:.4f}",
            tn("{n} row", "{n} rows", proof["loss_rows"]),
        )
        for name, loss in proof["losses"].items()
    ]


def _replies(proof: dict[str, Any]) -> str:
    total = number(proof["prompts"])
    if proof["same_greedy"]:
        return t("{done} of {total}", done=total, total=total)
    same = number(proof["prompts"] - len(proof["differing"]))
    return t(
        "{done} of {total}, {ties} part at a tie", done=same, total=total, ties=proof["near_ties"]
    )


def _card(folder: Path) -> None:
    path = folder / "README.md"
    if not path.is_file():
        st.caption(t("This folder has no model card."))
        return
    with fsio.disk_errors(f"{path} cannot be read"):
        text = fsio.read_text(path)
    head, meta, body = text.split("---", 2) if text.count("---") > 1 else ("", "", text)
    if head:  # what stands before the first line of dashes is no metadata
        meta, body = "", text
    with st.expander(t("Metadata for the hub"), icon=":material/label:"):
        st.code(meta.strip(), language="yaml")
    with st.container(border=True):
        st.markdown(safe_markdown(body))
