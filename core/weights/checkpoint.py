"""Read tensors out of a ``.pth`` checkpoint without running what is pickled in it.

A ``.pth`` is a zip archive: a pickle that describes the objects, and one raw file a storage.
Unpickling it the usual way executes whatever the pickle names. Here every name that a training
checkpoint has reason to hold becomes an inert stand-in, and any other name is refused, so that no
code of the file ever runs, and storages are located but not read: optimizer states cost nothing.

Not covered: the zip layer and Python's own pickle machine, which are trusted to be free of
memory faults; sizes are bounded by the file itself.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError
from core.models.pickled import require_small
from core.weights.tensors import ITEM_BYTES, TensorRef, is_shape

#: torch's storage classes, by safetensors dtype code.
STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
#: Modules whose names may occur in a checkpoint of mmengine or DeepSpeed. They are not imported:
#: each name becomes an ``Inert`` class.
INERT_MODULES = ("mmengine", "numpy", "torch", "deepspeed", "xtuner", "transformers", "peft")
INERT_NAMES = {
    ("_codecs", "encode"),
    ("__builtin__", "getattr"),
    ("builtins", "getattr"),
    ("argparse", "Namespace"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("functools", "partial"),
    ("enum", "Enum"),
    ("datetime", "datetime"),
}
#: Harmless with any argument; bytes(10**12) is not, so it and its like are inert.
PLAIN_TYPES: dict[str, Any] = {
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "int": int,
    "float": float,
    "bool": bool,
}


class Inert:
    """Stands for any object that is not needed: takes every argument and state, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Pickle's APPEND."""

    def extend(self, items: Any) -> None:
        """Pickle's APPENDS."""

    def add(self, item: Any) -> None:
        """Pickle's ADDITEMS."""

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the pickle describes it; ``offset`` and ``stride`` count elements."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Row-major without gaps (axes of size 1 may have any stride)."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


class _Storage(tuple[str, str]):
    """(storage key, dtype code)."""


def _rebuild_tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        return Inert()
    if not (
        type(offset) is int and is_shape(shape)
        and isinstance(stride, tuple) and len(stride) == len(shape)
    ):  # fmt: skip
        raise pickle.UnpicklingError(f"a tensor of shape {shape!r:.80}")
    key, dtype = storage
    return StoredTensor(key, dtype, offset, tuple(shape), stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes of its own, which are left out: ZeRO-3's flat weights have some."""
    if function is not _rebuild_tensor or not isinstance(arguments, tuple):
        return Inert()
    return _rebuild_tensor(*arguments)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "collections" and name in {"defaultdict", "deque", "Counter"}:
            return Inert
        if module == "torch._utils" and name in {"_rebuild_tensor_v2", "_rebuild_tensor"}:
            return _rebuild_tensor
        if module == "torch._utils" and name in {
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
        }:
            return _rebuild_parameter
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return _rebuild_from_type
        if module == "torch" and name == "Size":
            return tuple
        if (module, name) == ("deepspeed.runtime.zero.config", "ZeroStageEnum"):
            return int  # the stage decides how the partitions are joined
        if module in {"torch", "torch.storage"} and name in STORAGE_DTYPES:
            return type(name, (Inert,), {"dtype_code": STORAGE_DTYPES[name]})
        if module in {"builtins", "__builtin__"} and name in PLAIN_TYPES:
            return PLAIN_TYPES[name]
        if module in {"builtins", "__builtin__"} and name in {"bytes", "bytearray", "str", "slice"}:
            return Inert
        if module.partition(".")[0] in INERT_MODULES or (module, name) in INERT_NAMES:
            return Inert
        raise UserError(
            f"{self.path} is refused",
            why=f"it names {module}.{name}, which a training checkpoint has no use for; "
            "a pickled file can carry code",
            fix="use a checkpoint that your own training run wrote",
        )

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) >= 3 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r:.80}")
        dtype = getattr(pid[1], "dtype_code", None)
        # A storage of another kind (quantized, complex) can only belong to a tensor we skip.
        return _Storage((str(pid[2]), dtype)) if dtype else Inert()


@dataclass
class CheckpointFile:
    """An opened ``.pth``: plain values as they are, tensors as references into the file."""

    path: Path
    content: Any
    _files: dict[str, tuple[int, int]]

    def locate(self, name: str, tensor: StoredTensor) -> TensorRef:
        """Where the bytes of ``tensor`` are. Raises UserError if the file does not hold them."""
        offset, size = self._files.get(tensor.storage, (0, 0))
        item = ITEM_BYTES[tensor.dtype]
        if not tensor.contiguous:
            raise UserError(
                f"{self.path}: tensor {name!r} is stored transposed or with gaps",
                why="its numbers are not in the order of its shape",
            )
        begin = tensor.offset * item
        end = begin + math.prod(tensor.shape) * item
        if begin < 0 or end > size:
            raise UserError(
                f"{self.path}: tensor {name!r} lies outside its storage",
                why=f"bytes {begin:,} to {end:,} of {size:,}",
                fix="use an earlier checkpoint",
            )
        return TensorRef(name, tensor.dtype, tensor.shape, self.path, offset + begin)

    def tensors(self, state: Any, what: str) -> dict[str, TensorRef]:
        """The tensors of one state dict; entries that are no tensors are left out."""
        if not isinstance(state, dict):
            raise UserError(
                f"{self.path} holds no {what}",
                why="it is not a training checkpoint of XTuner",
                fix="choose an iter_N.pth (or epoch_N.pth) of a run's work folder",
            )
        return {
            str(name): self.locate(str(name), value)
            for name, value in state.items()
            if isinstance(value, StoredTensor)
        }


def _payload_offset(file: io.BufferedReader, info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no local header for {info.filename!r}")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name_length) + int(extra_length)


def open_checkpoint(path: Path) -> CheckpointFile:
    """Describe a ``.pth`` or ``.pt`` that ``torch.save`` wrote.

    Raises:
        UserError: missing, empty, torn by a kill or a full disk, an old non-zip file, or one that
            names anything outside of what a training checkpoint holds.
    """
    require_small(path)
    try:
        with fsio.open_file(path) as raw, zipfile.ZipFile(raw) as archive:
            names = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
            if len(names) != 1:
                raise zipfile.BadZipFile("it has no data.pkl as torch.save writes it")
            root = names[0].filename[: -len("data.pkl")]
            files = {}
            for info in archive.infolist():
                if info.filename.startswith(root + "data/"):
                    if info.compress_type != zipfile.ZIP_STORED:
                        raise zipfile.BadZipFile("its tensors are compressed")
                    files[info.filename[len(root) + 5 :]] = (
                        _payload_offset(raw, info),
                        info.file_size,
                    )
            content = _Unpickler(io.BytesIO(archive.read(names[0])), path).load()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", fix="choose a checkpoint of the run") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, struct.error, OSError) as error:
        raise UserError(
            f"{path} is not a whole checkpoint",
            why=f"{error}; {path.stat().st_size:,} bytes",
            fix="use an earlier checkpoint, or train again with room on the disk",
        ) from error
    except UserError:
        raise
    except Exception as error:  # pickle raises nearly anything on a damaged stream
        raise UserError(
            f"{path} cannot be decoded",
            why=f"{type(error).__name__}: {error}",
            fix="use an earlier checkpoint",
        ) from error
    return CheckpointFile(path, content, files)
