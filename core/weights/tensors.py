"""Where a tensor's bytes lie in a file: safetensors headers read and checked without loading."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core import fsio
from core.errors import UserError

#: Bytes of one element, by safetensors' own dtype code.
ITEM_BYTES: dict[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
#: The codes that a merge may change; everything else is copied as it is.
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
#: safetensors itself refuses a larger header.
MAX_HEADER_BYTES = 100_000_000


#: Of a tensor that any file holds, and more than numpy's 64 would not fit into an array.
_MOST_ELEMENTS, _MOST_AXES = 1 << 48, 64


def is_shape(sizes: object) -> bool:
    """Whether it can be the shape of an array: whole numbers, few, and an empty axis no excuse."""
    return (
        isinstance(sizes, tuple | list)
        and len(sizes) <= _MOST_AXES
        and all(type(n) is int and n >= 0 for n in sizes)
        and math.prod(max(1, n) for n in sizes) < _MOST_ELEMENTS
    )


@dataclass(frozen=True)
class TensorRef:
    """A row-major tensor inside a file.

    Args:
        name: key in the state dict.
        dtype: safetensors code, e.g. ``BF16``.
        shape: sizes, outermost first.
        file: the file that holds the bytes.
        offset: first byte, from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def read(self) -> bytearray:
        """The bytes. Raises UserError if the file ends early."""
        data = bytearray(self.nbytes)
        self.read_into(memoryview(data))
        return data

    def to_float32(self) -> npt.NDArray[Any]:
        """The tensor as a float32 array of its shape.

        Raises:
            UserError: it holds no floating-point numbers, or the file ends early.
        """
        data = self.read()
        if self.dtype == "BF16":  # the upper half of a float32
            wide = np.frombuffer(data, "<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(self.shape)
        if self.dtype not in _NUMPY:
            raise UserError(
                f"{self.file}: {self.name!r} holds {self.dtype}, not floating-point numbers"
            )
        return np.frombuffer(data, _NUMPY[self.dtype]).astype("<f4", copy=False).reshape(self.shape)

    def read_into(self, buffer: memoryview, start: int = 0) -> None:
        """Fill ``buffer`` from element ``start`` on. Raises UserError if the file ends early."""
        done = 0
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + start * ITEM_BYTES[self.dtype])
            while done < len(buffer):
                count = file.readinto(buffer[done:])
                if not count:
                    raise self._ended()
                done += count

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The bytes in pieces of at most ``size``, in one buffer: use each before the next."""
        buffer = memoryview(bytearray(min(size, self.nbytes)))
        left = self.nbytes
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                count = file.readinto(buffer[: min(len(buffer), left)])
                if not count:
                    raise self._ended()
                yield buffer[:count]
                left -= count

    def _ended(self) -> UserError:
        return UserError(
            f"{self.file} ends inside tensor {self.name!r}",
            why="the file was cut short after it was opened",
            fix="fetch or make the file again",
        )


def _broken(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a whole safetensors file", why=why, fix="fetch or make the file again"
    )


def _parse_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset of the first payload byte."""
    with fsio.open_file(path) as file:
        first = file.read(8)
        if len(first) < 8:
            raise _broken(path, f"it has {size} bytes, fewer than a header")
        length = int.from_bytes(first, "little")
        if length > MAX_HEADER_BYTES or length > size - 8:
            looks = "an HTML page" if first.lstrip().startswith((b"<", b"<!")) else "another format"
            raise _broken(
                path,
                f"its first 8 bytes announce a header of {length:,} bytes in a file of "
                f"{size:,}: the file is truncated or is {looks}",
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number of pages
            raise _broken(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not an object")
    return header, 8 + length


def _entry(path: Path, name: str, entry: Any, start: int) -> tuple[TensorRef, int]:
    """One checked header entry and the payload offset behind it."""
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"the entry of tensor {name!r} is malformed") from error
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _broken(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not is_shape(shape) or not is_shape([begin, end][:1]) or type(end) is not int:
        raise _broken(path, f"tensor {name!r} has a size that no tensor has")
    ref = TensorRef(name, dtype, tuple(shape), path, start + begin)
    if end - begin != ref.nbytes:
        raise _broken(
            path,
            f"tensor {name!r} of shape {list(shape)} needs {ref.nbytes:,} bytes, "
            f"its offsets give {end - begin:,}",
        )
    return ref, end


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """Tensors of one file in the order of their bytes.

    Raises:
        UserError: missing, empty, truncated, with holes or trailing bytes, or not safetensors.
    """
    try:
        size = path.stat().st_size
        header, start = _parse_header(path, size)
    except OSError as error:
        raise UserError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    header.pop("__metadata__", None)
    found = [_entry(path, name, entry, start) for name, entry in header.items()]
    found.sort(key=lambda pair: (pair[0].offset, pair[1]))
    at = start
    for ref, end in found:
        if ref.offset != at:
            raise _broken(path, f"there is a hole or an overlap before tensor {ref.name!r}")
        at = start + end
    if at != size:
        raise _broken(path, f"its tensors end at byte {at:,}, the file at {size:,}")
    return {ref.name: ref for ref, _ in found}


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Length prefix and header of a file that holds these (name, dtype, shape), in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Padded so that the payload starts at a multiple of 8, as safetensors does.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
