"""Choosing what stands in each column, loading it, and seeing what it costs."""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core import fsio, paths
from core.chat import endpoint
from core.chat.columns import MAX_COLUMNS, Column, of_folder
from core.chat.render import code, literal
from core.chat.session import ChatSession
from core.errors import UserError, UserErrors
from core.jobs.state import State
from pages._ui.compare import state
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import N_, listed, t, tn

_SERVER, _FOLDER = "server", "folder"
_TITLES = {
    "base": N_("Base: {name}"),
    "prompted": N_("{name} with a persona prompt"),
    "merged": N_("Merged: {name}"),
    "adapter": N_("Base + adapter: {name}"),
    "endpoint": N_("Server: {name}"),
}
#: A checkpoint's label (``core.chat.columns``).
_STEP = re.compile(r"(.*), step (\d+)", re.DOTALL)


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
    models = {_id(m): m for m in _own_first(state.found())}
    _fill(session.transcript.columns if session and fresh else None, models)
    talked = session is not None and bool(session.transcript.turns)
    with st.expander(t("Models"), icon=":material/view_column:", expanded=not talked):
        count = st.segmented_control(
            t("Number of columns"),
            list(range(1, MAX_COLUMNS + 1)),
            key="compare_count",
            required=True,
        )
        boxes = st.columns(count or 1)
        picked = [_pick(box, state.LETTERS[i], models) for i, box in enumerate(boxes)]
        columns = [column for column in picked if column is not None]
        _loaded(columns)
    if len(columns) == len(picked):
        _say_what_is_missing(columns, models)
        return columns
    return []


def _id(column: Column) -> str:
    """Stable from one redraw to the next, whatever the model is called."""
    return f"{column.kind}|{column.model}|{column.adapter or ''}"


def _run_of(column: Column) -> str:
    """Id of the run that made a model; '' if none here did."""
    made = Path(column.adapter or column.model)
    try:
        return made.relative_to(paths.runs_dir()).parts[0]
    except (ValueError, IndexError):
        return ""


def _own_first(models: list[Column]) -> list[Column]:
    """The current persona's models before those of others, the bases before both."""
    project = current.current()
    ids = {run.id for run in project.runs} if project else set()
    bases = [m for m in models if not _run_of(m)]
    made = [m for m in models if _run_of(m)]
    return [*bases, *sorted(made, key=lambda m: _run_of(m) not in ids)]


def _fill(kept: list[Column] | None, models: dict[str, Column]) -> None:
    """Put the conversation's columns, or at first the usual ones, into the pickers."""
    came_from = st.query_params.get("merge", "")
    sent_here = came_from and came_from != st.session_state.get("compare_came_from")
    if kept is None and "compare_count" in st.session_state and not sent_here:
        return
    st.session_state["compare_came_from"] = came_from
    columns = _usual(models) if kept is None else kept
    st.session_state["compare_count"] = len(columns)
    for column in columns:
        key, place = _id(column), column.id
        if column.kind == "endpoint":
            key = _SERVER
            st.session_state[f"compare_url_{place}"] = column.base_url
            st.session_state[f"compare_served_{place}"] = column.model
            st.session_state[f"compare_key_{place}"] = column.key_env
        elif key not in models:
            key = _FOLDER
            st.session_state[f"compare_folder_{place}"] = column.adapter or column.model
        st.session_state[f"compare_model_{place}"] = key
        if column.kind == "prompted":
            st.session_state[f"compare_system_{place}"] = column.system


def _usual(models: dict[str, Column]) -> list[Column]:
    """The base, and beside it the newest merged model of the persona, else what comes nearest."""
    hint = state.persona()
    project = current.current()
    ids = {run.id for run in project.runs} if project else set()
    merges = [m for m in models.values() if m.kind == "merged"]
    wanted = current.chosen("merge", [_run_of(m) for m in merges]) if merges else ""
    tuned = [m for m in merges if _run_of(m) == wanted]
    tuned = tuned or [m for m in models.values() if m.kind == "adapter" and _run_of(m) in ids]
    base = next(m for m in models.values() if m.kind == "base")
    if tuned:
        own = _base_of(tuned[0])
        base = next((m for m in models.values() if m.kind == "base" and m.model == own), base)
        return [base.placed("a"), tuned[0].placed("b")]
    prompted = next(m for m in models.values() if m.kind == "prompted")
    return [base.placed("a"), *([prompted.placed("b", hint.system)] if hint.system else [])]


def _base_of(tuned: Column) -> str:
    """The model that a tuned one was made from, as its run names it."""
    run = current.seen().runs.get(_run_of(tuned))
    asked = run.params.get("base") or run.params.get("model") if run else ""
    return str(asked or "") or (tuned.model if tuned.kind == "adapter" else "")


def _pick(box: DeltaGenerator, letter: str, models: dict[str, Column]) -> Column | None:
    options = [*models, _FOLDER, _SERVER]
    key = f"compare_model_{letter}"
    if st.session_state.get(key) not in options:
        st.session_state[key] = _another(letter, models)
    words = {_FOLDER: t("A model folder ..."), _SERVER: t("OpenAI-compatible server ...")}
    with box:
        chosen = st.selectbox(
            t("Column {letter}", letter=letter.upper()),
            options,
            key=key,
            format_func=lambda o: words.get(o) or title(models[o]),
        )
        if chosen == _SERVER:
            return _server(letter)
        if chosen == _FOLDER:
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
