"""Whether what a GGUF file announces can lie in it, asked before a library reads it.

The gguf package makes room for every element that an array announces, and walks over them: sixty
bytes can announce 2^60. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from io import BufferedReader
from pathlib import Path

from core import fsio
from core.errors import UserError

#: Bytes of a value, by its type; a text (8) and an array (9) say themselves.
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9
_MOST_DEEP = 4


class _Beyond(Exception):
    """What was announced."""


def require_whole(path: Path) -> None:
    """Raise UserError if a field of a GGUF file is said to be longer than the file.

    What is no GGUF file at all passes: who reads it says so.
    """
    try:
        with fsio.open_file(path) as file:
            left = os.fstat(file.fileno()).st_size
            magic, _, tensors, fields = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF":
                return
            if 20 * tensors + 13 * fields > left:
                raise _Beyond(f"{tensors:,} tensors and {fields:,} fields")
            for _ in range(fields):
                _skip_text(file, left)
                _skip_value(file, int.from_bytes(file.read(4), "little"), left)
    except (_Beyond, struct.error, OSError) as error:
        raise UserError(
            f"{path} cannot be used as a model",
            why=f"it announces more than its bytes can hold: {error}"
            if isinstance(error, _Beyond)
            else str(error),
            fix="download it again",
        ) from error


def _number(file: BufferedReader) -> int:
    return int(struct.unpack("<Q", file.read(8))[0])


def _skip(file: BufferedReader, count: int, left: int) -> None:
    if count > left - file.tell():
        raise _Beyond(f"{count:,} bytes")
    file.seek(count, os.SEEK_CUR)


def _skip_text(file: BufferedReader, left: int) -> None:
    _skip(file, _number(file), left)


def _skip_value(file: BufferedReader, kind: int, left: int, depth: int = 0) -> None:
    if kind == _TEXT:
        _skip_text(file, left)
    elif kind == _ARRAY and depth < _MOST_DEEP:
        inner, count = struct.unpack("<IQ", file.read(12))
        if count > left:
            raise _Beyond(f"{count:,} elements")
        if inner in _BYTES:
            _skip(file, count * _BYTES[inner], left)
        else:
            for _ in range(count):
                _skip_value(file, inner, left, depth + 1)
    elif kind in _BYTES:
        _skip(file, _BYTES[kind], left)
    else:
        raise _Beyond(f"a value of type {kind}")
