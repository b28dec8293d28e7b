"""Python that a model folder brings: off, until somebody has looked at it and said yes.

A folder may name classes of its own (``auto_map``), which transformers would import and run with
all rights of the user. Here it runs only if

- transformers has no class of its own for the model or the tokenizer,
- the workspace holds a confirmation of exactly these files: the hash covers every ``*.py`` and the
  ``auto_map``, so that a changed byte asks again, and the record is signed (``core.seal``),
- the process is a job, the chat worker or the command line, never the server of the pages.

What was trusted is written into the run's record and the merge's manifest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import fsio, paths, seal, trees
from core.errors import UserError

_SCHEMA = 1
_permitted = False


@dataclass(frozen=True)
class Code:
    """What a folder would run.

    ``files``: every ``*.py``, sorted; ``names``: what is looked up in them; ``digest``: sha256.
    """

    folder: Path
    files: tuple[Path, ...]
    names: dict[str, str]
    digest: str


def permit() -> None:
    """This process may run trusted code: it is a job, the chat worker or a command line."""
    global _permitted
    _permitted = True


def needed(folder: Path) -> Code | None:
    """The code without which transformers cannot load the folder; None if there is no need.

    Raises:
        UserError: it names code of another repository, which no hash of this folder covers.
    """
    names = {**_model_code(folder), **_tokenizer_code(folder)}
    if not names:
        return None
    for what, name in names.items():
        if "--" in name:
            raise UserError(
                f"{folder} takes its {what} from another repository: {name.partition('--')[0]}",
                why="only code that lies in the folder can be looked at and trusted",
                fix="copy the *.py files of that repository into the folder and name them in "
                "auto_map without what stands before --",
            )
    files = tuple(sorted(f for f in trees.files_under(folder) if f.suffix == ".py"))
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode())
    for file in files:
        digest.update(f"\0{file.relative_to(folder)}\0{fsio.sha256_file(file)}".encode())
    return Code(folder, files, names, digest.hexdigest())


def _model_code(folder: Path) -> dict[str, str]:
    config = _json(folder / "config.json")
    named = _classes(config, ("AutoConfig", "AutoModelForCausalLM"))
    # Most folders name no code: what transformers has is only asked for where it matters, for to
    # ask takes seconds of imports.
    return {} if not named or str(config.get("model_type")) in _own_types() else named


def _tokenizer_code(folder: Path) -> dict[str, str]:
    config = _json(folder / "tokenizer_config.json")
    named = _classes(config, ("AutoTokenizer",))
    if not named or _json(folder / "config.json").get("model_type") == "internlm2":
        return {}
    return {} if _own_tokenizer(str(config.get("tokenizer_class"))) else named


def _classes(config: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, str]:
    """The entries of an ``auto_map``; one of a tokenizer is a pair (slow, fast)."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        return {}
    found = {}
    for name in wanted:
        value = auto_map.get(name)
        texts = [v for v in (value if isinstance(value, list | tuple) else [value]) if v]
        if texts:
            found[name] = ", ".join(map(str, texts))
    return found


def _json(path: Path) -> dict[str, Any]:
    found = fsio.read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=1)
def _own_types() -> frozenset[str]:
    """Model types that transformers, or we, have code for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "internlm2"})


def _own_tokenizer(name: str) -> bool:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return tokenizer_class_from_name(name) is not None


def _store() -> Path:
    return paths.home() / "trusted_code.json"


def _confirmed() -> dict[str, Any]:
    """Digest -> what was confirmed; nothing if the record was not written by this workspace."""
    path = _store()
    if not path.is_file() or not seal.sealed(path):
        return {}
    codes = fsio.read_json(path).get("codes", {})
    return dict(codes)


def trusted(code: Code) -> bool:
    """Whether exactly this code was confirmed in this workspace."""
    return code.digest in _confirmed()


def confirm(code: Code, digest: str) -> None:
    """Keep that somebody looked at the code and trusts it.

    Args:
        digest: of what they looked at.

    Raises:
        UserError: the code is another by now.
    """
    now = needed(code.folder)
    if now is None or digest != now.digest:
        raise UserError(
            f"the code of {code.folder} was not trusted",
            why=f"its hash is {now.digest if now else 'none'}, not {digest}",
            fix="look at the files again",
        )
    entry = {
        "folder": str(code.folder),
        "files": [str(f.relative_to(code.folder)) for f in code.files],
        "confirmed": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    fsio.write_json(_store(), {"schema": _SCHEMA, "codes": {**_confirmed(), digest: entry}})
    seal.seal(_store())


def of_hub(model: str) -> bool:
    """Whether code of this hub id was trusted, of whatever revision."""
    place = f"models--{model.replace('/', '--')}"
    return any(place in Path(entry["folder"]).parts for entry in _confirmed().values())


def require(folder: Path) -> str:
    """Ask before a folder is used.

    Returns:
        The digest of the code that will run; '' if none will.

    Raises:
        UserError: it needs code that was not confirmed.
    """
    code = needed(folder)
    if code is None:
        return ""
    what = " and ".join(code.names.values())
    if not trusted(code):
        changed = any(str(folder) == entry["folder"] for entry in _confirmed().values())
        raise UserError(
            f"{folder} brings its own Python code"
            + (", which has changed since it was trusted" if changed else ""),
            why=f"transformers does not know this model without running {what}",
            fix=f"look at the code and trust it: python -m core model {folder} --trust-remote-code",
        )
    return code.digest


def allow(folder: Path, *, tokenizer_only: bool = False) -> bool:
    """What a loader passes as ``trust_remote_code``: whether this process runs the folder's code.

    Raises:
        UserError: it needs code that was not confirmed, or that may not run in this process.
    """
    if tokenizer_only and not _tokenizer_code(folder):
        return False
    if not require(folder):
        return False
    if not _permitted:
        raise UserError(
            f"the code of {folder} does not run here",
            why="it is trusted, but runs in jobs only, never in the server of the pages",
            fix="use the command line: python -m core tune --help",
        )
    return True


def record(folder: Path) -> dict[str, Any]:
    """What a run or a merge keeps of it: ``{"remote_code": {...}}``, empty if none runs."""
    code = needed(folder)
    if code is None:
        return {}
    files = {str(f.relative_to(folder)): fsio.sha256_file(f) for f in code.files}
    return {"remote_code": {"sha256": code.digest, "classes": code.names, "files": files}}
