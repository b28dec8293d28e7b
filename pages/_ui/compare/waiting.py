"""A message that cannot be sent yet: kept with the conversation, with the reason and ways on."""

from __future__ import annotations

import streamlit as st

from core.chat import transcripts
from core.chat.columns import Column
from core.chat.dialogue import MessageDraft
from core.chat.protocol import Preview
from core.chat.render import literal, safe_markdown
from core.chat.session import ChatSession
from core.errors import UserError
from core.jobs import api
from core.jobs.locks import Holder, device_holder
from core.paths import RunPaths
from pages._ui.compare import columns as compare_columns
from pages._ui.compare import state
from pages._ui.compare.state import Setup
from pages._ui.compare.turns import draw_prompt
from pages._ui.shell import current, words
from pages._ui.shell.common import show_error
from pages._ui.shell.language import t, time_left, tn

#: Seconds between looks whether the device is free.
_EVERY = 2.0
#: What kept a message from being sent, by conversation: an error, or nothing known any more.
_FAILED = "compare_failed"
#: Conversations whose message goes out by itself as soon as it can.
_QUEUED = "compare_queued"


def busy(columns: list[Column]) -> Holder | None:
    """Who has the device, if that keeps these columns from answering."""
    if not any(c.local for c in columns) or state.worker().ready(columns):
        return None
    holder = device_holder()
    return holder if holder is not None and holder.what != "chat" else None


def said(holder: Holder) -> str:
    """ "Mei Lan, run 3 (4 min left)", safe to draw."""
    run = current.seen().runs.get(holder.run or "")
    if run is None:
        return literal(words.holding(holder.what))
    name = literal(current.name_of(run.id))
    left = time_left(api.status(RunPaths(run.root)).eta_seconds)
    return f"{name} ({left})" if left else name


def submit(text: str, at: int | None, setup: Setup) -> None:
    """Keep the message first, then try to send it: whatever happens, it is not lost."""
    session = state.keep(setup)
    transcripts.set_draft(session.transcript, MessageDraft(text, at))
    _mark(session, None, queued=True)
    send(session, setup)


def send(session: ChatSession, setup: Setup, *, cut: bool = False) -> None:
    """Send what waits, if nothing keeps it; an error is kept for ``draw``.

    Args:
        cut: send even if the oldest messages must be left out.
    """
    draft = session.transcript.draft
    if draft is None or session.live is not None or busy(setup.columns) is not None:
        return
    _mark(session, None, queued=False)
    try:
        compare_columns.make_ready(setup.columns)
        if cut or not any(p.cut for p in _previews(session, draft, setup).values()):
            if draft.at is None:
                session.send(draft.text, setup.settings)
            else:
                session.resend(draft.at, draft.text, setup.settings)
    except UserError as error:
        _mark(session, error, queued=False)


def _mark(session: ChatSession, error: UserError | None, *, queued: bool) -> None:
    name = session.transcript.id
    st.session_state.setdefault(_FAILED, {})[name] = error
    st.session_state.setdefault(_QUEUED, {})[name] = queued


def _previews(session: ChatSession, draft: MessageDraft, setup: Setup) -> dict[str, Preview]:
    ready = state.worker().ready(setup.columns)
    return session.preview(draft.text, setup.settings, draft.at) if ready else {}


def draw(session: ChatSession, setup: Setup) -> None:
    """The message, why it waits, and what can be done."""
    draft = session.transcript.draft
    if draft is None:
        return
    name = session.transcript.id
    holder, failed = busy(setup.columns), st.session_state.get(_FAILED, {}).get(name)
    queued = st.session_state.get(_QUEUED, {}).get(name, False)
    if queued and holder is None and session.live is None:
        send(session, setup)
        st.rerun()
    draw_prompt(draft.text)
    with st.container(border=True, key="compare_waiting"):
        if session.live is not None:
            st.markdown(f":material/schedule: {t('Sent when the reply above has ended.')}")
        elif holder is not None:
            _device_busy(session, setup)
        elif failed is not None:
            show_error(failed)
            st.markdown(t("Your message is kept."))
        elif not _would_be_cut(session, draft, setup):
            st.markdown(t("This message was not sent yet."))
        _buttons(session, setup, can_send=holder is None and session.live is None)


def _device_busy(session: ChatSession, setup: Setup) -> None:
    """Says who has the device, and looks whether it is free; only this part is redrawn."""
    _mark(session, None, queued=True)

    @st.fragment(run_every=_EVERY)
    def look() -> None:
        holder = busy(setup.columns)
        if holder is None:
            st.rerun()
        st.markdown(
            ":material/schedule: "
            + t(
                "{who} is using the device. Your message is kept and is sent by itself as soon "
                "as the device is free.",
                who=said(holder),
            )
        )

    look()


def _would_be_cut(session: ChatSession, draft: MessageDraft, setup: Setup) -> bool:
    """Whether the message waits for a yes to leaving out the oldest ones; says so."""
    names = {c.id: c for c in setup.columns}
    try:
        cut = {c: p.cut for c, p in _previews(session, draft, setup).items() if p.cut}
    except UserError as error:
        show_error(error)
        return True
    if not cut:
        return False
    lines = [
        f"- {safe_markdown(compare_columns.title(names[column]))}: "
        + tn(
            "the oldest {n} message would be left out",
            "the oldest {n} messages would be left out",
            n,
        )
        for column, n in cut.items()
    ]
    st.warning(
        t("The conversation is longer than what the model reads.") + "\n\n" + "\n".join(lines),
        icon=":material/content_cut:",
    )
    if st.button(t("Send without them"), key="compare_cut_send", type="primary"):
        send(session, setup, cut=True)
        st.rerun()
    return True


def _buttons(session: ChatSession, setup: Setup, *, can_send: bool) -> None:
    with st.container(horizontal=True):
        if can_send and st.button(t("Send now"), icon=":material/send:", key="compare_send"):
            send(session, setup)
            st.rerun()
        st.button(
            t("Back to the input"), icon=":material/edit:", key="compare_unsend",
            on_click=_take_back, args=(session,),
        )  # fmt: skip
        st.button(
            t("Discard"), icon=":material/delete:", key="compare_discard", type="tertiary",
            on_click=transcripts.set_draft, args=(session.transcript, None),
        )  # fmt: skip


def _take_back(session: ChatSession) -> None:
    draft = session.transcript.draft
    if draft is not None:
        st.session_state["compare_prompt"] = draft.text
        transcripts.set_draft(session.transcript, None)
