"""Uploads lie in the server's memory until their session ends, unless they are given back."""

from __future__ import annotations

from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile


def release_uploads(keep: UploadedFile | None = None) -> None:
    """Drop what this session has uploaded, but for ``keep``, the file that is being looked at.

    Streamlit drops a file only when its browser says so or leaves, so twenty files of 45 MB, one
    after the other, were 860 MB.
    """
    context = get_script_run_ctx()
    if context is None:
        return
    manager, session = context.uploaded_file_mgr, context.session_id
    if not isinstance(manager, MemoryUploadedFileManager):
        return
    for file_id in list(manager.file_storage.get(session, ())):
        if keep is None or file_id != keep.file_id:
            manager.remove_file(session, file_id)
