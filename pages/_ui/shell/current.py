"""Which persona the session is about, and which of its things are chosen: one thread, all pages.

For other pages:

``current()``
    the persona (``core.pipeline.projects.Project``: ``datasets``, ``of("train")``, ``step(...)``),
    None in an empty workspace.
``seen()``
    the whole workspace (``projects.Overview``): ``names``, ``owner_of``, ``running``, ``runs``.
``chosen(kind, known)``
    which of ``known`` (ids or names, newest first) to show: what the address says, else what was
    chosen in this session, else the newest of the current persona, else the first. An address
    that names something else says so on the page. Kinds: ``dataset`` (a name), ``run`` (a
    training), ``merge``, ``score`` (an evaluation), ``build`` (a dataset job),
    ``all`` (a run of the whole pipeline).
``choose(run=..., ...)``
    choose objects; session and address follow, and the persona with them. ``choose(persona=KEY)``
    changes to another persona and forgets the objects of the last one.
``name_of(run_id)``
    "Mei Lan, run 3", as plain text: draw it through ``literal()``; ids belong into tooltips.
``link_to_next(step, object)``
    the button that ends a step: ``train`` with a dataset, ``merge`` with a training, ``compare``
    with a merge. The next page opens with ``?dataset=``, ``?run=`` or ``?merge=``, which
    ``chosen`` reads there.

Objects and persona are in the address, so that a link shows the same to everybody, and in the
session, because going to another page by the menu drops the address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import streamlit as st

from core.chat.render import code
from core.pipeline import projects
from core.pipeline.naming import Said
from core.pipeline.projects import STEPS, Overview, Project, Step
from pages._ui.shell import address
from pages._ui.shell.language import N_, t

Kind = Literal["dataset", "run", "merge", "score", "build", "all"]
Next = Literal["dataset", "train", "merge", "compare"]

_KINDS: tuple[Kind, ...] = get_args(Kind)
_GONE: dict[Kind, str] = {
    "dataset": N_("There is no dataset {name} here."),
    "run": N_("There is no training run {name} here."),
    "merge": N_("There is no merge {name} here."),
    "score": N_("There is no scorecard {name} here."),
    "build": N_("There is no build {name} here."),
    "all": N_("There is no run {name} here."),
}
_NEXT: dict[Next, tuple[str, Kind | None, str, str]] = {
    "dataset": ("pages/1_Dataset.py", None, N_("Build the dataset"), ":material/edit_note:"),
    "train": ("pages/2_Train.py", "dataset", N_("Train it"), ":material/model_training:"),
    "merge": ("pages/3_Merge.py", "run", N_("Merge it"), ":material/merge:"),
    "compare": ("pages/4_Compare.py", "merge", N_("Talk to it"), ":material/forum:"),
}
_NAMES = {
    "generate": N_("{persona}, build {n}"),
    "simulate": N_("{persona}, simulation {n}"),
    "train": N_("{persona}, run {n}"),
    "sweep": N_("{persona}, checkpoint search {n}"),
    "convert": N_("{persona}, adapter {n}"),
    "merge": N_("{persona}, merge {n}"),
    "prove": N_("{persona}, proof {n}"),
    "evaluate": N_("{persona}, scorecard {n}"),
    "export": N_("{persona}, export {n}"),
    "tune": N_("{persona}, run all {n}"),
}
COMPARE = "pages/4_Compare.py"
_STEP_PAGES: dict[Step, str] = {
    "built": "pages/1_Dataset.py",
    "trained": "pages/2_Train.py",
    "merged": "pages/3_Merge.py",
    "verdict": COMPARE,
}
_PERSONA, _CHOSEN = "current_persona", "current_objects"


def seen() -> Overview:
    """The workspace as it is now."""
    return projects.overview()


def current() -> Project | None:
    """The persona of the address, else of this session, else the one at work or touched last."""
    workspace = seen()
    key = st.session_state.get(_PERSONA, "")
    found = _of_address(workspace) or workspace.project(key)
    if found is None and workspace.running:
        found = workspace.owner_of(workspace.running[0].id)
    if found is None and workspace.projects:
        found = workspace.projects[0]
    if found is not None and found.key != key:
        st.session_state[_PERSONA] = found.key
        st.session_state[_CHOSEN] = {}
    return found


def _of_address(workspace: Overview) -> Project | None:
    """An object says more than ``?persona=``, which an old link may have wrong."""
    for kind in _KINDS:
        name = st.query_params.get(kind, "")
        if name and (owner := _owner(kind, name)) is not None:
            return owner
    return workspace.project(st.query_params.get("persona", ""))


def chosen(kind: Kind, known: Sequence[str]) -> str:
    """Which of ``known`` to show; '' if there is none. See the module's docstring."""
    asked = st.query_params.get(kind, "")
    if asked in known:
        _remember(kind, asked)
        return asked
    if asked:
        gone, why = t(_GONE[kind], name=code(asked[:80])), t("Was it deleted?")
        st.warning(f"{gone} {why}", icon=":material/search_off:")
    project = current()
    before = st.session_state.get(_CHOSEN, {}).get(kind, "")
    if before in known:
        return str(before)
    own = {*project.datasets, *(r.id for r in project.runs)} if project else set()
    return next((k for k in known if k in own), known[0] if known else "")


def choose(persona: str = "", view: str = "", **objects: str) -> None:
    """Choose objects by kind, or another persona by its key; session and address follow.

    Args:
        view: the part of the page that shows them (``address.view``).
    """
    changes: dict[str, str | None] = {"view": view} if view else {}
    if persona:
        st.session_state[_PERSONA] = persona
        st.session_state[_CHOSEN] = {}
        for forgotten in _KINDS:
            changes[forgotten] = None
        changes["persona"] = persona
    if objects:
        changes["new"] = None  # what the address of Start says while nothing is chosen
    for kind, name in objects.items():
        assert kind in _KINDS, kind
        _remember(kind, name)
        owner = _owner(kind, name)
        changes |= {kind: name} | ({"persona": owner.key} if owner else {})
    address.write(**changes)


def _owner(kind: str, name: str) -> Project | None:
    return seen().owner_of(**{"dataset" if kind == "dataset" else "run": name})


def _remember(kind: str, name: str) -> None:
    st.session_state.setdefault(_CHOSEN, {})[kind] = name


def name_of(run_id: str) -> str:
    """A run as a person calls it, "Mei Lan, run 3", in plain text that holds the user's words."""
    workspace = seen()
    said = workspace.names.get(run_id)
    return said_in_words(said) if said else workspace.name_of(run_id)


def said_in_words(said: Said) -> str:
    """A run's name in the language of the session."""
    if said.kind not in _NAMES:  # a run of the command line, or of another version
        return str(said)
    name = t(_NAMES[said.kind], persona=said.persona, n=said.number)
    return t("{name} (resumed)", name=name) if said.resumed else name


def link_to_next(step: Next, object: str = "", *, label: str = "", key: str = "") -> None:
    """The button that leads to the next step, with the right object chosen there.

    Args:
        object: the dataset's name for ``train``, the run's id for ``merge`` and ``compare``.
        label: instead of the usual words.
        key: where one page draws the same button twice.
    """
    page, kind, words, icon = _NEXT[step]
    if st.button(label or t(words), type="primary", icon=icon, key=key or f"next_{step}_{object}"):
        go(page, **({kind: object} if kind and object else {}))


def go(page: str, **objects: str) -> None:
    """Open a page with these objects chosen."""
    for kind, name in objects.items():
        _remember(kind, name)
    run, dataset = objects.get("run") or objects.get("merge") or "", objects.get("dataset", "")
    owner = seen().owner_of(run=run, dataset=dataset) or current()
    if owner is not None:
        st.session_state[_PERSONA] = owner.key
        objects = {"persona": owner.key, **objects}
    st.switch_page(page, query_params=objects)


def open_project(project: Project | None) -> None:
    """Make this persona the current one and show it where it stands: the step to take next."""
    if project is None:
        return
    st.session_state[_PERSONA], st.session_state[_CHOSEN] = project.key, {}
    waiting = (step for step in STEPS if project.step(step).standing != "done")
    page = _STEP_PAGES[next(waiting, "verdict")]
    st.switch_page(page, query_params={"persona": project.key})
