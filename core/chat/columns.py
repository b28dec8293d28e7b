"""What can stand in a column: models found on this machine, and how a column is described."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from core import fsio, paths, trees
from core.errors import UserError
from core.jobs.spec import run_title

ColumnKind = Literal["base", "prompted", "adapter", "merged", "endpoint"]
#: More columns than this cannot be read beside each other, nor held in memory.
MAX_COLUMNS = 4
#: What the model that comes with the program is called.
BUNDLED = "SmolLM2-135M-Instruct"


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
        if re.search(r"^https?://[^/]*@|\?", self.base_url):
            raise UserError(
                f"the server address of column {self.label!r} holds a login or a query",
                why="it is written into the conversation, and a key does not belong there",
                fix="put the key into an environment variable, and name that",
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
        """Ignores keys it does not know. Raises ValueError for values of other types."""
        return _COLUMN.validate_python(dict(values))


_COLUMN = TypeAdapter(Column)


def discover(
    runs: Path | None = None, name_of: Callable[[str, int | None], str] | None = None
) -> list[Column]:
    """The bundled base first, then what runs made: newest run first, its merged model before all.

    Whoever has just merged came here to talk to the merged model. Behind them the other bases
    that runs were trained on.

    Args:
        name_of: what to call a run by its id, or its checkpoint of an optimizer step; its name,
            the end of its id and "step 4" if not given.
    """
    root = runs or paths.runs_dir()
    found: list[Column] = []
    for run in reversed([entry for entry in trees.entries(root) if entry.is_dir()]):
        for column, step in _of_run(run, _stamp(run)):
            title = name_of(run.name, step) if name_of else title_of(run, step)
            found.append(dataclasses.replace(column, label=f"{title}{column.label}"))
    bases = {c.model: None for c in found if c.kind == "adapter" and c.model != "bundled"}
    return [
        Column("", "base", BUNDLED, "bundled"),
        Column("", "prompted", BUNDLED, "bundled"),
        *found,
        *(Column("", "base", Path(model).name, model) for model in bases),
    ]


def _stamp(run: Path) -> tuple[float, ...]:
    """Changes when a run writes a model: what is in its folders is then looked at again."""
    places = (run, run / "adapter", run / "export", run / "work", run / "spec.json")
    return tuple(p.stat().st_mtime if p.exists() else 0.0 for p in places)


@lru_cache(maxsize=4096)
def _of_run(run: Path, _: tuple[float, ...]) -> tuple[tuple[Column, int | None], ...]:
    """Models of a run, whose labels are to follow its title, and the step of a checkpoint's.

    Half-written ones are left out.
    """
    spec = _spec(run)
    base, accumulation = _base_model(spec), _accumulation(spec)
    folders = sorted(
        (f for pattern in ("*", "*/*", "*/*/*") for f in run.glob(pattern) if f.is_dir()),
        key=_step,
        reverse=True,
    )
    merged: list[tuple[Column, int | None]] = []
    adapters: list[tuple[Column, int | None]] = []
    for folder in folders:
        where = folder.relative_to(run)
        if any(part.endswith(".partial") or part.startswith(".") for part in where.parts):
            continue
        if _is_model(folder):
            label = "" if where.as_posix() == "export/merged" else f" / {where}"
            merged.append((Column("", "merged", label, str(folder)), None))
        elif (folder / "adapter_config.json").is_file():
            model = base or _base_of(folder)
            step = _optimizer_step(folder, accumulation)
            label = f" / {where}" if step is None else ""
            adapters.append((Column("", "adapter", label, model or "bundled", str(folder)), step))
    return (*merged, *adapters, *_checkpoints(paths.RunPaths(run), base, accumulation))


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def of_folder(folder: str) -> Column:
    """A column for a folder that somebody typed: a whole model, or an adapter and its base.

    Raises:
        UserError: there is no model in it.
    """
    path = Path(os.path.expanduser(folder))  # Path's own raises at the ~ of a user who is not there
    if _is_model(path) or (path / "config.json").is_file():
        return Column("", "merged", path.name, str(path))
    if (path / "adapter_config.json").is_file():
        base = _base_of(path)
        if not base:
            raise UserError(
                f"{path} does not say which base it belongs to",
                why="its adapter_config.json names none",
                fix="choose a merged model folder",
            )
        run = path.parent.parent  # a checkpoint's adapter lies in runs/ID/adapter/iter_8
        step = _optimizer_step(path, _accumulation(_spec(run)))
        label = path.name if step is None else title_of(run, step)
        return Column("", "adapter", label, base, str(path))
    raise UserError(
        f"{path} holds no model" if path.is_dir() else f"{path} is not a folder",
        why="a model folder has a config.json, an adapter folder an adapter_config.json",
        fix="give the folder that holds it, e.g. one that `python -m core merge` wrote",
    )


def _base_of(adapter: Path) -> str:
    """The base that an adapter names; '' if its config cannot be read, which loading will tell."""
    try:
        config = fsio.read_json(adapter / "adapter_config.json")
    except UserError:
        return ""
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""


def _checkpoints(
    run: paths.RunPaths, base: str, accumulation: int
) -> Iterator[tuple[Column, int | None]]:
    """Checkpoints of a training run that nobody has converted yet, newest first."""
    if not run.config.is_file():
        return
    for file in sorted(run.work.glob("iter_*.pth"), key=_step, reverse=True):
        adapter = run.adapter / file.stem
        if not adapter.is_dir():
            column = Column(
                "", "adapter", "", base or "bundled", str(adapter), checkpoint=str(file)
            )
            yield column, _optimizer_step(file, accumulation)


def _optimizer_step(checkpoint: Path, accumulation: int) -> int | None:
    """``iter_8`` -> 4 where two iterations make a step, as every page counts."""
    number = _step(checkpoint)[0]
    is_step = checkpoint.name.startswith("iter_") and number >= 0
    return number // accumulation if is_step else None


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


def _params(spec: dict[str, Any]) -> dict[str, Any]:
    params = spec.get("params")
    return params if isinstance(params, dict) else {}


def _base_model(spec: dict[str, Any]) -> str:
    """The base that a run's spec names ('' if it does not say)."""
    return str(_params(spec).get("base") or _params(spec).get("model") or "")


def _accumulation(spec: dict[str, Any]) -> int:
    found = _params(spec).get("accumulation")
    return found if isinstance(found, int) and found > 0 else 1


def title_of(run: Path, step: int | None = None) -> str:
    """What to call the run in a folder, or its checkpoint of an optimizer step.

    A run without a spec is called by the folder's own name.
    """
    spec = _spec(run)
    title = run_title(str(spec["name"]), run.name) if spec.get("name") else run.name
    return title if step is None else f"{title}, step {step}"


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
