"""Chat templates and patterns of foreign folders, run in a child with limits.

A chat template is a program and a regular expression can take for ever, so neither is run in the
process that holds the pages, or a model: one child a process renders and matches, and dies with
what takes more than its share. It is kept between calls, so a call costs a tenth of a millisecond
and the first one under a second. Packs need no child: ``persona.templating`` allows a language
that cannot loop or grow.

Not covered: what the tokenizers library does with a foreign ``tokenizer.json``.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.paths import REPO

#: Seconds of processor time, bytes of memory beyond the child's own, and characters of output
#: that one call may take. A real template takes about a millisecond.
CPU_SECONDS = 3.0
MEMORY_BYTES = 1 << 30
OUTPUT_CHARS = 4_000_000
#: The child's processor time decides; this only ends a child that sleeps.
_WALL_SECONDS = 120.0
#: PEFT's settings that are regular expressions when they are texts, and those that always are.
_MAYBE_PATTERNS = ("target_modules", "exclude_modules")
_PATTERN_TABLES = ("rank_pattern", "alpha_pattern")


class TemplateRefused(UserError):
    """A chat template that itself says no to a conversation (``raise_exception``), or is broken."""


class _Child:
    """One call at a time; started when it is first needed, and again after it had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The child's answer; ``{"died": why}`` if it had to be ended."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            try:
                answer = self._exchange(self._process, line)
            except BaseException:  # also an interrupt: what it would answer next is not for us
                self._end()
                raise
            if answer is None:
                return {"died": self._end()}
            return answer

    def _start(self) -> subprocess.Popen[bytes]:
        passed = (
            *("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"),
            *("PERSONA_RUN_MARK", "TZ"),
        )
        env = {name: os.environ[name] for name in passed if name in os.environ}
        # Without torch the child starts in a third of the time, with a tenth of the memory.
        env |= {"USE_TORCH": "0", "USE_TF": "0", "USE_FLAX": "0", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "core.models.sandbox"],
            cwd=REPO,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any] | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        if not select.select([process.stdout], [], [], _WALL_SECONDS)[0]:
            return None
        answer = process.stdout.readline()
        return json.loads(answer) if answer.endswith(b"\n") else None

    def _end(self) -> str:
        assert self._process is not None
        process, self._process = self._process, None
        process.kill() if process.poll() is None else None
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if -status in (signal.SIGPROF, signal.SIGXCPU):
            return f"it ran for more than {CPU_SECONDS:.0f} s"
        return "it took more memory or time than it may"


_child = _Child()
os.register_at_fork(after_in_child=lambda: _child.__init__())  # type: ignore[misc]


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    thinking: bool = False,
    special_tokens: Mapping[str, Any],
    name: str,
) -> str:
    """A conversation as a chat template writes it, just as transformers renders it.

    Args:
        thinking: what templates that can think are told about it (``enable_thinking``).
        name: the folder that the template is from, for messages.

    Raises:
        TemplateRefused: the template raises, or is no template.
        UserError: it takes more time, memory or text than a template may.
    """
    answer = _child.ask(
        {
            "do": "render",
            "template": template,
            "messages": list(messages),
            "prompt": add_generation_prompt,
            "thinking": thinking,
            "special": {k: v for k, v in special_tokens.items() if isinstance(v, str | list)},
        }
    )
    if "text" in answer:
        return str(answer["text"])
    if "raised" in answer:
        raise TemplateRefused(
            f"the chat template of {name} cannot render this conversation",
            why=str(answer["raised"]),
            fix="edit chat_template in the model's tokenizer_config.json, or choose another model",
        )
    raise UserError(
        f"the chat template of {name} was stopped",
        why=str(answer.get("died") or answer.get("limit")),
        fix="choose another model, or correct chat_template in its tokenizer_config.json",
    )


def require_matchable(config: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Try an adapter's patterns on a model's layer names before anybody else matches them.

    What passes here takes no longer when PEFT, or we, match the same names again.

    Args:
        config: ``adapter_config.json`` as ``lora.read`` gives it.
        where: the adapter, for messages.

    Raises:
        UserError: a pattern is none, or takes more time than matching names may.
    """
    patterns = [config[key] for key in _MAYBE_PATTERNS if isinstance(config.get(key), str)]
    for key in _PATTERN_TABLES:
        patterns += [rf"(.*\.)?({pattern})$" for pattern in config.get(key) or {}]  # as PEFT asks
    layers = config.get("layers_pattern") or []
    for pattern in [layers] if isinstance(layers, str) else layers:
        patterns.append(rf".*\.{pattern}\.(\d+)\.")
    if not patterns:
        return
    answer = _child.ask({"do": "match", "patterns": patterns, "names": list(names)})
    if problem := answer.get("died") or answer.get("limit") or answer.get("raised"):
        raise UserError(
            f"a pattern in adapter_config.json of {where} cannot be used",
            why=f"{problem} (rank_pattern, alpha_pattern, target_modules or layers_pattern)",
            fix="write the layers out by name, or save the adapter again with PEFT",
        )


# -- in the child ----------------------------------------------------------------------------


def _render(request: dict[str, Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        found: Any = render_jinja_template(
            [request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=request["prompt"],
            enable_thinking=request["thinking"],
            **request["special"],
        )
    except (MemoryError, RecursionError):
        raise  # told as a limit
    except Exception as error:  # a template can divide by zero as well as be misspelt
        return {"raised": f"{type(error).__name__}: {error}"[:400]}
    text = found[0][0]
    if len(text) > OUTPUT_CHARS:
        return {"limit": f"it wrote more than {OUTPUT_CHARS:,} characters"}
    return {"text": text}


def _match(request: dict[str, Any]) -> dict[str, Any]:
    for pattern in request["patterns"]:
        try:
            compiled = re.compile(pattern)
        except (re.error, OverflowError) as error:
            return {"raised": f"{pattern[:80]!r} is no regular expression: {error}"}
        for name in request["names"]:
            compiled.fullmatch(name)
            compiled.match(name)
    return {}


def _serve() -> None:
    """Answer one line a request until the parent goes away."""
    import resource

    import transformers.utils.chat_template_utils  # noqa: F401  before the limits

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            own = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_BYTES, own + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whose default is to end us
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            request = json.loads(line)
            answer = _render(request) if request["do"] == "render" else _match(request)
            text = json.dumps(answer)
        except MemoryError:
            text = json.dumps({"limit": f"it took more than {MEMORY_BYTES >> 20} MB of memory"})
        except RecursionError:
            text = json.dumps({"limit": "it is nested too deeply"})
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(text + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
