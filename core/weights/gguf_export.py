"""A model folder as one GGUF file, for llama.cpp, Ollama and LM Studio.

The ``gguf`` package (llama.cpp's own) gives the file format, the tensor names and the
quantization; what belongs to a family is here. Llama and Qwen2 shapes with a byte-level BPE
tokenizer whose pre-tokenizer is known can be written; everything else is refused by name, with the
command of llama.cpp that may do it. Every file is read back and compared with its source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.families import rope_settings
from core.models.template import ChatTemplate
from core.weights.exported import folding
from core.weights.files import read_model
from core.weights.tensors import TensorRef

Array = npt.NDArray[Any]
Kind = Literal["f32", "f16", "bf16", "q8_0"]

#: model_type -> (GGUF architecture, whether llama.cpp rotates neighbouring pairs, so that the rows
#: of q and k must be interleaved).
ARCHITECTURES = {"llama": ("llama", True), "qwen2": ("qwen2", False)}
#: Keys of config.json that are written, that the tensors show, or that change no number.
_KNOWN_KEYS = frozenset(
    {
        "attention_bias",
        "attention_dropout",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pretraining_tp",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "use_sliding_window",
        "vocab_size",
        "_attn_implementation",
        "auto_map",
        "bos_token_id",
        "eos_token_id",
        "is_llama_config",
        "pad_token_id",
        "transformers.js_config",
        "unk_token_id",
    }
)
#: What to run where this module refuses.
OTHER_WAY = "python convert_hf_to_gguf.py FOLDER (from the llama.cpp repository) may know it"
#: Largest difference after reading back, as a share of the tensor's largest value: half a step of
#: the type, for q8_0 half of 1/127 of a block's largest value plus the fp16 rounding of its scale.
_READ_BACK = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.0048}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer in GGUF's terms. ``pre``: llama.cpp's name of the pre-tokenizer."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    special: dict[str, int]
    adds_bos: bool
    chat_template: str


def _refuse(what: str, why: str) -> UserError:
    return UserError(f"{what} cannot be written as GGUF here", why=why, fix=OTHER_WAY)


def _pre_tokenizer(tokenizer: Mapping[str, Any], family: str) -> str:
    """llama.cpp's name for the way that text is split before BPE.

    The name decides the tokens, so a guess would give a model that reads garbage.
    """
    text = fsio.dump_json(tokenizer.get("pre_tokenizer"))
    if '"type": "Digits", "individual_digits": true' in text and "Regex" not in text:
        return "smollm"
    if "Regex" in text and r"\\p{N}{1,3}" in text:
        return "llama-bpe"
    if "Regex" in text and r"\\p{N}|" in text and family == "qwen2":
        return "qwen2"
    if family == "llama" and "Regex" not in text and '"ByteLevel"' in text and "Digits" not in text:
        return "gpt-2"
    raise _refuse("this tokenizer", "its pre-tokenizer is none that is known here")


def read_vocabulary(folder: Path, rows: int, family: str) -> Vocabulary:
    """The tokenizer of ``folder``, filled up to the ``rows`` of the embedding.

    Raises:
        UserError: not byte-level BPE, an unknown pre-tokenizer, or more tokens than rows.
    """
    from gguf import TokenType

    loaded = load_tokenizer(folder)
    template = ChatTemplate(loaded)
    raw = fsio.read_json(folder / "tokenizer.json")
    model = raw["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _refuse("this tokenizer", "it is not byte-level BPE")
    added = {entry["id"]: entry for entry in raw.get("added_tokens", [])}
    names = {index: token for token, index in model["vocab"].items()}
    names |= {index: entry["content"] for index, entry in added.items()}
    if max(names) >= rows:
        raise UserError(
            f"{folder} has token ids up to {max(names)}, but an embedding of {rows} rows",
            fix="use the tokenizer that belongs to the model",
        )
    tokens, types = [], []
    for index in range(rows):
        if index not in names:
            tokens.append(f"[PAD{index}]")
            types.append(int(TokenType.UNUSED))
            continue
        tokens.append(names[index])
        special = added.get(index, {}).get("special")
        kind = TokenType.NORMAL if index not in added else TokenType.USER_DEFINED
        types.append(int(TokenType.CONTROL if special else kind))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    special_ids = {
        "bos": loaded.bos_token_id,
        "eos": loaded.eos_token_id,
        "pad": loaded.pad_token_id,
        "unk": loaded.unk_token_id,
        # llama.cpp stops at it too; a turn end of ordinary tokens has no place in the file.
        "eot": next((i for i in template.stop_ids if i != loaded.eos_token_id), None),
    }
    bos = loaded.bos_token_id
    adds_bos = bos is not None and loaded("x", add_special_tokens=True)["input_ids"][:1] == [bos]
    return Vocabulary(
        tokens,
        types,
        merges,
        _pre_tokenizer(raw, family),
        {name: index for name, index in special_ids.items() if index is not None},
        adds_bos,
        folding(template),
    )


def _interleave(array: Array, heads: int) -> Array:
    """Rows of each head from halves (HF's rotation) to neighbouring pairs (llama.cpp's)."""
    half = array.shape[0] // heads // 2
    split = array.reshape(heads, 2, half, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(array.shape))


@dataclass(frozen=True)
class _Item:
    """One tensor of the file."""

    name: str
    ref: TensorRef
    heads: int
    kind: Kind

    def array(self) -> Array:
        """float32, rows interleaved where the architecture wants it."""
        array = self.ref.to_float32()
        return _interleave(array, self.heads) if self.heads else array


def _require_known(config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for anything which the file would not say."""
    from transformers import GenerationConfig, PreTrainedConfig

    known = _KNOWN_KEYS | set(PreTrainedConfig().to_dict()) | set(GenerationConfig().to_dict())
    unknown = {k: v for k, v in config.items() if v and k not in known}
    if unknown.get("partial_rotary_factor") == 1:
        del unknown["partial_rotary_factor"]
    if unknown:
        key, value = next(iter(unknown.items()))
        raise _refuse(f"a model with {key}={value!r:.60}", "what it does is not known here")
    if config.get("hidden_act", "silu") != "silu":
        raise _refuse(f"a model with hidden_act={config['hidden_act']!r}", "only silu is")
    if rope_settings(config)[1]:
        raise _refuse("a model with scaled rotary positions", "the scaling is not carried over")
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    window = config.get("sliding_window") or math.inf
    if config.get("use_sliding_window", config["model_type"] != "qwen2") is False:
        window = math.inf
    if kinds or window < int(config["max_position_embeddings"]):
        raise _refuse("a model with a sliding window", "every layer would see everything")


def _items(folder: Path, config: Mapping[str, Any], kind: Kind) -> list[_Item]:
    from gguf import MODEL_ARCH, get_tensor_name_map

    family = str(config.get("model_type"))
    if family not in ARCHITECTURES:
        raise _refuse(f"a model of type {family!r}", f"only {', '.join(ARCHITECTURES)} are")
    _require_known(config)
    architecture, interleaved = ARCHITECTURES[family]
    arch = MODEL_ARCH[architecture.upper()]
    names = get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    heads = {"q_proj": int(config["num_attention_heads"])}
    heads["k_proj"] = int(config.get("num_key_value_heads") or heads["q_proj"])
    items = []
    for key, ref in read_model(folder).items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            if key.endswith("rotary_emb.inv_freq"):
                continue  # computed from rope_theta by every reader
            raise _refuse(f"tensor {key!r}", f"{architecture} has no such tensor in GGUF")
        if key == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        module = key.rsplit(".", 2)[-2]
        wide = len(ref.shape) == 2 and (kind != "q8_0" or ref.shape[1] % 32 == 0)
        # llama.cpp keeps norms and biases in float32; its kernels expect that.
        items.append(
            _Item(name, ref, heads.get(module, 0) if interleaved else 0, kind if wide else "f32")
        )
    return items


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
    shape, count = item.ref.shape, int(np.prod(item.ref.shape))
    if item.kind == "q8_0":  # blocks of 32 numbers: a float16 scale and 32 bytes
        return (*shape[:-1], shape[-1] // 32 * 34), np.uint8, count // 32 * 34
    size = {"f32": 4, "f16": 2, "bf16": 2}[item.kind]
    if item.kind == "bf16":
        return (*shape[:-1], shape[-1] * 2), np.uint8, count * 2
    return shape, np.float32 if size == 4 else np.float16, count * size


def _describe(
    writer: Any,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    kind: Kind,
    name: str,
    license_: str,
) -> None:
    from gguf import LlamaFileType

    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
    file_type = {
        "f32": "ALL_F32",
        "f16": "MOSTLY_F16",
        "bf16": "MOSTLY_BF16",
        "q8_0": "MOSTLY_Q8_0",
    }[kind]
    writer.add_name(name)
    if license_ != "unknown":
        writer.add_license(license_)
    writer.add_file_type(int(LlamaFileType[file_type]))
    writer.add_quantization_version(2)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(rope_settings(config)[0])
    writer.add_rope_dimension_count(head_size)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for key, index in vocabulary.special.items():
        getattr(writer, f"add_{key}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(vocabulary.chat_template)


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
    from gguf import GGMLQuantizationType, GGUFWriter

    if kind not in _READ_BACK:
        raise UserError(f"unknown GGUF type {kind!r}", fix=f"one of {', '.join(_READ_BACK)}")
    config = fsio.read_json(folder / "config.json")
    items = _items(folder, config, kind)
    embedding = next(i for i in items if i.name == "token_embd.weight")
    family = str(config["model_type"])
    vocabulary = read_vocabulary(folder, embedding.ref.shape[0], family)
    writer = GGUFWriter(path, ARCHITECTURES[family][0])
    try:
        _describe(writer, config, vocabulary, kind, name or folder.name, license_)
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
    from gguf import GGUFReader

    for tensor in GGUFReader(path).tensors:
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
