"""One way to choose a model: what lies on this machine, or any folder, file or hub id by hand.

Also where code that a model brings is looked at and trusted.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import fsio
from core.chat.render import code, literal
from core.models import catalog, found, trust
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import N_, t

_PLACES = {
    "bundled": N_("bundled"),
    "workspace": N_("workspace"),
    "Hugging Face cache": N_("Hugging Face cache"),
    "ModelScope cache": N_("ModelScope cache"),
}


@st.cache_data(show_spinner=False, ttl=20)
def _models() -> list[found.Found]:
    return found.models()


def pick(label: str, key: str, chosen: str = "bundled") -> str | None:
    """The model to use; None while a hub id is not fetched or code is not trusted.

    Args:
        label: of the box, in the language of the session.
        key: of the widget; its value is kept for the session.
        chosen: what is chosen at first.
    """
    models = {model.model: model for model in _models()}
    st.session_state.setdefault(key, chosen)
    now = str(st.session_state[key] or "bundled")

    def shown(value: str) -> str:
        model = models.get(value)
        return f"{model.name} · {t(_PLACES[model.place])}" if model else value

    about = t(
        "Models found on this machine. Or type a model folder, a GGUF file or the id of a model "
        "on the hub."
    )
    value = st.selectbox(
        label,
        list(models) if now in models else [*models, now],
        key=key,
        accept_new_options=True,
        persist_state="session",
        format_func=shown,
        help=about,
    )
    model = (value or "").strip()
    if not model:
        return None
    if catalog.is_hub_id(model) and not _fetched(model, key):
        return None
    return model if _code_trusted(model, key) else None


def _fetched(model: str, key: str) -> bool:
    """A hub id is only fetched after a press of a button."""
    fetched = st.session_state.setdefault("fetched_hub_ids", set())
    if model not in fetched:
        st.caption(
            t("{model} is no folder here, so it would be fetched from the hub.", model=code(model))
        )
        if not st.button(t("Fetch from the hub"), icon=":material/download:", key=f"{key}-fetch"):
            return False
        with st.spinner(t("Fetching {model}", model=literal(model))), errors_shown():
            catalog.resolve(model)
            fetched.add(model)
    return model in fetched


def _code_trusted(model: str, key: str) -> bool:
    """Show the code that a folder would run, once for each change of it."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return True  # a hub id's code is trusted on the command line
    needed = None
    with errors_shown():
        needed = trust.needed(path)
    if needed is None or trust.trusted(needed):
        return True
    st.warning(
        t(
            "{model} brings Python code of its own, which would run on this machine with all your "
            "rights.",
            model=code(path.name),
        ),
        icon=":material/code:",
    )
    for file in needed.files:
        with st.expander(code(str(file.relative_to(path)))):
            st.code(fsio.read_text(file), language="python")
    st.caption(t("Hash of these files: {digest}", digest=code(needed.digest)))
    looked = st.checkbox(
        t("I have looked at this code and trust it"), key=f"{key}-trust-{needed.digest[:12]}"
    )
    if not looked:
        return False
    if st.button(t("Trust this code"), icon=":material/verified_user:", key=f"{key}-trust"):
        with errors_shown():
            trust.confirm(needed, needed.digest)
            st.rerun()
    return False
