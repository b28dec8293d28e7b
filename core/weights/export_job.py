"""The export job: a merged model as a GGUF file, an Ollama folder, or a hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from core.conversation import OnProgress
from core.errors import UserError
from core.paths import RunPaths
from core.records import JobSpec
from core.weights import manifest, staging


class ExportSpec(JobSpec):
    """What leaves, and where it goes.

    Args:
        merged: the merged model's folder.
        kind: number type of a GGUF file; None is f16, for Ollama q8_0.
        out: the new folder; None is ``export/<format>`` in the job's own run.
        repo: ``owner/name`` on the hub; ``private`` if only its owner may see it.
    """

    job: ClassVar[str] = "export"
    called: ClassVar[str] = "export"

    merged: str
    format: Literal["gguf", "ollama", "hub"]
    kind: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    out: str | None = None
    repo: str = ""
    private: bool = True


Spec = ExportSpec


def check(spec: ExportSpec) -> None:
    """Raises UserError: there is no merged model, the place is taken, no repository is named."""
    merged = Path(spec.merged)
    manifest.read(merged)
    if spec.format == "hub" and not spec.repo:
        raise UserError("no repository was named", fix="give OWNER/NAME")
    if spec.format != "hub" and spec.out:
        staging.check_output(Path(spec.out), [merged])


def run(spec: ExportSpec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Write or push.

    Returns:
        ``out``, the new folder, or ``address`` of the repository.
    """
    from core.weights.export import export_gguf, export_ollama, push_to_hub

    merged = Path(spec.merged)
    if spec.format == "hub":
        on_progress("upload", 0, 1)
        return {"address": push_to_hub(merged, spec.repo, private=spec.private)}
    out = Path(spec.out) if spec.out else run.export / spec.format
    if spec.format == "gguf":
        made = export_gguf(merged, out, kind=spec.kind or "f16", on_progress=on_progress)
    else:
        made = export_ollama(merged, out, kind=spec.kind or "q8_0", on_progress=on_progress)
    return {"out": str(made)}
