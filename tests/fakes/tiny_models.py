"""Tiny random models of the families that are merged, adapters for them, and checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import fsio
from core.models.catalog import ModelRef

CONFIG_TEXT = """\
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from xtuner.model import SupervisedFinetune

pretrained_model_name_or_path = {base!r}
rank = {r}
model = dict(
    type=SupervisedFinetune,
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=pretrained_model_name_or_path,{quantization}
    ),
    lora=dict(type=LoraConfig, r=rank, lora_alpha={alpha}, {extra}
              lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"),
)
"""


def save_base(
    folder: Path,
    family: str = "llama",
    *,
    tied: bool = True,
    dtype: str = "float32",
    tokenizer: Path | None = None,
    shard: str = "5GB",
    vocab: int | None = None,
    intermediate: int = 160,
) -> ModelRef:
    """A causal LM of 2 layers and width 64 with biases where the family has them.

    With the first ``vocab`` tokens of ``tokenizer``: all of them take most of the time of loading
    a folder, and seconds of a GGUF.
    """
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    torch.manual_seed(0)
    vocab = vocab or (4096 if tokenizer else 320)
    if family == "gpt2":
        config: Any = GPT2Config(vocab_size=vocab, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    else:
        kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
        config = kind(
            vocab_size=vocab,
            hidden_size=64,
            intermediate_size=intermediate,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at the start, so a lost bias would go unseen
            nn.init.normal_(parameter, std=0.05)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        _save_small_tokenizer(tokenizer, folder, vocab)
    return ref_of(folder, family)


def _save_small_tokenizer(full: Path, folder: Path, size: int) -> None:
    """The tokenizer of ``full`` with its first ``size`` tokens (special, bytes, early merges)."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(full).save_pretrained(folder)
    raw = fsio.read_json(folder / "tokenizer.json")
    vocab = {token: i for token, i in raw["model"]["vocab"].items() if i < size}
    raw["model"]["vocab"] = vocab
    raw["model"]["merges"] = [m for m in raw["model"]["merges"] if "".join(m) in vocab]
    fsio.write_json(folder / "tokenizer.json", raw)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


def ref_of(folder: Path, family: str = "llama") -> ModelRef:
    """A reference without the checks of the catalog (these folders may lack a tokenizer)."""
    return ModelRef(folder, folder.name, "folder", "apache-2.0", ("en",), family)


def attach(model: Any, *, std: float = 0.05, **lora: Any) -> Any:
    """A PEFT model whose update is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = {"r": 8, "lora_alpha": 24, "task_type": "CAUSAL_LM", **lora}
    peft = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in peft.named_parameters():
        if any(part in name for part in ("lora_B", "lora_embedding_B", "lora_embedding_A")):
            nn.init.normal_(parameter, std=std)
        elif "lora_magnitude" in name or "modules_to_save" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    return peft.eval()


def load(folder: Path, dtype: str = "float32") -> Any:
    """The model of a folder in ``dtype``."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def tuned(folder: Path, adapter: Path) -> Any:
    """The model of a folder with a saved adapter, as PEFT alone puts them together."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load(folder), adapter).eval()


def save_adapter(base: Path, folder: Path, **lora: Any) -> Any:
    """Write an adapter for ``base``; returns the attached model."""
    peft = attach(load(base), **lora)
    peft.save_pretrained(folder)
    return peft


def xtuner_state(peft: Any) -> OrderedDict[str, torch.Tensor]:
    """What SupervisedFinetune.state_dict gives: trained parameters under ``llm.``."""
    return OrderedDict(
        (f"llm.{name}", tensor)
        for name, tensor in peft.state_dict().items()
        if "lora_" in name or "modules_to_save" in name
    )


def save_checkpoint(peft: Any, path: Path) -> None:
    """A checkpoint as mmengine writes it, with everything that stands in the way of reading it."""
    from mmengine.logging import HistoryBuffer, MessageHub

    hub = MessageHub.get_instance(f"test-{path.stem}")
    hub.update_scalar("train/loss", 1.5)
    hub.update_scalar("train/lr", 1e-3)
    hub.update_info("iter", 3)
    assert isinstance(hub.log_scalars["train/loss"], HistoryBuffer)
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer_state = optimizer.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "meta": {"epoch": 0, "iter": 3, "cfg": "x", "seed": 0, "hook_msgs": {}},
            "state_dict": xtuner_state(peft),
            "message_hub": hub.state_dict(),
            "optimizer": optimizer_state,
            "param_schedulers": [{"last_step": 3}],
        },
        path,
    )


def save_config(
    path: Path, base: Path, *, r: int = 8, alpha: int = 24, extra: str = "", nf4: bool = False
) -> None:
    """An XTuner config for the adapter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quantization = QUANTIZATION if nf4 else ""
    path.write_text(
        CONFIG_TEXT.format(base=str(base), r=r, alpha=alpha, extra=extra, quantization=quantization)
    )


#: The stock QLoRA configs load the base in NF4; float32 so that a CPU can.
QUANTIZATION = """
        torch_dtype=torch.float32,
        quantization_config=dict(
            type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4"),"""


class FusedBlock(nn.Module):
    """InternLM2's layer names: one projection for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.wqkv = nn.Linear(width, 2 * width, bias=False)
        self.attention.wo = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Module()
        self.feed_forward.w1 = nn.Linear(width, 3 * width, bias=False)
        self.feed_forward.w3 = nn.Linear(width, 3 * width, bias=False)
        self.feed_forward.w2 = nn.Linear(3 * width, width, bias=False)


class FusedModel(nn.Module):
    """State dict of an InternLM2 causal LM; it has no forward pass."""

    def __init__(self, width: int = 64, layers: int = 2, vocab: int = 320) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Module()
        self.model.tok_embeddings = nn.Embedding(vocab, width)
        self.model.layers = nn.ModuleList([FusedBlock(width) for _ in range(layers)])
        self.output = nn.Linear(width, vocab, bias=False)
        self.config = {"model_type": "internlm2", "tie_word_embeddings": False}


def save_fused(folder: Path, dtype: str = "float32") -> tuple[ModelRef, FusedModel]:
    """An InternLM2-shaped folder."""
    import json

    from safetensors.torch import save_model

    model = FusedModel().to(getattr(torch, dtype))
    folder.mkdir(parents=True)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {**model.config, "architectures": ["InternLM2ForCausalLM"], "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config))
    return ref_of(folder, "internlm2"), model
