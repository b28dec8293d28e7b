"""Choosing what stands in each column, loading it, and seeing what it costs."""

from __future__ import annotations

import re

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core import fsio
from core.chat import endpoint
from core.chat.columns import MAX_COLUMNS, Column, of_folder
from core.chat.render import code, literal
from core.chat.session import ChatSession
from core.errors import UserError, UserErrors
from core.jobs.state import State
from pages._ui.compare import filling, state
from pages._ui.compare.filling import FOLDER, SERVER
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import N_, listed, t, tn

#: A checkpoint's label (``core.chat.columns``).
_STEP = re.compile(r"(.*), step (\d+)", re.DOTALL)
_TITLES = {
    "base": N_("Base: {name}"),
    "prompted": N_("{name} with a persona prompt"),
    "merged": N_("Merged: {name}"),
    "adapter": N_("Base + adapter: {name}"),
    "endpoint": N_("Server: {name}"),
}


def title(column: Column) -> str:
    """What a person calls a column, as plain text that holds others' words."""
    name = column.label
    if made := _STEP.fullmatch(name):
        name = t("{name}, step {step}", name=made[1], step=made[2])
    return t(_TITLES[column.kind], name=name)


def draw(session: ChatSession | None, fresh: bool) -> list[Column]:
    """The pickers; returns the chosen columns (none while a form is incomplete).

    Args:
        fresh: fill them from the conversation (``state.changed_elsewhere``).
    """
    models = {filling.model_id(m): m for m in filling.own_first(state.found())}
    filling.fill(session, fresh, models)
    talked = session is not None and bool(session.transcript.turns)
    with st.expander(t("Models"), icon=":material/view_column:", expanded=not talked):
        count = st.segmented_control(
            t("Number of columns"),
            list(range(1, MAX_COLUMNS + 1)),
            key="compare_count",
            required=True,
        )
        boxes = st.container(key="columns_pickers").columns(count or 1)
        words = _words(models)
        picked = [_pick(box, state.LETTERS[i], models, words) for i, box in enumerate(boxes)]
        columns = [column for column in picked if column is not None]
        _loaded(columns)
    if len(columns) == len(picked):
        _say_what_is_missing(columns, models)
        return columns
    return []


def _words(models: dict[str, Column]) -> dict[str, str]:
    """What each choice is called; of a run's checkpoints the one to take is marked."""
    words = {key: title(model) for key, model in models.items()}
    for key, model in models.items():  # the browser answers with the words: none may come twice
        if sum(title(model) == title(other) for other in models.values()) > 1:
            words[key] = f"{words[key]} ({filling.run_of(model) or model.adapter or model.model})"
    for key in filling.recommended([*models.values()]):
        words[key] = t("{name} · recommended", name=words[key])
    words[FOLDER] = t("A model folder ...")
    words[SERVER] = t("OpenAI-compatible server ...")
    return words


def _pick(
    box: DeltaGenerator, letter: str, models: dict[str, Column], words: dict[str, str]
) -> Column | None:
    key = f"compare_model_{letter}"
    if st.session_state.get(key) not in words:
        st.session_state[key] = _another(letter, models)
    with box:
        chosen = st.selectbox(
            t("Column {letter}", letter=letter.upper()),
            list(words),
            key=key,
            format_func=words.__getitem__,
        )
        if chosen == SERVER:
            return _server(letter)
        if chosen == FOLDER:
            return _folder(letter)
        system = ""
        if models[chosen].kind == "prompted":
            st.session_state.setdefault(f"compare_system_{letter}", state.persona().system)
            system = st.text_area(
                t("Persona as a system prompt"),
                key=f"compare_system_{letter}",
                height=120,
                help=t("What prompting alone gives, without any training: the free baseline."),
            )
    return models[chosen].placed(letter, system)


def _another(letter: str, models: dict[str, Column]) -> str:
    """For a column that was added: a model that stands in none yet."""
    taken = [st.session_state.get(f"compare_model_{other}") for other in state.LETTERS]
    made = [key for key, m in models.items() if m.kind in ("merged", "adapter")]
    free = [key for key in (*made, *models) if key not in taken]
    return next(iter(free), next(iter(models)))


def _folder(letter: str) -> Column | None:
    typed = st.text_input(
        t("Folder of a model or adapter"),
        key=f"compare_folder_{letter}",
        placeholder="/models/mei-lan",
    )
    if not typed.strip():
        st.caption(t("Type the path of a merged model, or of an adapter."))
        return None
    if typed == st.query_params.get("folder"):
        st.caption(
            t(
                "Named in the address of this page. It is loaded when you press **Load now** or "
                "send a message, not before."
            )
        )
    with errors_shown():
        return of_folder(typed.strip()).placed(letter)
    return None


def _server(letter: str) -> Column | None:
    url = st.text_input(
        t("Server address"), key=f"compare_url_{letter}", placeholder="http://127.0.0.1:8000/v1"
    )
    model = st.text_input(t("Model name on the server"), key=f"compare_served_{letter}")
    key_env = st.text_input(
        t("Variable with the key"),
        key=f"compare_key_{letter}",
        placeholder=t("none"),
        help=t("Name of an environment variable of this app. The key itself is never stored."),
    )
    if not url:
        st.caption(t("Give the address of a running server."))
        return None
    with errors_shown():
        column = Column(letter, "endpoint", model or url, model, base_url=url, key_env=key_env)
        if st.button(t("Check"), key=f"compare_check_{letter}", icon=":material/lan:"):
            names = [code(name) for name in endpoint.check(column)[:20]]
            st.caption(t("It serves: {names}", names=listed(names)))
        if model:
            return column
        st.caption(t("Press Check to see which models it serves, then name one."))
    return None


def _say_what_is_missing(columns: list[Column], models: dict[str, Column]) -> None:
    """Two equal columns, or nothing tuned to look at: said, with the way there."""
    twins = [
        (a.id.upper(), b.id.upper())
        for i, a in enumerate(columns)
        for b in columns[i + 1 :]
        if a.same_answers(b)
    ]
    if twins:
        first, second = twins[0]
        st.warning(
            t(
                "Columns {a} and {b} are the same model with the same prompt, so they will answer "
                "alike. Choose another model for one of them.",
                a=first,
                b=second,
            ),
            icon=":material/content_copy:",
        )
    if any(m.kind in ("merged", "adapter") for m in (*models.values(), *columns)):
        return
    with st.container(border=True, key="compare_missing"):
        project = current.current()
        st.markdown(f"**{t('There is no tuned model yet.')}**")
        if project is None or not project.datasets:
            st.markdown(
                t("You can talk to the base already. To compare it, build a persona's dataset.")
            )
            current.link_to_next("dataset")
        elif not project.of("train"):
            name = literal(project.title)
            st.markdown(t("The dataset of {name} is ready: train on it, then merge.", name=name))
            current.link_to_next("train", project.datasets[0])
        else:
            _to_merge(project.of("train")[0].id, project.of("train")[0].state)


def _to_merge(run: str, standing: State) -> None:
    name = literal(current.name_of(run))
    if standing is State.SUCCEEDED:
        st.markdown(t("{name} is trained: merge it to talk to it here.", name=name))
        current.link_to_next("merge", run)
    else:
        st.markdown(t("{name} has no checkpoint to talk to yet.", name=name))


def _loaded(columns: list[Column]) -> None:
    worker = state.worker()
    with st.container(horizontal=True, vertical_alignment="center"):
        if worker.alive and worker.memory:
            st.button(
                t("Unload"),
                icon=":material/eject:",
                on_click=worker.close,
                key="compare_unload",
                help=t("Ends the chat process, which frees all its memory and the device."),
            )
        load = not worker.ready(columns) and st.button(
            t("Load now"),
            icon=":material/download:",
            key="compare_load",
            help=t("Otherwise the first message loads them."),
        )
        st.caption(_memory_line(columns))
    if load:
        with errors_shown():
            make_ready(columns)
            st.rerun()
    _say_errors()


def _memory_line(columns: list[Column]) -> str:
    worker = state.worker()
    if not (worker.alive and worker.memory):
        return t("Nothing is loaded.")
    models = [v for k, v in worker.memory.items() if k not in ("process", "gpu")]
    copies = tn("{n} copy of weights", "{n} copies of weights", len(models))
    values = {
        "copies": copies,
        "size": fsio.human_bytes(sum(models)),
        "held": fsio.human_bytes(worker.memory.get("process", 0)),
    }
    if worker.ready(columns):
        line = t("Loaded: {copies} ({size}); the chat process holds {held}.", **values)
    else:
        line = t("Other models are loaded: {copies} ({size}); {held} held.", **values)
    if "gpu" in worker.memory:
        held = fsio.human_bytes(worker.memory["gpu"])
        line += " " + t("On the GPU: {held}.", held=held)
    return line


def make_ready(columns: list[Column]) -> None:
    """Load what is missing. A column that fails beside others says so in its reply.

    Raises:
        UserError: no column can answer: the device is taken, or each has its own reason.
    """
    worker = state.worker()
    if worker.ready(columns) or not any(c.local for c in columns):
        return
    with st.spinner(t("Loading models"), show_time=True):
        for column in columns:
            column.prepare()
        errors = worker.load(columns)
    if len(errors) == len(columns):
        raise UserErrors([UserError.from_dict(error) for error in errors.values()])


def _say_errors() -> None:
    for column, error in sorted(state.worker().errors.items()):
        where = t("column {letter}", letter=column.upper())
        show_error(UserError.from_dict({**error, "where": where}))
