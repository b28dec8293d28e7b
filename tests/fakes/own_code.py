"""A tiny model folder that transformers cannot load without the Python inside it."""

from __future__ import annotations

from pathlib import Path

from core import fsio
from tests.fakes import tiny_families

#: Each time the code is imported it leaves a line in this file beside itself.
RAN = "ran.txt"
_CONFIG = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_model"
"""
_MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig

with open({ran!r}, "a") as file:
    file.write("ran\\n")


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
_TOKENIZER = """
from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def save(folder: Path, *, tokenizer: bool = False) -> Path:
    """A Llama under another name.

    Args:
        tokenizer: the tokenizer is a class of the folder too.
    """
    tiny_families.save(folder, "Llama 3")
    config = fsio.read_json(folder / "config.json")
    config |= {
        "model_type": "own_model",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    fsio.write_json(folder / "config.json", config)
    (folder / "configuration_own.py").write_text(_CONFIG)
    (folder / "modeling_own.py").write_text(_MODEL.format(ran=str(folder / RAN)))
    if tokenizer:
        settings = fsio.read_json(folder / "tokenizer_config.json")
        settings |= {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
        }
        fsio.write_json(folder / "tokenizer_config.json", settings)
        (folder / "tokenization_own.py").write_text(_TOKENIZER)
    return folder
