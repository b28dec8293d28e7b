"""Files of a dataset, import and export, delete."""

from __future__ import annotations

import streamlit as st

from core import fsio
from core.data import store
from core.data.drafts import Draft
from core.data.formats import FORMATS, export_lines
from core.data.importer import ImportReport, UniqueIds, import_file
from pages._ui.dataset.state import bubbles, choose_dataset, go
from pages._ui.shell.common import errors_shown, folder_tree


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
    kinds = ", ".join(f"{v:,} {k}" for k, v in summary.kinds.items())
    parts = [
        f"{summary.rows:,} rows" + (f" ({kinds})" if kinds else ""),
        f"made {summary.created}" if summary.created else "",
        f"from `{summary.parent}`" if summary.parent else "",
        summary.note,
    ]
    st.caption(" · ".join(p for p in parts if p))
    st.write(f"`{summary.root}`")
    folder_tree(fsio.tree(summary.root))


def _export(name: str) -> None:
    st.subheader("Export")
    key = st.selectbox("Format", list(FORMATS), format_func=lambda k: FORMATS[k].label)
    fmt = FORMATS[key]
    st.caption(f"JSON Lines, UTF-8; {fmt.about}." + (f" {fmt.caveat}" if fmt.caveat else ""))
    st.download_button(
        "Download",
        lambda: "".join(export_lines(store.rows(name), key)),
        f"{name}-{key}.jsonl",
        "application/x-ndjson",
        icon=":material/download:",
    )


def _delete(name: str) -> None:
    with st.popover("Delete this dataset", icon=":material/delete:"):
        st.write(f"Delete `{name}` for good? Runs that were trained on it keep their own record.")
        if st.button("Delete", key=f"delete-{name}"):
            store.delete(name)
            st.query_params.pop("dataset", None)
            st.rerun()


def _unusable() -> None:
    broken = [s for s in store.list_datasets() if s.problem]
    if broken:
        with st.expander(f"{len(broken)} folders that are no complete dataset"):
            for summary in broken:
                st.write(f"`{summary.name}`: {summary.problem}")
                if st.button("Remove", key=f"remove-{summary.name}"):
                    with errors_shown():
                        store.delete(summary.name)
                        st.rerun()


def _import(name: str) -> None:
    st.subheader("Import")
    st.caption(
        "JSON Lines or one JSON array, in any of these formats: "
        + ", ".join(f.label for f in FORMATS.values())
        + ". At most 50 MB; the command "
        "line has no limit."
    )
    upload = st.file_uploader("File", type=["jsonl", "json", "txt"])
    if upload is None:
        return
    with errors_shown():
        report = import_file(upload)
        _report(report)
        if report.rows:
            _take(report, name, upload.name)
            bubbles(report.rows[:4])


def _report(report: ImportReport) -> None:
    kinds = ", ".join(f"{n:,} {FORMATS[k].label}" for k, n in report.formats.items())
    st.write(f"**{len(report.rows):,} rows read**" + (f" ({kinds})" if kinds else ""))
    if report.duplicates:
        st.caption(f"{report.duplicates:,} of them say the same as an earlier row.")
    if report.ignored_keys:
        st.caption(
            "Keys that were not read: "
            + ", ".join(f"`{k}`" for k in list(report.ignored_keys)[:12])
        )
    if report.bad:
        st.warning(f"{report.bad:,} rows left out", icon=":material/rule:")
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
                go("rows", wanted)
    if name and add.button(f"Add to {name}", icon=":material/playlist_add:"):
        draft = Draft(name)
        draft.write(
            list(map(UniqueIds(draft.ids()), report.rows)),
            label=f"{len(report.rows)} rows from {filename}",
        )
        go("rows", name)
