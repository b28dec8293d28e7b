"""InternLM's own modelling code, as it ships inside XTuner, made to import beside transformers 5.

It is the reference that ours is held against; it is run, not copied. What it imports and
transformers 5 no longer has serves documentation and other attention kernels than the eager one.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch

_PACKAGE = "published_internlm2_code"


def _stand_in(module: str, **names: Any) -> None:
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError:
        loaded = sys.modules[module] = types.ModuleType(module)
    for name, value in names.items():
        if not hasattr(loaded, name):
            setattr(loaded, name, value)


def _undecorated(*args: Any, **kwargs: Any) -> Any:
    return lambda function: function


def modelling() -> Any:
    """The module ``modeling_internlm2``."""
    if _PACKAGE not in sys.modules:
        found = importlib.util.find_spec("xtuner")
        assert found is not None and found.origin is not None
        folder = Path(found.origin).parent / "_lite" / "modelings" / "internlm2"
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[_PACKAGE] = package
        _stand_in("transformers.modeling_attn_mask_utils", AttentionMaskConverter=object)
        _stand_in("transformers.pytorch_utils", ALL_LAYERNORM_LAYERS=[])
        _stand_in(
            "transformers.utils",
            add_start_docstrings=_undecorated,
            add_start_docstrings_to_model_forward=_undecorated,
            replace_return_docstrings=_undecorated,
            is_flash_attn_greater_or_equal_2_10=lambda: False,
        )
    return importlib.import_module(f"{_PACKAGE}.modeling_internlm2")


def build(config: dict[str, Any]) -> Any:
    """A model of the published class with random weights."""
    code = modelling()
    settings = importlib.import_module(f"{_PACKAGE}.configuration_internlm2")
    made = settings.InternLM2Config(**copy.deepcopy(config))  # it writes into rope_scaling
    made._attn_implementation = "eager"
    if not config.get("rope_scaling"):
        made.rope_theta, made.rope_scaling = config["rope_theta"], None  # 5 fills in a default
    return code.InternLM2ForCausalLM(made).eval()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, vocab); without a cache, which is where the published code breaks."""
    positions = torch.arange(ids.shape[1])[None].expand(ids.shape[0], -1)
    with torch.inference_mode():
        out = model(input_ids=ids, position_ids=positions, use_cache=False, return_dict=True)
    return out.logits.float()
