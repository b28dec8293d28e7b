"""Files of a dataset, import and export, delete."""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core import fsio
from core.chat.render import code, literal
from core.data import placeholders, store
from core.data.drafts import Draft
from core.data.formats import FORMATS, export_lines
from core.data.importer import ImportReport, UniqueIds, import_file
from core.data.tables import Table
from core.persona import packs
from pages._ui.dataset.state import bubbles, choose_dataset, go
from pages._ui.shell.common import errors_shown, folder_tree
from pages._ui.shell.uploads import release_uploads
from pages._ui.shell.words import KINDS, count


def draw() -> None:
    """The Files part."""
    left, right = st.columns(2, gap="large")
    with left:
        name = choose_dataset()
        if name:
            with errors_shown():
                _files(name)
                _export(name)
                _delete(name)
        _unusable()
    with right:
        _import(name)


def _files(name: str) -> None:
    summary = next(s for s in store.list_datasets() if s.name == name)
    kinds = ", ".join(f"{KINDS.get(k, k)} {v:,}" for k, v in summary.kinds.items())
    parts = [
        count(summary.rows, "row") + (f" ({literal(kinds)})" if kinds else ""),
        f"made {literal(summary.created)}" if summary.created else "",
        f"from {code(summary.parent)}" if summary.parent else "",
        literal(summary.note),
    ]
    st.caption(" · ".join(p for p in parts if p))
    st.write(f"{code(summary.root)}")
    folder_tree(fsio.tree(summary.root))


def _export(name: str) -> None:
    st.subheader("Export")
    key = st.selectbox("Format", list(FORMATS), format_func=lambda k: FORMATS[k].label)
    fmt = FORMATS[key]
    st.caption(
        f"JSON Lines, UTF-8; {literal(fmt.about)}."
        + (f" {literal(fmt.caveat)}" if fmt.caveat else "")
    )
    st.download_button(
        "Download",
        lambda: "".join(export_lines(store.rows(name), key)),
        f"{name}-{key}.jsonl",
        "application/x-ndjson",
        icon=":material/download:",
    )


def _delete(name: str) -> None:
    with st.popover("Delete this dataset", icon=":material/delete:"):
        st.write(
            f"Delete {code(name)} for good? Runs that were trained on it keep their own record."
        )
        if st.button("Delete", key=f"delete-{name}"):
            store.delete(name)
            st.query_params.pop("dataset", None)
            st.rerun()


def _unusable() -> None:
    broken = [s for s in store.list_datasets() if s.problem]
    if broken:
        with st.expander(f"{len(broken)} folders that are no complete dataset"):
            for summary in broken:
                st.write(f"{code(summary.name)}: {literal(summary.problem)}")
                if st.button("Remove", key=f"remove-{summary.name}"):
                    with errors_shown():
                        store.delete(summary.name)
                        st.rerun()


def _import(name: str) -> None:
    st.subheader("Import")
    st.caption(
        "JSON, JSON Lines, CSV or TSV (also packed with gzip), as other tools write them: "
        + ", ".join(f.label for f in FORMATS.values())
        + ", question and answer. At most 50 MB; the command line has no limit."
    )
    upload = st.file_uploader("File", type=["jsonl", "json", "txt", "csv", "tsv", "gz"])
    release_uploads(keep=upload)
    if upload is None:
        st.session_state.pop(_IMPORTED, None)
        return
    with errors_shown():
        persona = _persona()
        report = _read(upload, {}, persona)
        if report.table:
            columns = _columns(report.table, upload.file_id)
            if columns != report.table.used:
                report = _read(upload, columns, persona)
        _report(report)
        if report.rows:
            _take(report, name, upload.name)
            bubbles(report.rows[:4])


_IMPORTED = "imported-files"


def _done() -> None:
    """What was imported is saved: neither the file nor its rows stay in memory."""
    release_uploads()
    st.session_state.pop(_IMPORTED, None)


def _read(upload: UploadedFile, columns: dict[str, str], persona: str) -> ImportReport:
    """The report of an upload, read again only if the file or a choice has changed."""
    key = (upload.file_id, persona, *columns.items())
    kept: dict[Any, ImportReport] = st.session_state.get(_IMPORTED, {})
    if key not in kept:
        fill = placeholders.of_persona(packs.load(persona)) if persona else None
        # The first reading of the same file stays beside: it says how the table looks.
        kept = {k: v for k, v in kept.items() if k == (upload.file_id, persona)}
        kept[key] = import_file(upload, columns=columns, fill=fill)
        st.session_state[_IMPORTED] = kept
    return kept[key]


def _columns(table: Table, file_id: str) -> dict[str, str]:
    """What stands in which column, as found until it is chosen otherwise."""
    chosen = {}
    for place, what in zip(st.columns(3), ("question", "answer", "system"), strict=True):
        options = ["", *dict.fromkeys(table.columns)]
        used = table.used.get(what, "")
        chosen[what] = place.selectbox(
            f"{literal(what.capitalize())} column",
            options,
            index=options.index(used) if used in options else 0,
            key=f"import-{file_id}-{what}",
        )
    return {what: column for what, column in chosen.items() if column}


def _persona() -> str:
    """The pack whose slots fill placeholders, or ""."""
    if not st.checkbox("Fill placeholders such as {{name}} with a persona's slots"):
        return ""
    return st.selectbox("Persona", list(packs.all_packs())) or ""


def _report(report: ImportReport) -> None:
    for line in report.lines():
        st.text(line)
    if report.bad:
        st.warning(f"{count(report.bad, 'row')} left out", icon=":material/rule:")
        st.dataframe(
            [
                {"Line": p.line, "Field": p.field, "Problem": p.what, "Fix": p.fix}
                for p in report.problems
            ],
            hide_index=True,
            width="stretch",
        )


def _take(report: ImportReport, name: str, filename: str) -> None:
    new, add = st.columns(2)
    with new.popover("Save as a new dataset", icon=":material/save:"):
        wanted = st.text_input(
            "Name", store.free_name(fsio.slug(filename.rsplit(".", 1)[0], "import"))
        )
        if st.button("Save", type="primary"):
            with errors_shown():
                store.save(wanted, report.rows, note=f"imported from {filename}")
                _done()
                go("rows", wanted)
    if name and add.button(f"Add to {literal(name)}", icon=":material/playlist_add:"):
        draft = Draft(name)
        draft.write(
            list(map(UniqueIds(draft.ids()), report.rows)),
            label=f"{count(len(report.rows), 'row')} from {literal(filename)}",
        )
        _done()
        go("rows", name)
