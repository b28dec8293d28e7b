"""A model folder as one GGUF file, for llama.cpp, Ollama and LM Studio.

The ``gguf`` package (llama.cpp's own) gives the file format, the tensor names and the
quantization; ``gguf_families`` says what belongs to a family, ``gguf_vocabulary`` how a tokenizer
is written. What llama.cpp could not load, or would compute otherwise, is refused by name before a
byte is written. Every file is read back and compared with its source.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError
from core.models.families import INTERNLM2_NAMES, fused_rows
from core.weights.files import read_model
from core.weights.gguf_families import GgufFamily, describe, family_of, refusal, rope_of
from core.weights.gguf_vocabulary import read_vocabulary

Array = npt.NDArray[Any]
Kind = Literal["f32", "f16", "bf16", "q8_0"]

#: Largest difference after reading back, as a share of the tensor's largest value: half a step of
#: the type, for q8_0 half of 1/127 of a block's largest value plus the fp16 rounding of its scale.
_READ_BACK = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.0048}


def _interleave(array: Array, heads: int) -> Array:
    """Rows of each head from halves (HF's rotation) to neighbouring pairs (llama.cpp's)."""
    half = array.shape[0] // heads // 2
    split = array.reshape(heads, 2, half, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(array.shape))


@dataclass(frozen=True)
class _Item:
    """One tensor of the file. ``array``: its numbers in float32, as llama.cpp wants them."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    array: Callable[[], Array]


def _sources(
    folder: Path, config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Array]]]:
    """(name in Llama's terms, shape, numbers) of each tensor of the folder.

    InternLM2's are renamed, and ``wqkv`` is split; its rows lie in groups (``fused_rows``).
    """
    published = config["model_type"] == "internlm2"
    for key, ref in read_model(folder).items():
        if published and ".wqkv." in key:
            for name, rows in zip("qkv", fused_rows(config), strict=True):
                shape = (len(rows), *ref.shape[1:])
                renamed = key.replace("attention.wqkv", f"self_attn.{name}_proj")
                yield renamed, shape, lambda ref=ref, rows=rows: ref.to_float32()[rows]  # type: ignore[misc]
            continue
        name = key
        for theirs, ours in INTERNLM2_NAMES.items() if published else ():
            theirs = theirs.removeprefix("^")
            name = ours + name[len(theirs) :] if name.startswith(theirs) else name
            name = name.replace(f".{theirs}.", f".{ours}.")
        yield name, ref.shape, ref.to_float32


def _items(folder: Path, config: Mapping[str, Any], family: GgufFamily, kind: Kind) -> list[_Item]:
    from gguf import MODEL_ARCH, get_tensor_name_map

    arch = MODEL_ARCH[family.architecture.upper()]
    names = get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    heads = {"attn_q": int(config["num_attention_heads"])}
    heads["attn_k"] = int(config.get("num_key_value_heads") or heads["attn_q"])
    items = []
    for key, shape, numbers in _sources(folder, config):
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if key.endswith("rotary_emb.inv_freq"):
            continue  # computed from rope_theta by every reader
        layer = name.split(".")[-2] if name else ""
        if name is None or (name.endswith(".bias") and layer not in family.biases):
            raise refusal(f"tensor {key!r}", f"{family.architecture} has no such tensor in GGUF")
        if name == "output.weight" and config.get("tie_word_embeddings", family.one_added):
            continue
        wide = len(shape) == 2 and (kind != "q8_0" or shape[1] % 32 == 0)
        if family.interleaved and layer in heads:
            numbers = _then(numbers, _interleave, heads[layer])
        if family.one_added and name.endswith("norm.weight"):
            numbers = _then(numbers, np.add, np.float32(1))
        # llama.cpp keeps norms and biases in float32; its kernels expect that.
        items.append(_Item(name, tuple(shape), kind if wide else "f32", numbers))
    factors = rope_of(config).factors
    if factors is not None:
        items.append(_Item("rope_freqs.weight", factors.shape, "f32", lambda: factors))
    return items


def _then(
    numbers: Callable[[], Array], change: Callable[..., Array], by: Any
) -> Callable[[], Array]:
    return lambda: change(numbers(), by)


def _encode(array: Array, kind: Kind) -> Array:
    from gguf import GGMLQuantizationType, quants

    if kind == "f32":
        return np.ascontiguousarray(array, dtype=np.float32)
    if kind == "f16":
        if float(np.abs(array).max()) > 65504:
            raise UserError("a weight is too large for f16", fix="write bf16 or f32")
        return array.astype(np.float16)
    return quants.quantize(array, GGMLQuantizationType[kind.upper()])


def _encoded_bytes(item: _Item) -> tuple[tuple[int, ...], Any, int]:
    """(shape, numpy dtype, bytes) of the encoded tensor, as the writer wants to know them."""
    shape, count = item.shape, int(np.prod(item.shape))
    if item.kind == "q8_0":  # blocks of 32 numbers: a float16 scale and 32 bytes
        return (*shape[:-1], shape[-1] // 32 * 34), np.uint8, count // 32 * 34
    size = {"f32": 4, "f16": 2, "bf16": 2}[item.kind]
    if item.kind == "bf16":
        return (*shape[:-1], shape[-1] * 2), np.uint8, count * 2
    return shape, np.float32 if size == 4 else np.float16, count * size


def write_gguf(
    folder: Path,
    path: Path,
    *,
    kind: Kind = "f16",
    name: str | None = None,
    license_: str = "unknown",
    on_progress: OnProgress | None = None,
) -> None:
    """Write ``folder`` as the GGUF file ``path`` and read it back.

    Args:
        kind: type of the weight matrices; vectors stay float32.

    Raises:
        UserError: a family, tokenizer or tensor that is not supported, or a file that does not
            read back as it was meant.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

    if kind not in _READ_BACK:
        raise UserError(f"unknown GGUF type {kind!r}", fix=f"one of {', '.join(_READ_BACK)}")
    config = fsio.read_json(folder / "config.json")
    family = family_of(config)
    items = _items(folder, config, family, kind)
    embedding = next(i for i in items if i.name == "token_embd.weight")
    vocabulary = read_vocabulary(folder, embedding.shape[0], str(config["model_type"]))
    writer = GGUFWriter(path, family.architecture)
    try:
        writer.add_name(name or folder.name)
        if license_ != "unknown":
            writer.add_license(license_)
        mostly = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
        writer.add_file_type(int(LlamaFileType[mostly]))
        writer.add_quantization_version(2)
        describe(writer, config, family)
        vocabulary.describe(writer)
        for item in items:
            shape, dtype, size = _encoded_bytes(item)
            raw = GGMLQuantizationType[item.kind.upper()]
            writer.add_tensor_info(item.name, shape, np.dtype(dtype), size, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for at, item in enumerate(items, 1):
            writer.write_tensor_data(_encode(item.array(), item.kind))
            if on_progress:
                on_progress("gguf", at, len(items))
    finally:
        writer.close()
    _read_back(path, items)


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    from gguf import GGUFReader, GGUFValueType

    class Tensors(GGUFReader):
        """Passes by the lists, of which the reader makes four objects an entry.

        A vocabulary of 92,544 tokens took it longer than everything else of an export.
        """

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            whole = self.data.data
            kind, count = struct.unpack_from("<IQ", whole, orig_offs)
            end = orig_offs + 12
            if kind == GGUFValueType.STRING:
                for _ in range(count):
                    end += 8 + struct.unpack_from("<Q", whole, end)[0]
            else:
                end += count * np.dtype(self.gguf_scalar_to_np[GGUFValueType(kind)]).itemsize
            return end - orig_offs, [self.data[orig_offs:end]], [0], [GGUFValueType.ARRAY]

    for tensor in Tensors(path).tensors:
        yield tensor.name, tensor


def _read_back(path: Path, items: list[_Item]) -> None:
    """Decode every tensor of the file and compare it with its source."""
    from gguf import dequantize

    stored = dict(_tensors(path))
    if stored.keys() != {item.name for item in items}:
        raise UserError(f"{path} does not hold the tensors that were written to it")
    for item in items:
        tensor, wanted = stored[item.name], item.array()
        got = dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        limit = _READ_BACK[item.kind] * float(np.abs(wanted).max()) + 1e-7 * (item.kind != "f32")
        if float(np.abs(got - wanted).max()) > limit:
            raise UserError(f"{path}: {item.name} reads back as other numbers")
