"""Edit rows in a grid, add own ones, undo, save as a new version."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.chat.render import literal
from core.conversation import Conversation, content_id
from core.data import store
from core.data.drafts import DatasetDraft
from core.data.fields import RowError, check_text
from core.data.grid import COLUMNS, from_table, to_table
from core.text.normalize import locale_of
from pages._ui.dataset.state import bubbles, choose_dataset, go
from pages._ui.shell import words
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import from_core, t, tn
from pages._ui.shell.words import KINDS

#: Conversations on a page: with their rounds about 200 lines at most, which a browser draws fast.
PAGE = 50


def draw() -> None:
    """The Rows part."""
    name = choose_dataset()
    if not name:
        return
    with errors_shown():
        draft = DatasetDraft(name)
        _history(draft)
        rows = _select(draft)
        if not rows:
            st.info(
                t("No row matches. Clear the search, or choose all kinds."),
                icon=":material/search_off:",
            )
        elif st.session_state.get("rows-as", "Grid") == "Chat":
            bubbles(rows)
        else:
            _grid(draft, rows)
        _add(draft)


def _history(draft: DatasetDraft) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            t("Undo"),
            icon=":material/undo:",
            disabled=not draft.done,
            help=literal(from_core(draft.done[-1].label)) if draft.done else t("No edit yet"),
            # Without a key its identity follows the help text: for a moment the old and the new
            # button stood side by side, Redo moved, and a click on it missed.
            key=f"undo-{draft.name}",
        ):
            draft.undo()
            st.rerun()
        if st.button(t("Redo"), icon=":material/redo:", disabled=not draft.undone):
            draft.redo()
            st.rerun()
        with st.popover(t("Save as version"), icon=":material/save:", disabled=not draft.changed):
            _save(draft)
        edits = len(draft.done)
        kept = tn("{n} unsaved edit, kept on disk", "{n} unsaved edits, kept on disk", edits)
        held = tn("{n} conversation", "{n} conversations", len(draft))
        st.caption(f"{held} · {kept if edits else t('no unsaved edits')}")


def _save(draft: DatasetDraft) -> None:
    name = st.text_input(
        t("Name of the new version"),
        store.free_name(draft.name),
        key=f"version-{draft.name}-{len(draft.done)}",
    )
    note = st.text_input(t("Note"), "", key=f"note-{draft.name}")
    if st.button(t("Save"), type="primary", key=f"save-{draft.name}"):
        with errors_shown():
            draft.save(name, note)
            st.toast(t("Saved as {name}", name=literal(name)))
            go("rows", name)
    if st.button(t("Forget all edits"), key=f"forget-{draft.name}"):
        draft.discard()
        st.rerun()


def _select(draft: DatasetDraft) -> list[Conversation]:
    line = st.container(horizontal=True, vertical_alignment="bottom")  # breaks where it is narrow
    search, kind, look, page = (line.container(width=width) for width in (260, 180, 150, 150))
    text = search.text_input(
        t("Search"), key=f"search-{draft.name}", placeholder=t("words in any turn")
    )
    chosen = kind.selectbox(
        t("Kind"),
        ["", *KINDS],
        format_func=lambda k: words.kind(k) if k else t("all"),
        key=f"kind-{draft.name}",
    )
    look.segmented_control(
        t("Show as"), ["Grid", "Chat"], default="Grid", key="rows-as",
        format_func=lambda how: t("Grid") if how == "Grid" else t("Chat"),
    )  # fmt: skip
    if text:
        found = [r for r in draft.find(text) if not chosen or r.kind == chosen]
        page.caption(
            t("the first {n}", n=200) if len(found) == 200 else t("{n} found", n=len(found))
        )
        return found[:PAGE]
    count = draft.count(chosen)
    pages = max(1, -(-count // PAGE))
    at = page.number_input(
        t("Page of {n:,}", n=pages), 1, pages, key=f"page-{draft.name}-{chosen}-{pages}"
    )
    return draft.page((int(at) - 1) * PAGE, PAGE, chosen)


def _grid(draft: DatasetDraft, rows: list[Conversation]) -> None:
    table = to_table(rows)
    version = f"{draft.name}-{len(draft.done)}-{len(draft.undone)}-{rows[0].id}-{len(rows)}"
    columns: dict[str, Any] = {
        "id": st.column_config.TextColumn(t("Row"), disabled=True, width="small"),
        "round": st.column_config.NumberColumn(t("Round"), disabled=True, width=60),
        "kind": st.column_config.SelectboxColumn(
            t("Kind"),
            options=list(KINDS),
            format_func=lambda k: words.kind(str(k)),
            width="small",
        ),
        "system": st.column_config.TextColumn(t("System"), width="small"),
        "user": st.column_config.TextColumn(t("User"), width=360),
        "reply": st.column_config.TextColumn(t("Reply"), width=420),
        "learn": st.column_config.CheckboxColumn(
            t("Learn"), width="small", help=t("Whether the reply is trained on")
        ),
    }
    edited = st.data_editor(
        table,
        num_rows="dynamic",
        hide_index=True,
        width="stretch",
        height=520,
        key=f"grid-{version}",
        column_order=COLUMNS,
        column_config=columns,
    )
    changes = from_table(edited, rows)
    if changes.problems:
        st.warning(
            t("Not kept yet:")
            + "\n"
            + "\n".join(f"- {literal(from_core(p))}" for p in changes.problems),
            icon=":material/edit_off:",
        )
    elif changes:
        draft.write(changes.rows, changes.removed, changes.label)
        st.rerun()
    st.caption(
        t("Every edit is kept on disk at once. Tick lines at the left and press the bin to remove "
          "them; an empty line at the end makes a new conversation.")
    )  # fmt: skip


def _add(draft: DatasetDraft) -> None:
    with st.expander(t("Add a conversation of your own"), icon=":material/add_comment:"):
        with st.form(f"add-{draft.name}", clear_on_submit=True, border=False):
            user = st.text_area(t("User"), height=80)
            reply = st.text_area(t("Reply"), height=80)
            asked = st.form_submit_button(t("Add"), type="primary")
        if not asked:
            return
        try:
            texts = check_text(user, t("User")), check_text(reply, t("Reply"))
        except RowError as error:
            what, fix = from_core(error.what), from_core(error.fix)
            st.error(
                f"{literal(error.field)}: {literal(what)}; {literal(fix)}",
                icon=":material/error:",
            )
            return
        row = Conversation(
            "",
            [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}],
            locale=locale_of(" ".join(texts)),
        )
        named = Conversation(f"own-{content_id(row.messages)}", row.messages, locale=row.locale)
        draft.write([named], label=t("a conversation of your own"))
        st.rerun()
