"""Transcripts tab: what was said before, to open, export or delete; and what the votes say."""

from __future__ import annotations

import streamlit as st

from core.chat import transcripts, votes
from core.chat.dialogue import Transcript
from core.chat.export import FORMATS
from core.chat.render import safe_markdown
from core.chat.transcripts import Listed
from core.chat.votes import Tally
from core.errors import UserError
from pages._ui.compare import columns as compare_columns
from pages._ui.compare import state
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import listed, moment, percent, t, tn


def draw() -> None:
    """The whole tab."""
    chats = transcripts.list_chats()
    if not chats:
        st.info(
            t("No conversation yet. Everything said under **Chat** is kept here, on this machine."),
            icon=":material/forum:",
        )
        return
    _votes(votes.tally(vote for chat in chats for vote in chat.votes))
    by_id = {chat.id: chat for chat in chats}
    opened = st.query_params.get("chat", "")
    chosen = st.selectbox(
        t("Conversation"),
        list(by_id),
        index=list(by_id).index(opened) if opened in by_id else 0,
        format_func=lambda i: _label(by_id[i]),
        key="compare_transcript",
    )
    with errors_shown():
        try:
            transcript = transcripts.read(chosen)
        except UserError:
            _delete_button(chosen)  # a broken one can still be removed
            raise
        _one(transcript)


def _label(chat: Listed) -> str:
    turns = tn("{n} turn", "{n} turns", chat.turns)
    return f"{moment(chat.changed)} · {chat.title} · {turns}"


def _one(transcript: Transcript) -> None:
    with st.container(horizontal=True):
        st.button(
            t("Open"), icon=":material/open_in_new:", key="compare_open", type="primary",
            on_click=state.open_chat, args=(transcript.id,),
        )  # fmt: skip
        for suffix, (mime, write) in FORMATS.items():
            st.download_button(
                {"md": "Markdown", "json": "JSON", "html": "HTML"}[suffix],
                write(transcript),
                file_name=f"chat-{transcript.id}.{suffix}",
                mime=mime,
                icon=":material/download:",
                key=f"compare_export_{suffix}",
                on_click="ignore",
            )
        _delete_button(transcript.id)
    names = [safe_markdown(compare_columns.title(c)) for c in transcript.columns]
    st.caption(t("Columns: {names}", names=listed(names)))
    for turn in transcript.turns[:50]:
        st.markdown(f":material/person: {safe_markdown(turn.prompt[:300])}")


def _delete_button(name: str) -> None:
    with st.popover(t("Delete"), icon=":material/delete:"):
        st.write(t("This cannot be undone."))
        st.button(t("Delete for good"), key="compare_delete", on_click=_delete, args=(name,))


def _delete(name: str) -> None:
    with errors_shown():
        transcripts.delete(name)
        state.forget(name)


def _votes(tally: Tally) -> None:
    if not tally.total:
        return
    st.subheader(t("Blind votes"))
    st.dataframe(
        [
            {
                t("Model"): s.label,
                t("Votes"): s.wins,
                t("Share"): None if s.share is None else percent(s.share),
                t("95 % interval"): f"{percent(s.low)} – {percent(s.high)}",
            }
            for s in tally.standings
        ],
        hide_index=True,
    )
    st.caption(
        tn("{n} vote.", "{n} votes.", tally.total)
        + " "
        + t(
            "Ties ({ties}) and “all bad” ({bad}) are left out; the interval is of the share among "
            "the others.",
            ties=tally.ties,
            bad=tally.both_bad,
        )
    )
