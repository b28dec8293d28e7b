"""What can stand in a column: models found on this machine, and how a column is described."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core import fsio, paths
from core.errors import UserError
from core.jobs.spec import run_title

ColumnKind = Literal["base", "prompted", "adapter", "merged", "endpoint"]
#: More columns than this cannot be read beside each other, nor held in memory.
MAX_COLUMNS = 4


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        id: short and unique among the columns ("a", "b", ...); "" for a model that was found and
            stands in no column yet.
        kind: ``prompted`` is the base with a persona system prompt: what prompting alone gives.
        model: ``bundled``, a folder or a hub id; for an endpoint the model name it serves.
        adapter: PEFT adapter folder, for ``adapter`` only.
        system: this column's own system prompt; takes the place of the common one.
        base_url: of an OpenAI-compatible server, for ``endpoint`` only.
        key_env: name of the environment variable with the endpoint's key; the key itself is
            never stored.
        checkpoint: a ``.pth`` of a training run that ``prepare`` converts to ``adapter``.
    """

    id: str
    kind: ColumnKind
    label: str
    model: str = "bundled"
    adapter: str | None = None
    system: str = ""
    base_url: str = ""
    key_env: str = ""
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        if self.kind == "adapter" and not self.adapter:
            raise UserError(f"column {self.label!r} has no adapter folder", fix="choose one")
        if self.kind == "endpoint" and not re.match(r"https?://[^/\s]+", self.base_url):
            raise UserError(
                f"column {self.label!r} has no usable server address",
                why=f"{self.base_url!r} does not start with http:// or https:// and a host",
                fix="e.g. http://127.0.0.1:8000/v1",
            )

    @property
    def local(self) -> bool:
        """Whether this process's worker computes it."""
        return self.kind != "endpoint"

    def placed(self, column_id: str, system: str = "") -> Column:
        """This model as a column."""
        return dataclasses.replace(self, id=column_id, system=system)

    def same_answers(self, other: Column) -> bool:
        """Whether both columns are the same model under the same system prompt."""
        mine, others = (dataclasses.replace(c, id="", label="", kind="base") for c in (self, other))
        return mine == others

    def prepare(self) -> None:
        """Convert the checkpoint, if this is one and it was not done before (about a second).

        Raises:
            UserError: the checkpoint cannot be read.
        """
        if self.checkpoint:
            from core.weights.convert import adapter_of

            adapter_of(paths.RunPaths(Path(self.checkpoint).parent.parent), Path(self.checkpoint))

    def to_dict(self) -> dict[str, Any]:
        """For the worker and the transcript; holds no secret."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Column:
        """Ignores keys it does not know."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})


def discover(runs: Path | None = None) -> list[Column]:
    """The bundled base first, then what runs made: newest run first, its merged model before all.

    Whoever has just merged came here to talk to the merged model.
    """
    found = [
        Column("", "base", "Base: SmolLM2-135M-Instruct (bundled)", "bundled"),
        Column("", "prompted", "Base + persona system prompt", "bundled"),
    ]
    root = runs or paths.runs_dir()
    if root.is_dir():
        for run in sorted((r for r in root.iterdir() if r.is_dir()), reverse=True):
            found.extend(sorted(_of_run(run), key=lambda column: column.kind != "merged"))
    return found


def _of_run(run: Path) -> Iterator[Column]:
    """Folders of a run that hold a whole model or adapter; half-written ones end in .partial."""
    spec = _spec(run)
    base, title = _base_model(spec), _title(run, spec)
    folders = sorted(
        (f for pattern in ("*", "*/*", "*/*/*") for f in run.glob(pattern) if f.is_dir()),
        key=_step,
        reverse=True,
    )
    for folder in folders:
        where = folder.relative_to(run)
        if any(part.endswith(".partial") or part.startswith(".") for part in where.parts):
            continue
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            yield Column("", "merged", f"Merged: {title} / {where}", str(folder))
        elif (folder / "adapter_config.json").is_file():
            model = base or _base_of(folder)
            label = f"Base + adapter: {title} / {where}"
            yield Column("", "adapter", label, model or "bundled", str(folder))
    yield from _checkpoints(paths.RunPaths(run), base, title)


def _base_of(adapter: Path) -> str:
    """The base that an adapter names; '' if its config cannot be read, which loading will tell."""
    try:
        config = fsio.read_json(adapter / "adapter_config.json")
    except UserError:
        return ""
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""


def _checkpoints(run: paths.RunPaths, base: str, title: str) -> Iterator[Column]:
    """Checkpoints of a training run that nobody has converted yet, newest first."""
    if not run.config.is_file():
        return
    for file in sorted(run.work.glob("iter_*.pth"), key=_step, reverse=True):
        adapter = run.adapter / file.stem
        if not adapter.is_dir():
            label = f"Base + checkpoint: {title} / {file.stem}"
            yield Column(
                "", "adapter", label, base or "bundled", str(adapter), checkpoint=str(file)
            )


def _spec(run: Path) -> dict[str, Any]:
    """The run's spec; empty if there is none to read."""
    spec = run / "spec.json"
    if not spec.is_file():
        return {}
    try:
        found = fsio.read_json(spec)
    except UserError:
        return {}  # the run list reports a broken spec; here the adapter's own config is asked
    return found if isinstance(found, dict) else {}


def _base_model(spec: dict[str, Any]) -> str:
    """The base that a run's spec names ('' if it does not say)."""
    params = spec.get("params")
    params = params if isinstance(params, dict) else {}
    return str(params.get("base") or params.get("model") or "")


def title_of(run: Path) -> str:
    """What to call the run in a folder; one without a spec by the folder's own name."""
    return _title(run, _spec(run))


def _title(run: Path, spec: dict[str, Any]) -> str:
    return run_title(str(spec["name"]), run.name) if spec.get("name") else run.name


def _step(folder: Path) -> tuple[int, str]:
    number = re.search(r"(\d+)$", folder.name.removesuffix(".pth"))
    return (int(number.group(1)) if number else -1, folder.name)


def from_arguments(
    base: str,
    persona_prompt: str,
    adapters: Sequence[str],
    merged: Sequence[str],
    endpoints: Sequence[str],
    key_env: str = "",
) -> list[Column]:
    """Columns of the ``compare`` command, in the order base, prompted, adapters, merged, servers.

    Raises:
        UserError: more than MAX_COLUMNS, or an endpoint not written MODEL@URL.
    """
    rows: list[dict[str, Any]] = [{"kind": "base", "label": "base", "model": base}]
    if persona_prompt:
        rows.append(
            {"kind": "prompted", "label": "prompted", "model": base, "system": persona_prompt}
        )
    for folder in adapters:
        label = f"adapter {Path(folder).name}"
        rows.append({"kind": "adapter", "label": label, "model": base, "adapter": folder})
    for folder in merged:
        label = f"merged {Path(folder).name}"
        rows.append({"kind": "merged", "label": label, "model": folder})
    for endpoint in endpoints:
        model, _, url = endpoint.partition("@")
        row = {"kind": "endpoint", "label": model, "model": model, "base_url": url}
        rows.append({**row, "key_env": key_env})
    if len(rows) > MAX_COLUMNS:
        raise UserError(f"{len(rows)} columns are too many", fix=f"at most {MAX_COLUMNS}")
    return [Column(id="abcd"[i], **row) for i, row in enumerate(rows)]
