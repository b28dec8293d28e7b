"""Chat tab: one prompt, every column answers at once."""

from __future__ import annotations

import time

import streamlit as st

from core.chat import transcripts, votes
from core.chat.columns import Column
from core.chat.live import LiveTurn
from core.chat.render import literal, safe_markdown
from core.chat.session import ChatSession
from core.inference.settings import GenerationSettings
from pages._ui.compare import columns as compare_columns
from pages._ui.compare import state as compare_state
from pages._ui.compare.turns import VIEWS, draw_prompt, draw_turn, stats, vote_choices
from pages._ui.shell.common import errors_shown

#: About 20 redraws a second: faster cannot be read, and each one sends the whole reply again.
_FRAME_S = 0.05
#: Long replies are redrawn less often, so that drawing does not take over.
_LONG, _LONG_FRAME_S = 6_000, 0.25


def draw(sides: list[Column], settings: GenerationSettings, system: str) -> None:
    """The whole tab."""
    session = compare_state.session()
    view, names, blind = _toolbar(session, settings)
    if session is not None:
        # Looked up before the turns: a reply that ends meanwhile is then drawn twice for a moment,
        # not left out until the next click.
        live = session.live
        if session.save_error:
            st.warning(literal(session.save_error), icon=":material/save:")
        for index in range(len(session.transcript.turns)):
            _turn(session, index, settings, view, names, blind)
        if live is not None:
            _stream(session, live, blind)
        _confirm_cut(session, settings)
    whom = "both" if len(sides) == 2 else "all"
    prompt = st.chat_input(f"Message {whom} models", key="compare_prompt")
    if prompt:
        _submit(prompt, sides, settings, system)


def _toolbar(
    session: ChatSession | None, settings: GenerationSettings
) -> tuple[str, list[str], bool]:
    """How replies are shown, and what can be done with the conversation."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view = st.segmented_control("View", VIEWS, default=VIEWS[0], key="compare_view")
        blind = st.toggle(
            "Blind vote",
            key="compare_blind",
            help="Shuffles the columns and hides their names until you have voted.",
        )
    names: list[str] = []
    if view == "Persona":
        st.session_state.setdefault("compare_names", ", ".join(compare_state.persona().names))
        typed = st.text_input("Names to mark, separated by commas", key="compare_names")
        names = typed.split(",")
    if session is not None and session.transcript.turns:
        idle = session.live is None
        with st.container(horizontal=True):
            regenerate = st.button(
                "Regenerate", icon=":material/refresh:", key="compare_regenerate",
                disabled=not idle or settings.greedy,
                help="Answers the last message again with the next seed. "
                "Greedy settings would give the same reply.",
            )  # fmt: skip
            st.button(
                "Clear", icon=":material/delete_sweep:", key="compare_clear",
                disabled=not idle, on_click=session.clear,
            )  # fmt: skip
            st.button(
                "New conversation", icon=":material/add_comment:", key="compare_new",
                on_click=compare_state.close_session,
            )  # fmt: skip
        if regenerate:
            with errors_shown():
                if compare_columns.make_ready(session.transcript.columns):
                    session.regenerate(settings)
                    st.rerun()
    return view or VIEWS[0], names, blind


def _turn(
    session: ChatSession,
    index: int,
    settings: GenerationSettings,
    view: str,
    names: list[str],
    blind: bool,
) -> None:
    transcript = session.transcript
    turn, sides = transcript.turns[index], transcript.columns
    order = [s.id for s in sides]
    seats = votes.seats(transcript.id, index, order) if blind or turn.vote else order
    if st.session_state.get("compare_editing") == (transcript.id, index):
        _edit(session, index, settings)
        return
    hidden = blind and not turn.vote
    draw_turn(turn, sides, index, view, names, seats, blind=hidden)
    with st.container(horizontal=True):
        if session.live is None and st.button(
            "Edit", icon=":material/edit:", key=f"compare_edit_{index}", type="tertiary",
            help="Change this message and go on from here; what follows is dropped.",
        ):  # fmt: skip
            st.session_state["compare_editing"] = (transcript.id, index)
            st.rerun()
        if hidden:
            for caption, vote in vote_choices(seats).items():
                st.button(
                    caption, key=f"compare_vote_{index}_{vote}",
                    on_click=transcripts.set_vote, args=(transcript, index, vote),
                )  # fmt: skip


def _edit(session: ChatSession, index: int, settings: GenerationSettings) -> None:
    with st.form(f"compare_edit_form_{index}"):
        text = st.text_area("Edit question", session.transcript.turns[index].prompt, height=120)
        left, right = st.columns(2)
        resend = left.form_submit_button("Resend", icon=":material/send:")
        cancel = right.form_submit_button("Cancel")
    if cancel:
        del st.session_state["compare_editing"]
        st.rerun()
    if resend:
        with errors_shown():
            if compare_columns.make_ready(session.transcript.columns):
                session.resend(index, text, settings)
                del st.session_state["compare_editing"]
                st.rerun()


def _submit(prompt: str, sides: list[Column], settings: GenerationSettings, system: str) -> None:
    """Load, look whether the conversation fits, send; if something must be cut, ask first."""
    with errors_shown():
        if not sides or not compare_columns.make_ready(sides):
            return
        session = compare_state.open_session(sides, system)
        plans = session.preview(prompt, settings)
        if any(plan.cut for plan in plans.values()):
            st.session_state["compare_pending"] = (session.transcript.id, prompt)
        else:
            session.send(prompt, settings)
        st.rerun()


def _confirm_cut(session: ChatSession, settings: GenerationSettings) -> None:
    pending = st.session_state.get("compare_pending")
    if pending is None or pending[0] != session.transcript.id:
        return
    with errors_shown():
        plans = session.preview(pending[1], settings)
        labels = {s.id: s.label for s in session.transcript.columns}
        lines = [
            f"- {safe_markdown(labels[side])}: the oldest {plan.cut} messages would be left out"
            for side, plan in plans.items()
            if plan.cut
        ]
        st.warning(
            "The conversation is longer than what the model reads.\n\n" + "\n".join(lines),
            icon=":material/content_cut:",
        )
        with st.container(horizontal=True):
            send = st.button("Send without them", key="compare_cut_send", type="primary")
            keep = st.button("Do not send", key="compare_cut_keep")
        if send:
            session.send(pending[1], settings)
        if send or keep:
            del st.session_state["compare_pending"]
            st.rerun()


def _stream(session: ChatSession, live: LiveTurn, blind: bool) -> None:
    """Redraw all columns from what has arrived until every reply is over and saved."""
    draw_prompt(live.turn.prompt)
    # Above the replies: below them it would run away from the pointer as they grow.
    st.button(
        "Stop", icon=":material/stop_circle:", key="compare_stop", on_click=session.stop,
        type="primary",
    )  # fmt: skip
    sides = session.transcript.columns
    by_id = {s.id: s for s in sides}
    seats = [s.id for s in sides]
    if blind:
        seats = votes.seats(session.transcript.id, len(session.transcript.turns), seats)
    boxes = {}
    for place, (column, side_id) in enumerate(zip(st.columns(len(seats)), seats, strict=True), 1):
        with column, st.container(border=True, key=f"live_{side_id}"):
            label = f"Reply {place}" if blind else by_id[side_id].label
            st.caption(f"**{safe_markdown(label)}**")
            boxes[side_id] = (st.empty(), st.empty())
    drawn: dict[str, tuple[int, str]] = {}
    seen = -1
    while session.live is live:
        seen = live.wait(seen, 0.5)
        longest = 0
        for side_id, (text, line) in boxes.items():
            reply = live.turn.replies[side_id]
            longest = max(longest, len(reply.text))
            now = (len(reply.text), reply.finish_reason)
            if drawn.get(side_id) != now:
                drawn[side_id] = now
                cursor = "" if reply.finish_reason else " ▌"
                text.markdown(safe_markdown(reply.text) + cursor)
                line.caption("" if blind else stats(reply))
        time.sleep(_LONG_FRAME_S if longest > _LONG else _FRAME_S)
    st.rerun()
