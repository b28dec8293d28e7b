"""One merge job: progress while it runs; then folder, proof, model card and exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core import fsio
from core.chat.render import literal, safe_markdown
from core.jobs import api
from core.jobs.state import ACTIVE, State, Status
from core.paths import RunPaths
from pages._ui.merge import export as merge_export
from pages._ui.merge.state import NEW, merged_folder, merges
from pages._ui.shell.common import errors_shown, folder_tree, run_label, show_error
from pages._ui.shell.language import time_left
from pages._ui.train.state import badge

_EVERY = 1.0


def draw() -> None:
    """Choose a merge; a part that renews itself while it is alive; the result below."""
    jobs = {s.id: s for s in merges()}
    if not jobs:
        st.info(f"Nothing has been merged yet. Start under **{NEW}**.", icon=":material/merge:")
        return
    wanted = st.query_params.get("merge", "")
    job_id = st.selectbox(
        "Merge",
        list(jobs),
        index=list(jobs).index(wanted) if wanted in jobs else 0,
        format_func=lambda i: run_label(jobs[i]),
        key="merge_job",
        on_change=lambda: st.query_params.update(merge=st.session_state["merge_job"]),
    )
    run = RunPaths(jobs[job_id].root)
    live = jobs[job_id].state in ACTIVE
    panel: Callable[..., None] = st.fragment(_panel, run_every=_EVERY if live else None)
    panel(run, live)
    folder = None if live else merged_folder(run)
    if folder:
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
                "Stop", icon=":material/stop:", key="merge_stop"
            ):
                api.stop(run)
                st.rerun(scope="fragment")
        if now.state in ACTIVE:
            st.progress(now.share)
        if now.error:
            show_error(now.error)
            with st.expander("Log", icon=":material/article:"):
                st.code(now.log_tail or "(empty)", language=None)


def _text(now: Status) -> str:
    if now.waiting_for:
        return f"waiting for the device, held by {literal(now.waiting_for)}"
    parts = [literal(now.stage)] if now.stage and now.state in ACTIVE else []
    if now.state in ACTIVE and now.total and now.stage == "merge":
        parts.append(f"{fsio.human_bytes(now.done)} of {fsio.human_bytes(now.total)}")
    elif now.state in ACTIVE and now.total:
        parts.append(f"{now.done} of {now.total}")
    if now.elapsed_seconds is not None:
        took = time_left(now.elapsed_seconds).removesuffix(" left")
        parts.append(f"{took} so far" if now.state in ACTIVE else f"took {took}")
    return " · ".join(parts)


def _result(run: RunPaths, folder: Path) -> None:
    result = api.status(run).result or {}
    proof, files, card, export = st.tabs(
        [
            ":material/verified: Proof",
            ":material/folder: Files",
            ":material/description: Card",
            ":material/ios_share: Export",
        ]
    )
    with proof:
        _proof(result.get("proof", {}), result.get("seconds", {}))
    with files:
        st.code(str(folder), language=None)
        folder_tree(fsio.tree(folder))
        st.caption("Adapter")
        st.code(str(result.get("adapter", "")), language=None)
        folder_tree(fsio.tree(Path(result["adapter"])))
    with card:
        _card(folder)
    with export:
        merge_export.draw(run, folder)


def _proof(proof: dict[str, Any], seconds: dict[str, float]) -> None:
    if not proof:
        return
    st.success(
        f"The merged model answers as base + adapter does: {proof['prompts']} prompts, "
        f"{proof['tokens']} positions compared.",
        icon=":material/verified:",
    )
    for note in proof.get("notes", []):
        st.info(note)
    limit, kl_limit = proof["tolerance"]
    rows = [
        ("Largest logit difference", f"{proof['max_abs_logit_diff']:.2g}", f"at most {limit:g}"),
        (
            "Difference from adapter (KL, 0 = identical)",
            f"{proof['kl']:.1g}",
            f"at most {kl_limit:g}",
        ),
        ("Same greedy replies", _replies(proof), "all, but for ties"),
        ("Written / computed in", f"{proof['dtype']} / {proof['compute_dtype']}", ""),
    ]
    if proof["nf4_kl"] is not None:
        rows.append(
            (
                "NF4 base against the original, logits",
                f"{proof['nf4_max_abs_logit_diff']:.2g}",
                "for information",
            )
        )
        rows.append(("NF4 base against the original, KL", f"{proof['nf4_kl']:.2g}", "same"))
    names = {
        "merged": "merged",
        "unquantized": "original base + adapter",
        "nf4": "NF4 base + adapter",
    }
    rows += [
        (f"Training loss, {names[k]}", f"{v:.4f}", f"{proof['loss_rows']} rows")
        for k, v in proof["losses"].items()
    ]
    # A plain table: it wraps on a narrow screen, and a grid of seven rows needs no scrolling.
    st.table(pd.DataFrame(rows, columns=["measured", "value", "limit"]).set_index("measured"))
    took = ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items())
    st.caption(f"Time: {took}. Hashes of every file are in MANIFEST.json.")


def _replies(proof: dict[str, Any]) -> str:
    if proof["same_greedy"]:
        return f"{proof['prompts']} of {proof['prompts']}"
    same = proof["prompts"] - len(proof["differing"])
    return f"{same} of {proof['prompts']}, {proof['near_ties']} part at a tie"


def _card(folder: Path) -> None:
    path = folder / "README.md"
    if not path.is_file():
        st.caption("This folder has no model card.")
        return
    text = path.read_text(encoding="utf-8")
    _, meta, body = text.split("---", 2) if text.startswith("---") else ("", "", text)
    with st.expander("Metadata for the hub", icon=":material/label:"):
        st.code(meta.strip(), language="yaml")
    with st.container(border=True):
        st.markdown(safe_markdown(body))
