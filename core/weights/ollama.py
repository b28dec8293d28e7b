"""An Ollama Modelfile whose TEMPLATE gives the tokens that the model was trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError


def _go(text: str) -> str:
    """Literal text inside a Go template."""
    return re.sub(r"\{\{", '{{ "{{" }}', text)


def _unbrace(text: str) -> str:
    """Undo the doubling of braces in XTuner's str.format templates."""
    return text.replace("{{", "{").replace("}}", "}")


def go_template(pieces: dict[str, Any]) -> str:
    """The chat template in Go's language, from XTuner's pieces.

    A user turn ends with the head of the reply, as in XTuner's INSTRUCTION, so the text after the
    last user message is the generation prompt.
    """
    system = [_go(_unbrace(p)) for p in pieces["SYSTEM"].split("{system}")]
    user = [_go(_unbrace(p)) for p in pieces["INSTRUCTION"].split("{input}")]
    tail = _go(pieces["SUFFIX"] + pieces["SEP"])
    return (
        "{{ range .Messages }}"
        '{{ if eq .Role "system" }}'
        + system[0]
        + "{{ .Content }}"
        + system[1]
        + '{{ else if eq .Role "user" }}'
        + user[0]
        + "{{ .Content }}"
        + user[1]
        + '{{ else if eq .Role "assistant" }}{{ .Content }}'
        + tail
        + "{{ end }}{{ end }}"
    )


def _quoted(text: str, what: str) -> str:
    if '"""' in text:
        raise UserError(
            f"{what} holds three quotes in a row",
            why="a Modelfile has no way to write them",
            fix="edit the chat template of the model",
        )
    return f'"""{text}"""'


def modelfile(
    weights: str,
    pieces: dict[str, Any],
    stops: Sequence[str],
    *,
    system: str = "",
    license_: str = "",
) -> str:
    """The text of a Modelfile.

    Args:
        weights: the GGUF file, relative to the Modelfile.
        pieces: ``ChatTemplate.xtuner_template()``.
        stops: tokens that end a reply, as text.
        system: what the chat template says for the system by default.
    """
    lines = [f"FROM ./{weights}", f"TEMPLATE {_quoted(go_template(pieces), 'the chat template')}"]
    if system:
        lines.append(f"SYSTEM {_quoted(system, 'the default system turn')}")
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops)]
    if license_ and license_ != "unknown":
        lines.append(f"LICENSE {_quoted(license_, 'the licence')}")
    return "\n".join(lines) + "\n"


def modelfile_for(folder: Path, weights: str, *, license_: str = "") -> str:
    """The Modelfile of a model folder. Raises UserError if its template cannot be expressed."""
    from core.inference.load import load_tokenizer
    from core.models.template import ChatTemplate

    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(tokenizer)
    stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in template.stop_ids]
    return modelfile(
        weights,
        template.xtuner_template(),
        stops,
        system=template.default_system,
        license_=license_,
    )
