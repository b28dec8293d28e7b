"""What the Compare page keeps: a worker for the whole server, sessions by conversation id."""

from __future__ import annotations

import streamlit as st

from core.chat import transcripts
from core.chat.batch_run import BatchRun
from core.chat.client import WorkerClient
from core.chat.columns import Column, discover
from core.chat.endpoint import Endpoints
from core.chat.personas import PersonaHint, newest
from core.chat.render import literal
from core.chat.session import ChatSession
from core.errors import UserError

LETTERS = "abcd"


@st.cache_resource
def worker() -> WorkerClient:
    """One chat worker a server, shared by all tabs."""
    return WorkerClient()


@st.cache_resource
def endpoints() -> Endpoints:
    """Streams of OpenAI-compatible servers."""
    return Endpoints()


@st.cache_resource
def _sessions() -> dict[str, ChatSession]:
    return {}


def chat_id() -> str:
    """The conversation that the address names ('' for a new one)."""
    return st.query_params.get("chat", "")


def session() -> ChatSession | None:
    """The open conversation: a running one is found again, another is read from disk."""
    name = chat_id()
    if not name:
        return None
    running = _sessions().get(name)
    if running is None:
        try:
            transcript = transcripts.read(name)
        except UserError as error:
            st.warning(f"{literal(error.what)}. {literal(error.fix)}", icon=":material/history:")
            st.query_params.pop("chat", None)
            return None
        running = _sessions()[name] = ChatSession(transcript, worker(), endpoints())
    return running


def open_session(columns: list[Column], system: str) -> ChatSession:
    """The open conversation with these columns, or a new one; its id goes into the address."""
    current = session()
    if current is None:
        transcript = transcripts.create(columns, system)
        current = _sessions()[transcript.id] = ChatSession(transcript, worker(), endpoints())
        st.query_params["chat"] = transcript.id
    elif current.transcript.columns != columns or current.transcript.system != system:
        transcripts.set_columns(current.transcript, columns, system)
    return current


def close_session() -> None:
    """Forget the address; the conversation stays on disk."""
    st.query_params.pop("chat", None)


def found() -> list[Column]:
    """Models to choose from."""
    return discover()


@st.cache_data(ttl=30, show_spinner=False)
def persona() -> PersonaHint:
    """Names and system prompt of the newest dataset's persona."""
    return newest()


@st.cache_resource
def batches() -> dict[str, BatchRun]:
    """Batches of this server, newest last."""
    return {}


def forget(chat_id: str) -> None:
    """Drop a deleted conversation."""
    _sessions().pop(chat_id, None)
    if st.query_params.get("chat") == chat_id:
        st.query_params.pop("chat", None)
