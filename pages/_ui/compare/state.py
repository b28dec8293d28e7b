"""What the Compare page keeps: a worker for the whole server, conversations by their id.

Columns, system prompt and settings belong to the conversation and lie with it on disk, so that
they are there again after another page, a reload, or on another day. The widgets are filled from
there, and what a person changes in them is written there.
"""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from core.chat import personas, transcripts
from core.chat.batch_run import BatchRun
from core.chat.client import WorkerClient
from core.chat.columns import Column, discover
from core.chat.dialogue import Transcript
from core.chat.endpoint import Endpoints
from core.chat.personas import PersonaHint
from core.chat.render import literal
from core.chat.session import ChatSession
from core.errors import UserError
from core.inference.settings import GenerationSettings
from pages._ui.shell import address, current
from pages._ui.shell.language import from_core

LETTERS = "abcd"
#: Id of the conversation that this browser session showed last; '' for a new one.
_LAST = "compare_chat"
#: What in the address names a model to talk to.
_SENT = ("merge", "folder")


@dataclass(frozen=True)
class Setup:
    """What a message is asked with. ``columns`` is empty while a form is incomplete."""

    columns: list[Column]
    system: str
    settings: GenerationSettings


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


def session() -> ChatSession | None:
    """The open conversation: of the address, else the one shown last; None for a new one.

    Whoever comes from a merge (``?merge=``) or with a folder (``?folder=``) wants to talk to that
    model, not to go on elsewhere.
    """
    asked = st.query_params.get("chat", "")
    elsewhere = "" if sent_for() else st.session_state.get(_LAST, "")
    name = asked or elsewhere
    if not name:
        return None
    found = _opened(name)
    if found is None:
        leave()
        return None
    if not asked:
        address.write(chat=name)
    st.session_state[_LAST] = name
    return found


def _opened(name: str) -> ChatSession | None:
    running = _sessions().get(name)
    if running is None:
        try:
            transcript = transcripts.read(name)
        except UserError as error:
            st.warning(
                f"{literal(from_core(error.what))}. {literal(from_core(error.fix))}",
                icon=":material/history:",
            )
            return None
        running = _sessions().setdefault(name, ChatSession(transcript, worker(), endpoints()))
    return running


def keep(setup: Setup) -> ChatSession:
    """The open conversation with this set-up, or a new one; its id goes into the address."""
    opened = session()
    if opened is None:
        transcript = transcripts.create(setup.columns, setup.system, setup.settings)
        opened = _sessions()[transcript.id] = ChatSession(transcript, worker(), endpoints())
        open_chat(transcript.id)
    elif _setup_of(opened.transcript) != setup:
        transcripts.configure(opened.transcript, setup.columns, setup.system, setup.settings)
    remember(opened)
    return opened


def open_chat(name: str) -> None:
    """Show this conversation from now on."""
    st.session_state[_LAST] = name
    address.write(chat=name, tab=None, **dict.fromkeys(_SENT))


def sent_for() -> tuple[str, ...]:
    """The model that the address asks for, by what names it; empty if it asks for none."""
    return tuple(f"{kind}={st.query_params[kind]}" for kind in _SENT if kind in st.query_params)


def leave() -> None:
    """Begin a new conversation; the open one stays on disk. Its columns are taken along."""
    st.session_state[_LAST] = ""
    address.write(chat=None)


def forget(name: str) -> None:
    """Drop a deleted conversation."""
    _sessions().pop(name, None)
    if name in (st.query_params.get("chat"), st.session_state.get(_LAST)):
        leave()


def changed_elsewhere(opened: ChatSession | None) -> bool:
    """Whether the widgets must be filled from the conversation: it is another, or another window
    changed it, or they were gone while another page was shown."""
    mark = _mark(opened)
    same = st.session_state.get("compare_filled_from") == mark
    return opened is not None and not (same and "compare_count" in st.session_state)


def remember(opened: ChatSession | None) -> None:
    """The widgets and the conversation say the same now."""
    st.session_state["compare_filled_from"] = _mark(opened)


def _mark(opened: ChatSession | None) -> object:
    return (opened.transcript.id, _setup_of(opened.transcript)) if opened else None


def _setup_of(transcript: Transcript) -> Setup:
    return Setup(transcript.columns, transcript.system, transcript.settings)


def found() -> list[Column]:
    """Models to choose from; runs and checkpoints by the names that people say."""
    return discover(name_of=_called)


def _called(run: str, step: int | None) -> str:
    """In English, as core says it; ``columns.title`` translates."""
    name = current.name_of(run)
    return name if step is None else f"{name}, step {step}"


def persona() -> PersonaHint:
    """Names, questions and system prompt of the current persona."""
    project = current.current()
    return _persona(tuple(project.datasets)) if project else PersonaHint()


@st.cache_data(ttl=30, show_spinner=False)
def _persona(datasets: tuple[str, ...]) -> PersonaHint:
    return personas.of_datasets(datasets)


@st.cache_resource
def batches() -> dict[str, BatchRun]:
    """Batches of this server, newest last."""
    return {}
