"""What leaves the workbench: GGUF, an Ollama folder, a hub repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError, redacted
from core.weights import manifest, staging
from core.weights.gguf_export import Kind, write_gguf
from core.weights.ollama import modelfile_for


def _gguf_into(
    folder: Path, merged: Path, kind: Kind, on_progress: OnProgress | None
) -> dict[str, Any]:
    """Write the GGUF file; returns the source's manifest."""
    record = manifest.read(merged)
    size = sum(f["bytes"] for f in record["files"].values())
    fsio.require_space(folder, 2 * size, "the GGUF file")
    write_gguf(
        merged,
        folder / f"model-{kind}.gguf",
        kind=kind,
        name=str(record.get("name", "model")),
        license_=str(record.get("license", "unknown")),
        on_progress=on_progress,
    )
    return record


def _about(kind: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "base": record.get("base"), "license": record.get("license")}


def export_gguf(
    merged: Path, out: Path, *, kind: Kind = "f16", on_progress: OnProgress | None = None
) -> Path:
    """A new folder with one GGUF file and its manifest.

    Raises:
        UserError: ``merged`` is not a complete folder, or it cannot be written as GGUF.
    """
    with staging.staged(out, [merged]) as folder:
        record = _gguf_into(folder, merged, kind, on_progress)
        manifest.write(folder, _about("gguf", record))
    return out


def export_ollama(
    merged: Path, out: Path, *, kind: Kind = "q8_0", on_progress: OnProgress | None = None
) -> Path:
    """A new folder for ``ollama create NAME -f Modelfile``: GGUF, Modelfile, manifest."""
    with staging.staged(out, [merged]) as folder:
        license_ = str(manifest.read(merged).get("license", "unknown"))
        # First the cheap part that may refuse.
        text = modelfile_for(merged, f"model-{kind}.gguf", license_=license_)
        record = _gguf_into(folder, merged, kind, on_progress)
        fsio.atomic_write_text(folder / "Modelfile", text)
        manifest.write(folder, _about("ollama", record))
    return out


def push_to_hub(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a verified folder to the hub, where the user asked for it; returns its address.

    The login of ``hf auth login`` or HF_TOKEN is used; no token is taken here.

    Raises:
        UserError: the folder is not as it was written, the id is malformed, nobody is logged in,
            or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    manifest.verify(folder)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is not a hub id", why=str(error), fix="OWNER/NAME") from error
    api = HfApi()
    try:
        api.whoami()
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=[".*"])
    except LocalTokenNotFoundError as error:
        raise UserError("nobody is logged in to the hub", fix="run `hf auth login`") from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"the hub did not take {repo}",
            why=redacted(f"{type(error).__name__}: {error}")[:300],
            fix="check `hf auth whoami`, the id and the network",
        ) from error
    return str(address)
