"""Import this before forking: what everything that loads a model imports, six seconds of it.

It also builds the tables that transformers builds at first use, and starts no thread of ours.
"""

from __future__ import annotations

import peft  # noqa: F401
from transformers import AutoTokenizer  # noqa: F401
from transformers.models.auto import modeling_auto, tokenization_auto  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

from core.chat import engine, worker  # noqa: F401
from core.models import internlm2

internlm2.register()
