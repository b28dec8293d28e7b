"""Files of a dataset, import and export, delete."""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from core import fsio, trees
from core.chat.render import code, literal
from core.data import placeholders, store
from core.data.drafts import DatasetDraft
from core.data.formats import FORMATS, export_lines
from core.data.importer import ImportReport, UniqueIds, import_file
from core.data.tables import Sheet
from core.persona import packs
from pages._ui.dataset.state import bubbles, choose_dataset, go
from pages._ui.shell import address, words
from pages._ui.shell.common import errors_shown, folder_tree, form_and_rest
from pages._ui.shell.language import N_, from_core, listed, moment_of, number, t, tn
from pages._ui.shell.uploads import release_uploads


def draw() -> None:
    """The Files part."""
    left, right = form_and_rest(440)
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
    kinds = listed([f"{words.kind(k)} {number(v)}" for k, v in summary.kinds.items()])
    parts = [
        tn("{n} row", "{n} rows", summary.rows) + (f" ({literal(kinds)})" if kinds else ""),
        t("made {when}", when=literal(moment_of(summary.created))) if summary.created else "",
        t("from {name}", name=code(summary.parent)) if summary.parent else "",
        literal(from_core(summary.note)),
    ]
    st.caption(" · ".join(p for p in parts if p))
    st.write(f"{code(summary.root)}")
    folder_tree(trees.tree(summary.root))


def _export(name: str) -> None:
    st.subheader(t("Export"))
    key = st.selectbox(
        t("Format"), list(FORMATS), format_func=lambda k: from_core(FORMATS[k].label)
    )
    fmt = FORMATS[key]
    st.caption(
        t("JSON Lines, UTF-8; {about}.", about=literal(from_core(fmt.about)))
        + (f" {literal(from_core(fmt.caveat))}" if fmt.caveat else "")
    )
    st.download_button(
        t("Download"),
        lambda: "".join(export_lines(store.rows(name), key)),
        f"{name}-{key}.jsonl",
        "application/x-ndjson",
        icon=":material/download:",
    )


def _delete(name: str) -> None:
    with st.popover(t("Delete this dataset"), icon=":material/delete:"):
        st.write(
            t(
                "Delete {name} for good? Runs that were trained on it keep their own record.",
                name=code(name),
            )
        )
        if st.button(t("Delete"), key=f"delete-{name}"):
            store.delete(name)
            address.write(dataset=None)
            st.rerun()


def _unusable() -> None:
    broken = [s for s in store.list_datasets() if s.problem]
    if broken:
        with st.expander(
            tn(
                "{n} folder that is no complete dataset",
                "{n} folders that are no complete dataset",
                len(broken),
            )
        ):
            for summary in broken:
                st.write(f"{code(summary.name)}: {literal(from_core(summary.problem))}")
                if st.button(t("Remove"), key=f"remove-{summary.name}"):
                    with errors_shown():
                        store.delete(summary.name)
                        st.rerun()


def _import(name: str) -> None:
    st.subheader(t("Import"))
    st.caption(
        t(
            "JSON, JSON Lines, CSV or TSV (also packed with gzip), as other tools write them: "
            "{formats}, question and answer. At most 50 MB; the command line has no limit.",
            formats=literal(listed([from_core(f.label) for f in FORMATS.values()])),
        )
    )
    upload = st.file_uploader(t("File"), type=["jsonl", "json", "txt", "csv", "tsv", "gz"])
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
_COLUMNS = {
    "question": N_("Question column"),
    "answer": N_("Answer column"),
    "system": N_("System column"),
}


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


def _columns(table: Sheet, file_id: str) -> dict[str, str]:
    """What stands in which column, as found until it is chosen otherwise."""
    chosen = {}
    for place, what in zip(st.columns(3), ("question", "answer", "system"), strict=True):
        options = ["", *dict.fromkeys(table.columns)]
        used = table.used.get(what, "")
        chosen[what] = place.selectbox(
            t(_COLUMNS[what]),
            options,
            index=options.index(used) if used in options else 0,
            key=f"import-{file_id}-{what}",
        )
    return {what: column for what, column in chosen.items() if column}


def _persona() -> str:
    """The pack whose slots fill placeholders, or ""."""
    if not st.checkbox(t("Fill placeholders with the slots of a persona")):
        return ""
    return st.selectbox(t("Persona"), list(packs.all_packs())) or ""


def _report(report: ImportReport) -> None:
    for line in report.lines():
        st.text(from_core(line))
    if report.bad:
        st.warning(tn("{n} row left out", "{n} rows left out", report.bad), icon=":material/rule:")
        st.dataframe(
            [
                {
                    t("Line"): p.line,
                    t("Field"): p.field,
                    t("Problem"): from_core(p.what),
                    t("Fix"): from_core(p.fix),
                }
                for p in report.problems
            ],
            hide_index=True,
            width="stretch",
        )


def _take(report: ImportReport, name: str, filename: str) -> None:
    new, add = st.columns(2)
    with new.popover(t("Save as a new dataset"), icon=":material/save:"):
        wanted = st.text_input(
            t("Name"), store.free_name(fsio.slug(filename.rsplit(".", 1)[0], "import"))
        )
        if st.button(t("Save"), type="primary"):
            with errors_shown():
                store.save(wanted, report.rows, note=f"imported from {filename}")
                _done()
                go("rows", wanted)
    if name and add.button(t("Add to {name}", name=literal(name)), icon=":material/playlist_add:"):
        draft = DatasetDraft(name)
        draft.write(
            list(map(UniqueIds(draft.ids()), report.rows)),
            label=t("{n} rows from {file}", n=len(report.rows), file=literal(filename)),
        )
        _done()
        go("rows", name)
