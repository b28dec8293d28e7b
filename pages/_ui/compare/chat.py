"""Chat tab: one prompt, every column answers at once."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.chat import transcripts, votes
from core.chat.dialogue import Turn
from core.chat.live import LiveTurn
from core.chat.render import literal
from core.chat.session import ChatSession
from pages._ui.compare import columns as compare_columns
from pages._ui.compare import following, icons, state, waiting
from pages._ui.compare.state import Setup
from pages._ui.compare.turns import (
    VIEWS,
    Actions,
    Boxes,
    ReplyStyle,
    draw_live,
    draw_prompt,
    draw_replies,
    live_boxes,
    switch,
    vote_choices,
)
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import N_, from_core, t, tn

#: About 20 redraws a second: faster cannot be read, and each one sends the whole reply again.
_FRAME_S = 0.05
#: Long replies are redrawn less often, so that drawing does not take over.
_LONG, _LONG_FRAME_S = 6_000, 0.25
#: Turns drawn at once; the earlier ones are a click away.
_PAGE = 20
_FIRST_QUESTIONS = (
    N_("Who are you?"),
    N_("Who made you?"),
    N_("Give me a recipe for pancakes."),
)


def draw(setup: Setup, box: DeltaGenerator) -> None:
    """The whole tab, in ``box``; its input stands outside, at the bottom of the window.

    Only from there does Streamlit let the page follow what streams, as long as the reader is at
    its end.
    """
    session = state.session()
    with box:
        look = _toolbar(session)
        if session is None or (session.transcript.empty and session.live is None):
            _first_questions(setup)
        # Looked up before the turns: a reply that ends meanwhile is then drawn twice for a
        # moment, not left out until the next click.
        live = session.live if session else None
        boxes = _turns(session, live, setup, look) if session else {}
    _input(setup)
    if session is not None and live is not None:  # last: it does not return while a reply streams
        _follow(session, live, boxes, look)


def _toolbar(session: ChatSession | None) -> ReplyStyle:
    """How replies are shown, and the way to a new conversation."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view = st.segmented_control(
            t("Show as"), list(VIEWS), default="formatted", key="compare_view", required=True,
            format_func=lambda v: t(VIEWS[v]), persist_state="session",
        )  # fmt: skip
        blind = st.toggle(
            t("Blind vote"),
            key="compare_blind",
            persist_state="session",
            help=t("Shuffles the columns and hides their names until you have voted."),
        )
        if session is not None and not session.transcript.empty:
            st.button(
                t("New conversation"), icon=":material/add_comment:", key="compare_new",
                on_click=state.leave, shortcut="Alt+N",
            )  # fmt: skip
    return ReplyStyle(view or "formatted", blind, state.persona())


def _first_questions(setup: Setup) -> None:
    if not setup.columns:
        return
    st.caption(t("Ask something, for example:"))
    with st.container(horizontal=True):
        for number, question in enumerate(_FIRST_QUESTIONS):
            if st.button(t(question), key=f"compare_first_{number}"):
                _submit(t(question), setup)


def _turns(session: ChatSession, live: LiveTurn | None, setup: Setup, look: ReplyStyle) -> Boxes:
    """The conversation; returns where the replies that stream are to be drawn."""
    if session.save_error:
        st.warning(literal(from_core(session.save_error)), icon=":material/save:")
    count, boxes = len(session.transcript.turns), Boxes()
    first, key = max(0, count - _PAGE), f"compare_all_{session.transcript.id}"
    if first and not st.session_state.get(key):
        label = tn("Show {n} earlier turn", "Show {n} earlier turns", first)
        if st.button(label, icon=":material/expand_less:", key=f"{key}_button"):
            st.session_state[key] = True
            st.rerun()
    else:
        first = 0
    for index in range(first, count):
        boxes |= _turn(session, index, live, setup, look)
    if live is not None and live.again is None:
        draw_prompt(live.turn.prompt)
        boxes = _live(session, live.turn, session.transcript.next_id(), look)
    _again(session, setup)
    waiting.draw(session, setup)
    return boxes


def _order(session: ChatSession, turn: Turn, turn_id: int, shuffled: bool) -> list[str]:
    """Column ids from left to right."""
    order = [c.id for c in session.transcript.columns if c.id in turn.replies]
    return votes.shuffled(session.transcript.id, turn_id, order) if shuffled else order


def _turn(
    session: ChatSession, index: int, live: LiveTurn | None, setup: Setup, look: ReplyStyle
) -> Boxes:
    transcript = session.transcript
    turn = transcript.turns[index]
    if st.session_state.get("compare_editing") == (transcript.id, index):
        _edit(session, index, setup)
        return {}
    beside = partial(_question, session, index) if live is None else None
    draw_prompt(turn.prompt, index, beside)
    if live is not None and live.again == index:
        now = dataclasses.replace(turn, replies={**turn.replies, **live.turn.replies})
        return _live(session, now, turn.id, look)
    last = index == len(transcript.turns) - 1
    actions = Actions(
        partial(_ask_again, session) if last and live is None else None,
        partial(transcripts.choose_version, transcript, index),
    )
    order = _order(session, turn, turn.id, look.blind or bool(turn.vote))
    draw_replies(turn, index, transcript.columns, order, look, actions)
    if look.blind and not turn.vote and len(order) > 1:
        with st.container(horizontal=True):
            for caption, vote in vote_choices(order).items():
                st.button(
                    caption, key=f"compare_vote_{index}_{vote}",
                    on_click=transcripts.set_vote, args=(transcript, index, vote),
                )  # fmt: skip
    return {}


def _question(session: ChatSession, index: int) -> None:
    """Edit the question, and go through its versions."""
    transcript = session.transcript
    versions = transcript.questions(index)
    place = [v.id for v in versions].index(transcript.turns[index].id)

    def choose(to: int) -> None:
        transcripts.show(transcript, versions[to].id)

    def edit() -> None:
        st.session_state["compare_editing"] = (transcript.id, index)

    switch(place, len(versions), choose, f"compare_question_{index}")
    icons.button(
        t("Edit question"), ":material/edit:", f"compare_edit_{index}", edit,
        more=t("Ask something else here. This version stays, with all that follows."),
    )  # fmt: skip


def _edit(session: ChatSession, index: int, setup: Setup) -> None:
    with st.form(f"compare_edit_form_{index}"):
        text = st.text_area(t("Edit question"), session.transcript.turns[index].prompt, height=120)
        with st.container(horizontal=True):
            resend = st.form_submit_button(t("Resend"), icon=":material/send:", type="primary")
            cancel = st.form_submit_button(t("Cancel"))
    if cancel or resend:
        del st.session_state["compare_editing"]
        if resend and text.strip():
            waiting.submit(text, index, setup)
        st.rerun()


def _ask_again(session: ChatSession, column: str) -> None:
    """A callback, which can draw nothing: done by ``_again`` in the run that follows."""
    st.session_state["compare_again"] = (session.transcript.id, column)


def _again(session: ChatSession, setup: Setup) -> None:
    asked = st.session_state.pop("compare_again", None)
    if asked is None or asked[0] != session.transcript.id:
        return
    with errors_shown():
        if (holder := waiting.busy(setup.columns)) is not None:
            st.info(t("{who} is using the device.", who=waiting.said(holder)))
            return
        compare_columns.make_ready(setup.columns)
        session.regenerate(asked[1], setup.settings)
        st.rerun()


def _live(session: ChatSession, turn: Turn, turn_id: int, look: ReplyStyle) -> Boxes:
    """Where replies stream; above them the way to stop, which they would push away below."""
    st.button(
        t("Stop"), icon=":material/stop_circle:", key="compare_stop", on_click=session.stop,
        type="primary", shortcut="Esc",
    )  # fmt: skip
    order = _order(session, turn, turn_id, look.blind)
    boxes = live_boxes(session.transcript.columns, order, hidden=look.blind)
    following.follow()
    return boxes


def _input(setup: Setup) -> None:
    """Pinned to the bottom of the window, whatever the width."""
    one = len(setup.columns) == 1
    prompt = st.chat_input(
        t("Message the model") if one else t("Message all models"), key="compare_prompt"
    )
    with st.bottom:
        st.caption(t("Enter sends, Shift+Enter begins a line, Esc stops, Alt+N begins anew."))
    if prompt and not setup.columns:
        st.warning(t("Choose the models first: a column above is not complete."))
        st.code(prompt, language=None, wrap_lines=True)  # so that it can be copied
    elif prompt:
        _submit(prompt, setup)


def _submit(prompt: str, setup: Setup) -> None:
    with errors_shown():
        waiting.submit(prompt, None, setup)
        st.rerun()


def _follow(session: ChatSession, live: LiveTurn, boxes: Boxes, look: ReplyStyle) -> None:
    """Redraw what has arrived until every reply is over and saved; nothing else of the page."""
    kept = session.transcript.turns[live.again].replies if live.again is not None else {}
    drawn: dict[str, tuple[int, str]] = {}
    seen = -1
    while session.live is live:
        seen = live.wait(seen, 0.5)
        longest = 0
        for column, box in boxes.items():
            reply = live.turn.replies.get(column) or kept[column]
            longest = max(longest, len(reply.text))
            now = (len(reply.text), reply.finish_reason)
            if drawn.get(column) != now:
                drawn[column] = now
                draw_live(box, reply, look.blind)
        time.sleep(_LONG_FRAME_S if longest > _LONG else _FRAME_S)
    st.rerun()
