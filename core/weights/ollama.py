"""An Ollama Modelfile whose TEMPLATE gives the tokens that the model was trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.xtuner_template import XTunerTemplate


def _go(text: str) -> str:
    """Literal text inside a Go template."""
    return re.sub(r"\{\{", '{{ "{{" }}', text)


def _unbrace(text: str) -> str:
    """Undo the doubling of braces in XTuner's str.format templates."""
    return text.replace("{{", "{").replace("}}", "}")


def go_template(pieces: dict[str, Any], *, folded: bool = False) -> str:
    """The chat template in Go's language, from XTuner's pieces.

    A user turn ends with the head of the reply, as in XTuner's INSTRUCTION, so the text after the
    last user message is the generation prompt.

    Args:
        folded: a system text goes to the beginning of the next user turn.
    """
    system = [_go(_unbrace(p)) for p in pieces["SYSTEM"].split("{system}")]
    user = [_go(_unbrace(p)) for p in pieces["INSTRUCTION"].split("{input}")]
    tail = _go(pieces["SUFFIX"] + pieces["SEP"])
    said = system[0] + "{{ .Content }}" + system[1]
    before = ""
    if folded:
        said = "{{ $system = .Content }}"
        before = '{{ if $system }}{{ $system }}\n\n{{ $system = "" }}{{ end }}'
    return (
        ('{{ $system := "" }}' if folded else "")
        + "{{ range .Messages }}"
        + '{{ if eq .Role "system" }}'
        + said
        + '{{ else if eq .Role "user" }}'
        + user[0]
        + before
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


def _stop(text: str) -> str:
    plain = not any(mark in text for mark in ('"', "\n", "\r"))
    return f'"{text}"' if plain else _quoted(text, "the turn end")


def modelfile(template: XTunerTemplate, weights: str, license_: str = "") -> str:
    """The text of a Modelfile.

    Args:
        weights: the GGUF file, relative to the Modelfile.

    Raises:
        UserError: the chat template cannot be written in Ollama's language.
    """
    pieces = template.text_pieces
    if pieces is None:
        raise UserError(
            "this chat template cannot be written as a Modelfile",
            why="how it writes a turn depends on where the turn stands",
            fix="export GGUF, which carries the template itself",
        )
    text = go_template(pieces, folded=not template.takes_system)
    lines = [f"FROM ./{weights}", f"TEMPLATE {_quoted(text, 'the chat template')}"]
    if template.default_system:
        lines.append(f"SYSTEM {_quoted(template.default_system, 'the default system turn')}")
    lines += [f"PARAMETER stop {_stop(stop)}" for stop in template.stops]
    if license_ and license_ != "unknown":
        lines.append(f"LICENSE {_quoted(license_, 'the licence')}")
    return "\n".join(lines) + "\n"


def modelfile_for(folder: Path, weights: str, *, license_: str = "") -> str:
    """The Modelfile of a model folder. Raises UserError if its template cannot be expressed."""
    return modelfile(XTunerTemplate(load_tokenizer(folder)), weights, license_)
