"""Chat tab: one prompt, every column answers at once."""

from __future__ import annotations

import time

import streamlit as st

from core.chat.live import LiveTurn
from core.chat.render import safe_markdown
from core.chat.session import ChatSession
from core.chat.sides import SideSpec
from core.chat.transcripts import Reply, Turn
from pages._ui import compare_columns, compare_controls, compare_state
from pages._ui.common import errors_shown

#: About 20 redraws a second: faster cannot be read, and each one re-sends the whole reply.
_FRAME_S = 0.05
_REASONS = {
    "stop": "ended by itself",
    "length": "cut at the length limit",
    "context": "cut at the end of the context",
    "cancelled": "stopped by you",
    "interrupted": "the server ended while this streamed",
    "error": "broke off",
}


def draw() -> None:
    """The whole tab."""
    session = compare_state.session()
    sides = compare_columns.draw(session)
    settings, system = compare_controls.draw(session)
    if session is not None:
        for index, turn in enumerate(session.transcript.turns):
            draw_turn(turn, session.transcript.sides, index)
        if session.live is not None:
            _stream(session, session.live)
    prompt = st.chat_input("Ask all columns", key="compare_prompt")
    if prompt:
        with errors_shown():
            if not compare_columns.make_ready(sides):
                return
            session = compare_state.open_session(sides, system)
            session.send(prompt, settings)
            st.rerun()


def draw_turn(turn: Turn, sides: list[SideSpec], index: int) -> None:
    """A finished turn: the prompt over the replies."""
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(safe_markdown(turn.prompt))
    for column, side in zip(st.columns(len(sides)), sides, strict=True):
        with column, st.container(border=True, key=f"reply_{index}_{side.id}"):
            st.caption(f"**{safe_markdown(side.label)}**")
            reply = turn.replies.get(side.id)
            if reply is None:
                st.caption("This column was not here yet.")
            else:
                _finished(reply)


def _finished(reply: Reply) -> None:
    if reply.text:
        st.markdown(safe_markdown(reply.text))
    if reply.error:
        lines = [reply.error["what"], reply.error.get("why", ""), reply.error.get("fix", "")]
        st.error(safe_markdown("\n\n".join(x for x in lines if x)), icon=":material/error:")
    st.caption(stats(reply))


def stats(reply: Reply) -> str:
    """One line: tokens, time to the first one, rate, why it ended."""
    parts = [f"{reply.tokens:,} tokens"]
    if reply.ttft_s is not None:
        parts.append(f"first after {reply.ttft_s:.2f} s")
    if reply.tokens_per_s is not None:
        parts.append(f"{reply.tokens_per_s:.1f} tokens/s")
    if reply.finish_reason:
        parts.append(_REASONS.get(reply.finish_reason, reply.finish_reason))
    return " · ".join(parts)


def _stream(session: ChatSession, live: LiveTurn) -> None:
    """Redraw both columns from what has arrived until every reply is over and saved."""
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(safe_markdown(live.turn.prompt))
    st.button("Stop", icon=":material/stop_circle:", key="compare_stop", on_click=session.stop)
    boxes = {}
    sides = session.transcript.sides
    for column, side in zip(st.columns(len(sides)), sides, strict=True):
        with column, st.container(border=True, key=f"live_{side.id}"):
            st.caption(f"**{safe_markdown(side.label)}**")
            boxes[side.id] = (st.empty(), st.empty())
    seen, drawn = -1, {}
    while session.live is live:
        seen = live.wait(seen, 0.5)
        for side_id, (text, line) in boxes.items():
            reply = live.turn.replies[side_id]
            now = (len(reply.text), reply.finish_reason)
            if drawn.get(side_id) != now:
                cursor = "" if reply.finish_reason else " ▌"
                text.markdown(safe_markdown(reply.text) + cursor)
                line.caption(stats(reply))
                drawn[side_id] = now
        time.sleep(_FRAME_S)
    st.rerun()
