"""llama.cpp itself reads our GGUF files: the same tokens, the same greedy reply as transformers.

Needs node and the package of tests/node (a prebuilt llama.cpp); see CONTRIBUTING.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from core import fsio
from core.errors import UserError
from core.inference.load import load_model, load_tokenizer
from core.models.template import ChatTemplate
from core.weights.gguf_export import write_gguf
from tests.fakes import templates
from tests.fakes import tiny_internlm2 as internlm2

pytestmark = pytest.mark.slow

NODE = Path(__file__).parents[1] / "node"
TEXTS = ["Hello, who are you?", "  two  spaces\n\tand a tab", "你是谁？我是小石。", "<|im_end|>x"]
COUNT = 24

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
#: https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct: tokenizer.json
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": QWEN2_SPLIT},
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ],
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
#: Name of the case: (config class, pieces or bytes, settings).
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "bytes", {"tie_word_embeddings": True, "mlp_bias": True}),
    "llama-3.1": ("Llama", "bytes", {"rope_parameters": LLAMA3, "attention_bias": True}),
    "llama-2": ("Llama", "pieces", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "mistral": ("Mistral", "pieces", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", "bytes", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", "bytes", {"head_dim": 32}),
    "gemma": ("Gemma", "pieces", {"head_dim": 32}),
    "gemma2": ("Gemma2", "pieces", GEMMA),
    "gemma3": ("Gemma3Text", "pieces", {**GEMMA, "num_hidden_layers": 7}),
}
INTERNLM2: dict[str, dict[str, Any]] = {
    "internlm2": {},
    "internlm2-linear-bias": {"bias": True, "rope_scaling": {"type": "linear", "factor": 3.0}},
}


@lru_cache(maxsize=1)
def internlm2_tokenizer() -> str:
    """InternLM2's tokenizer as JSON."""
    with tempfile.TemporaryDirectory() as name:
        internlm2.save(Path(name), hidden_size=4, num_hidden_layers=1)
        return load_tokenizer(Path(name)).backend_tokenizer.to_str()  # type: ignore[attr-defined]


def pieces(folder: Path) -> int:
    """A small SentencePiece-like tokenizer, cut out of InternLM2's; returns its size."""
    raw = json.loads(internlm2_tokenizer())
    ids = raw["model"]["vocab"]
    kept = [t for t, i in ids.items() if i < 1200 or (len(t) == 1 and t.isascii()) or t == "▁"]
    vocab = {token: i for i, token in enumerate(kept)}
    joins = [m for m in raw["model"]["merges"] if all(p in vocab for p in (*m, "".join(m)))]
    raw["model"] |= {"vocab": vocab, "merges": joins}
    specials = ["<|im_start|>", "<|im_end|>"]
    raw["added_tokens"] = [e for e in raw["added_tokens"] if e["id"] < 3]
    raw["added_tokens"] += [
        {**raw["added_tokens"][0], "id": len(vocab) + i, "content": t}
        for i, t in enumerate(specials)
    ]
    # As Gemma writes it: the same text, by a normalizer.
    raw["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    raw["pre_tokenizer"] = None
    fsio.write_json(folder / "tokenizer.json", raw)
    return len(vocab) + len(specials)


def save_tokenizer(folder: Path, kind: str, bundled: Path, qwen: bool) -> int:
    """Write the tokenizer; returns how many rows the embedding needs."""
    if kind == "pieces":
        size = pieces(folder)
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    else:
        raw = fsio.read_json(bundled / "tokenizer.json")
        if qwen:
            raw["pre_tokenizer"] = QWEN2_PRE_TOKENIZER
        fsio.write_json(folder / "tokenizer.json", raw)
        size, special = 49152, {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    fsio.write_json(folder / "tokenizer_config.json", {**config, "chat_template": templates.CHATML})
    return size


def lively(model: Any) -> Any:
    """Weights large enough that greedy choices are no near ties, norms and biases not trivial."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        wide = 0.3 if "norm" in name or name.endswith("bias") else 0.2
        wide = 0.05 if "embed" in name else wide  # else a model only repeats its last token
        torch.nn.init.normal_(parameter, mean=float("norm" in name) * 0.3, std=wide)
    return model


def save_case(folder: Path, case: str, bundled: Path) -> None:
    import transformers

    folder.mkdir()
    if case in INTERNLM2:
        internlm2.save(folder, **INTERNLM2[case])
        return
    kind, tokenizer, settings = CASES[case]
    size = save_tokenizer(folder, tokenizer, bundled, kind.startswith("Qwen"))
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "vocab_size": size, **settings})
    lively(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(folder)


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """transformers, one whole forward a token: nothing of ours takes part."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(COUNT):
            ids.append(
                int(model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax())
            )
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def llama_cpp() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Ask llama.cpp; one process for many files."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so there is no llama.cpp to read the files")
    if not (NODE / "node_modules" / "node-llama-cpp").is_dir():
        pytest.skip("llama.cpp is not installed: npm ci --prefix tests/node")

    def ask(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [node, "greedy.mjs"],
            cwd=NODE,
            input=json.dumps(files),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return ask


@pytest.fixture(scope="module")
def answers(
    llama_cpp: Any, bundled_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Path, Any, dict[str, Any]]]:
    """Case to its folder, its tokenizer, and what llama.cpp was asked and said."""
    root = tmp_path_factory.mktemp("gguf")
    asked, tokenizers = [], {}
    names = [*CASES, *INTERNLM2]
    for case in names:
        save_case(root / case, case, bundled_model)
        write_gguf(root / case, root / f"{case}.gguf", kind="f32")
        tokenizers[case] = load_tokenizer(root / case)
        long = tokenizers[case].encode(" ".join(TEXTS) * 3, add_special_tokens=False)[:60]
        file = {"file": str(root / f"{case}.gguf"), "texts": TEXTS}
        asked.append({**file, "prompts": [long[:9], long], "count": COUNT})
    said = llama_cpp(asked)
    return {
        case: (root / case, tokenizers[case], {**question, **answer})
        for case, question, answer in zip(names, asked, said, strict=True)
    }


@pytest.mark.parametrize("case", [*CASES, *INTERNLM2])
def test_llama_cpp_reads_and_answers_as_transformers(answers: Any, case: str) -> None:
    folder, tokenizer, said = answers[case]
    assert "error" not in said, said
    wanted = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    assert said["tokens"] == wanted
    # A text is fed as in training: with the beginning that the chat template writes, or without.
    assert said["adds_bos"] == bool(ChatTemplate(tokenizer).bos)
    model = load_model(folder, dtype="float32")
    for prompt, reply in zip(said["prompts"], said["replies"], strict=True):
        expected = greedy(model, prompt)
        assert reply == expected[: len(reply)]
        assert len(reply) == COUNT or reply[-1] in (2, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"final_logit_softcapping": None}, "final_logit_softcapping"),
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_activation": "relu"}, "hidden_act"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_a_gemma_that_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, bundled_model: Path, change: dict[str, Any], word: str
) -> None:
    save_case(tmp_path / "gemma2", "gemma2", bundled_model)
    config = fsio.read_json(tmp_path / "gemma2" / "config.json")
    fsio.write_json(tmp_path / "gemma2" / "config.json", {**config, **change})
    with pytest.raises(UserError, match=word):
        write_gguf(tmp_path / "gemma2", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
