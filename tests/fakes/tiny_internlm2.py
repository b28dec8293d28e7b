"""A tiny random InternLM2 folder with the published names, files and tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import fsio
from tests.fakes import published_internlm2 as published

#: tokenizer.model and its settings from InternLM's repository (Apache-2.0), and the ids that
#: InternLM's own tokenizer code gives for some texts.
DATA = Path(__file__).parents[1] / "data" / "internlm2"
DYNAMIC = {"type": "dynamic", "factor": 2.0}
#: What the published folders bring. Nothing of ours may run it.
CODE = ("configuration_internlm2.py", "modeling_internlm2.py", "tokenization_internlm2_fast.py")


def published_config(**changes: Any) -> dict[str, Any]:
    """config.json of InternLM2-chat-1.8B at toy size."""
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "eager",
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 160,
        "max_position_embeddings": 2048,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": DYNAMIC,
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": 92544,
        **changes,
    }


def save(folder: Path, **changes: Any) -> Any:
    """Write the folder; returns the model of the published code that it holds."""
    from safetensors.torch import save_file

    config = published_config(**changes)
    torch.manual_seed(0)
    model = published.build(
        {k: v for k, v in config.items() if k not in ("auto_map", "architectures", "torch_dtype")}
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at the start, so a lost one would go unseen
            nn.init.normal_(parameter, std=0.05)
        elif "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.1)
        else:
            nn.init.normal_(parameter, std=0.08)
    folder.mkdir(parents=True, exist_ok=True)
    fsio.write_json(folder / "config.json", config)
    dtype = getattr(torch, config["torch_dtype"])
    weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(DATA / name, folder / name)
    for name in CODE:
        (folder / name).write_text('raise RuntimeError("code of the folder ran")\n')
    return model


def reopen(folder: Path) -> Any:
    """The folder's weights in the published code."""
    return reopen_as(folder, folder)


def reopen_as(folder: Path, described_in: Path) -> Any:
    """The folder's weights in the published code, with another folder's config.json."""
    from safetensors.torch import load_file

    config = fsio.read_json(described_in / "config.json")
    model = published.build(
        {k: v for k, v in config.items() if k not in ("auto_map", "architectures", "torch_dtype")}
    )
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(str(file))
    model.load_state_dict(weights)
    return model.float()
