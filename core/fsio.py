"""Files: atomic writes, strict JSON, names that cannot leave their folder, trees with sizes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from core.errors import UserError

#: Lower case only, so that two names never meet on a case-insensitive disk.
NAME_RULE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"com{i}" for i in range(10)),
    *(f"lpt{i}" for i in range(10)),
}


#: What new files may be read by; mkstemp makes them private, which a merged model must not be.
_UMASK = os.umask(0)
os.umask(_UMASK)


def as_others_are(handle: int) -> None:
    """Give a file that ``mkstemp`` made the permissions that ``open`` would have given it."""
    if os.name == "posix":
        os.fchmod(handle, 0o666 & ~_UMASK)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write so that a reader sees the old file or the new one, also after a crash or full disk.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is intact.
    """
    name: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            as_others_are(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        name = None
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            why=f"{error.strerror or error} ({len(data):,} bytes needed, "
            f"{free_bytes(path.parent):,} free)",
            fix="free disk space or choose another folder",
        ) from error
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)
    _fsync_dir(path.parent)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside the block (read-only, full, no permission) into a UserError.

    Args:
        what: what could not be done, e.g. ``cannot delete run X``.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            what,
            why=f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""),
            fix="free disk space, or make the folder writable for this user",
        ) from error


#: No record, listing or text that is read at once is larger; rows and logs are read in pieces.
MAX_BYTES = 128 << 20


def open_file(path: Path) -> BufferedReader:
    """Open a file that others may have made, to read.

    Raises:
        OSError: it cannot be opened, or is no ordinary file. A pipe in its place would be waited
            for, and a device would never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path) -> bytes:
    """A whole file of at most ``MAX_BYTES``; OSError as ``open_file``, or because it is larger."""
    with open_file(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {human_bytes(MAX_BYTES)}", str(path))
    return data


def read_text(path: Path) -> str:
    """As ``read_bytes``; what is not UTF-8 becomes U+FFFD."""
    return read_bytes(path).decode("utf-8", "replace")


def _fsync_dir(folder: Path) -> None:
    # Without this the rename itself may be lost at a power cut (POSIX; not needed elsewhere).
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write_text(path: Path, text: str) -> None:
    """UTF-8, newlines as they are."""
    atomic_write_bytes(path, text.encode("utf-8"))


def jsonable(value: Any) -> Any:
    """Replace what JSON has no word for (NaN, infinities) by null, paths by strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


#: Line ends of Unicode that JSON leaves bare, where readers of others cut a line in two, and
#: halves of surrogate pairs, which UTF-8 has no bytes for.
_BARE = re.compile("[\u0085\u2028\u2029\ud800-\udfff]")


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON (no bare NaN), UTF-8 text kept readable; one line, whoever splits it."""
    text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _BARE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, with a trailing newline."""
    atomic_write_text(path, dump_json(value, indent=2) + "\n")


_MOST_DIGITS = 300
_LONG = re.compile(rf"\d{{{_MOST_DIGITS}}}")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def loads(data: str | bytes) -> Any:
    """JSON whose texts can be shown and written: half of a surrogate pair becomes U+FFFD.

    JSON can hold such a half as an escape; UTF-8, and with it every page and file, cannot.

    Raises:
        ValueError, RecursionError: as ``json.loads`` does, and for a whole number that no float
            can hold: whoever computes with it next would meet an OverflowError.
    """
    text = data if isinstance(data, str) else data.decode("latin-1")
    value = json.loads(data, parse_int=_whole_number) if _LONG.search(text) else json.loads(data)
    return _whole(value) if _HALF.search(text) else value


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(k): _whole(v) for k, v in value.items()}
    return [_whole(v) for v in value] if isinstance(value, list) else value


def read_json(path: Path) -> Any:
    """Raises UserError with the position if the file is missing or is not JSON."""
    try:
        return loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested for pages
        raise UserError(f"{path} is not valid JSON", why=str(error)) from error


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Stream rows to a file that appears only when it is whole; returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(dump_json(row) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            why=error.strerror or str(error),
            fix="free disk space or choose another folder",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def read_jsonl(path: Path) -> Iterator[Any]:
    """Rows of a file we wrote ourselves. Foreign files go through core.data.importer.

    Raises:
        UserError: a line is not JSON in UTF-8, with its number.
    """
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_line(line, f"{path}:{number}")


def parse_line(line: bytes, where: str) -> Any:
    """One line of JSONL; UserError with ``where`` if it is not JSON."""
    try:
        return loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            "this line is not JSON",
            why=str(error),
            fix="restore the file, or make it again",
            where=where,
        ) from error


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that are not blank, counted from 1 and cut at line feeds only.

    ``str.splitlines`` cuts at U+2028, U+2029, U+0085 and form feeds too, which stand inside texts.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip(" \t\r"):
            yield number, stripped


def sha256_file(path: Path) -> str:
    """Hex digest, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` if it may become a folder name; raise UserError with the rule if not."""
    if not is_name(name):
        raise UserError(
            f"{what} {name[:80]!r} cannot be used",
            why="a name has 1 to 64 of a-z, 0-9 and '-', starts with a letter or digit, "
            "and is not a device name such as 'con'",
            fix=f"try {slug(name)!r}",
        )
    return name


def is_name(name: str) -> bool:
    """Whether ``check_name`` accepts it."""
    return bool(NAME_RULE.fullmatch(name)) and name not in _RESERVED


def slug(text: str, fallback: str = "persona") -> str:
    """Turn any text into a name that ``check_name`` accepts."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
    return name if name and name not in _RESERVED else fallback


def safe_join(root: Path, *parts: str) -> Path:
    """Join and refuse whatever leaves ``root``, also through a symbolic link."""
    name = "/".join(parts)
    # What no file system has as a name would be an OSError at every question about the path.
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
    if "\0" in name or longest > 255 or any(0xD800 <= ord(char) < 0xE000 for char in name):
        raise UserError(f"{name[:80]!r} cannot be the name of a file")
    path = root.joinpath(*parts).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UserError(f"{name[:80]!r} lies outside {root}")
    return path


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds ``path`` (or its nearest existing parent)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_space(path: Path, needed: int, what: str) -> None:
    """Raise UserError before any work if ``needed`` bytes do not fit."""
    free = free_bytes(path)
    if free < needed:
        raise UserError(
            f"not enough disk space for {what}",
            why=f"{human_bytes(needed)} needed in {path}, {human_bytes(free)} free",
            fix="free disk space or choose another folder",
        )


def human_bytes(count: float) -> str:
    """1536 -> '1.5 kB'; decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """The file at a second place: a hard link where the disk allows it, else a copy.

    Either can be deleted without the other. For files that are replaced, never written into.
    """
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(source, target)
