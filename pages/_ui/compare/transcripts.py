"""Transcripts tab: what was said before, to open, export or delete; and what the votes say."""

from __future__ import annotations

import time

import streamlit as st

from core.chat import transcripts, votes
from core.chat.export import FORMATS
from core.chat.render import safe_markdown
from core.errors import UserError
from pages._ui.compare import state as compare_state
from pages._ui.shell.common import errors_shown
from pages._ui.shell.words import count


def draw() -> None:
    """The whole tab."""
    chats = transcripts.list_chats()
    if not chats:
        st.info(
            "No conversation yet. Everything said under **Chat** is kept here, on this machine.",
            icon=":material/forum:",
        )
        return
    _votes([chat[0] for chat in chats])
    by_id = {chat[0]: chat for chat in chats}
    opened = compare_state.chat_id()
    chosen = st.selectbox(
        "Conversation",
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


def _label(chat: tuple[str, str, float, int]) -> str:
    _, title, changed, turns = chat
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))
    return f"{when} · {title} · {turns} turn{'' if turns == 1 else 's'}"


def _one(transcript: transcripts.Transcript) -> None:
    with st.container(horizontal=True):
        if st.button("Open", icon=":material/open_in_new:", key="compare_open", type="primary"):
            st.query_params["chat"] = transcript.id
            st.rerun()
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
    labels = ", ".join(safe_markdown(s.label) for s in transcript.columns)
    st.caption(f"Columns: {labels}")
    for turn in transcript.turns[:50]:
        st.markdown(f":material/person: {safe_markdown(turn.prompt[:300])}")


def _delete_button(chat_id: str) -> None:
    with st.popover("Delete", icon=":material/delete:"):
        st.write("This cannot be undone.")
        st.button("Delete for good", key="compare_delete", on_click=_delete, args=(chat_id,))


def _delete(chat_id: str) -> None:
    with errors_shown():
        transcripts.delete(chat_id)
        compare_state.forget(chat_id)


def _votes(ids: list[str]) -> None:
    opened = []
    for chat_id in ids:
        try:
            opened.append(transcripts.read(chat_id))
        except UserError:
            continue
    tally = votes.tally(opened)
    if not tally.total:
        return
    st.subheader("Blind votes")
    st.dataframe(
        [
            {
                "Model": s.label,
                "Votes": s.wins,
                "Share": None if s.share is None else f"{s.share:.0%}",
                "95 % interval": f"{s.low:.0%} to {s.high:.0%}",
            }
            for s in tally.standings
        ],
        hide_index=True,
    )
    st.caption(
        f"{count(tally.total, 'vote')}. Ties ({tally.ties}) and “all bad” ({tally.both_bad}) are "
        "left out; "
        "the interval (Wilson) is of the share among the decided votes."
    )
