"""A tokenizer in GGUF's terms: byte-level BPE, or SentencePiece's BPE with byte fallback."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.template import ChatTemplate
from core.weights.exported import folding
from core.weights.gguf_families import refusal

_SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer.

    Args:
        model: ``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece).
        pre: llama.cpp's name of the pre-tokenizer; "default" for SentencePiece.
        merges: of byte-level BPE; ``scores``: of SentencePiece, a higher one is joined first.
    """

    tokens: list[str]
    types: list[int]
    model: str
    pre: str
    special: dict[str, int]
    adds_bos: bool
    adds_space: bool
    chat_template: str
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def describe(self, writer: Any) -> None:
        """Write it into the file's header."""
        writer.add_vocab_size(len(self.tokens))
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        else:
            writer.add_token_merges(self.merges)
        for key, index in self.special.items():
            getattr(writer, f"add_{key}_token_id")(index)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(self.adds_space)
        writer.add_chat_template(self.chat_template)


def _pre_tokenizer(tokenizer: Mapping[str, Any], family: str) -> str:
    """llama.cpp's name for the way that text is split before BPE.

    The name decides the tokens, so a guess would give a model that reads garbage.
    """
    text = fsio.dump_json(tokenizer.get("pre_tokenizer"))
    if '"type": "Digits", "individual_digits": true' in text and "Regex" not in text:
        return "smollm"
    if "Regex" in text and r"\\p{N}{1,3}" in text:
        return "llama-bpe"
    if "Regex" in text and r"\\p{N}|" in text and family in ("qwen2", "qwen3"):
        return "qwen2"
    if family == "llama" and "Regex" not in text and '"ByteLevel"' in text and "Digits" not in text:
        return "gpt-2"
    raise refusal("this tokenizer", "its pre-tokenizer is none that is known here")


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether SentencePiece puts a space before a text; refuses what llama.cpp would not do."""
    space = False
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step.get("prepend") == _SPACE:
            space = True
        elif step["type"] != "Replace" or step.get("content") != _SPACE:
            raise refusal("this tokenizer", f"its normalizer does {step['type']}")
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("prepend_scheme") in ("always", "never"):
            space = space or step["prepend_scheme"] == "always"
        elif step["type"] != "Split" or step.get("pattern") != {"String": " "}:
            raise refusal("this tokenizer", f"its pre-tokenizer does {step['type']}")
    return space


def _steps(stage: Any, key: str) -> Iterator[Mapping[str, Any]]:
    if stage:
        yield from stage[key] if stage["type"] == "Sequence" else [stage]


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores: a piece that is joined earlier has a higher one.

    tokenizers keeps the order of the joins in place of the scores (``SentencePieceExtractor``).
    """
    rank: dict[str, int] = {}
    for merge in model["merges"]:
        piece = "".join(merge) if not isinstance(merge, str) else merge.replace(" ", "")
        rank.setdefault(piece, len(rank) + 1)
    return [float(-rank.get(token, 0)) for token in tokens]


def read_vocabulary(folder: Path, rows: int, family: str) -> Vocabulary:
    """The tokenizer of ``folder``, filled up to the ``rows`` of the embedding.

    Args:
        family: ``model_type``; some pre-tokenizers are told by it.

    Raises:
        UserError: no BPE, an unknown pre-tokenizer, no end of text, or more tokens than rows.
    """
    loaded: Any = load_tokenizer(folder)
    if not hasattr(loaded, "backend_tokenizer"):
        raise refusal("this tokenizer", "it is not one of the tokenizers library")
    template = ChatTemplate(loaded)
    raw = json.loads(loaded.backend_tokenizer.to_str())
    model = raw["model"]
    if model.get("type") != "BPE":
        raise refusal("this tokenizer", f"it is {model.get('type')}, not BPE")
    added = {entry["id"]: entry for entry in raw.get("added_tokens", [])}
    names = {index: token for token, index in model["vocab"].items()}
    names |= {index: entry["content"] for index, entry in added.items()}
    if max(names) >= rows:
        raise UserError(
            f"{folder} has token ids up to {max(names)}, but an embedding of {rows} rows",
            fix="use the tokenizer that belongs to the model",
        )
    pieces = bool(model.get("byte_fallback"))
    tokens = [names.get(index, f"[PAD{index}]") for index in range(rows)]
    unknown = loaded.unk_token_id if pieces else None
    return Vocabulary(
        tokens,
        [
            _type(names.get(index), added.get(index), index == unknown, pieces)
            for index in range(rows)
        ],
        "llama" if pieces else "gpt2",
        "default" if pieces else _pre_tokenizer(raw, family),
        _special(loaded, template),
        bool(template.bos),  # as trained; who renders the template itself drops a second one
        pieces and _adds_space(raw),
        folding(template),
        merges=[m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        scores=_scores(model, tokens) if pieces else [],
    )


def _type(name: str | None, added: Mapping[str, Any] | None, unknown: bool, pieces: bool) -> int:
    from gguf import TokenType

    if name is None:
        return int(TokenType.UNUSED)
    if unknown:
        return int(TokenType.UNKNOWN)
    if added is not None:
        return int(TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED)
    is_byte = pieces and len(name) == 6 and name.startswith("<0x")
    return int(TokenType.BYTE if is_byte else TokenType.NORMAL)


def _special(loaded: Any, template: ChatTemplate) -> dict[str, int]:
    """GGUF's name of each special token to its id."""
    if loaded.eos_token_id is None:
        raise refusal("this tokenizer", "it has no end-of-text token, and llama.cpp needs one")
    found = {
        "bos": loaded.bos_token_id,
        "eos": loaded.eos_token_id,
        "pad": loaded.pad_token_id,
        "unk": loaded.unk_token_id,
        # llama.cpp stops at it too; a turn end of ordinary tokens has no place in the file.
        "eot": next((i for i in template.stop_ids if i != loaded.eos_token_id), None),
    }
    return {name: index for name, index in found.items() if index is not None}
