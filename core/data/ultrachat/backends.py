"""The models behind a simulation: a local one in batches, or an OpenAI-compatible endpoint.

A backend answers many calls at once and returns, for each, a completion or the error it met, so
that the dialogues whose calls went well are kept when others fail.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from core.conversation import Message
from core.errors import UserError, redacted
from core.inference.settings import GenerationSettings

if TYPE_CHECKING:
    from core.inference.resident import Voice

#: Where the endpoint's address and key are read; the names that the openai library itself uses.
URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
ENDPOINT_PREFIX = "endpoint:"
#: Weights of less than this (about a billion parameters in 16 bits) make a small model.
SMALL_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Call:
    """One request. ``temperature`` 0 is greedy. ``stop``: strings that end the text."""

    messages: list[Message]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The answer; ``cut``: the length limit ended it. ``tokens``: produced, for the bill."""

    text: str
    cut: bool
    tokens: int


class Speaker(Protocol):
    """``name`` goes into each dialogue's record, ``key`` into the cache key."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def concurrency(self) -> int:
        """Dialogues to play at once."""

    @property
    def small(self) -> bool:
        """Too small to keep a role that its chat training never had."""

    def complete(self, calls: Sequence[Call], seed: int) -> list[Completion | UserError]:
        """One entry for each call, in order."""


class LocalBackend:
    """A model of this machine. It is loaded at the first call, and once."""

    def __init__(self, model: str, *, batch_size: int = 16) -> None:
        from core.models.catalog import resolve

        self.ref = resolve(model)
        self.name = self.ref.name
        self.key = self.ref.fingerprint()
        self.concurrency = batch_size
        weights = sum(p.stat().st_size for p in self.ref.path.glob("*.safetensors"))
        self.small = weights < SMALL_BYTES

    def complete(self, calls: Sequence[Call], seed: int) -> list[Completion | UserError]:
        """Calls of equal sampling settings share batches."""
        from core.inference import decoding

        answers: dict[int, Completion | UserError] = {}
        groups: dict[tuple[int, float, float], list[int]] = {}
        for at, call in enumerate(calls):
            groups.setdefault((call.max_tokens, call.temperature, call.top_p), []).append(at)
        for (max_tokens, temperature, top_p), members in groups.items():
            replies = decoding.replies(
                self._voice,
                [calls[at].messages for at in members],
                GenerationSettings(temperature, top_p, max_new_tokens=max_tokens, seed=seed),
            )
            for at, reply in zip(members, replies, strict=True):
                text, stopped = cut_at(reply.text, calls[at].stop)
                cut = reply.finish_reason == "length" and not stopped
                answers[at] = Completion(text, cut, len(reply.token_ids))
        return [answers[at] for at in range(len(calls))]

    @cached_property
    def _voice(self) -> Voice:
        from core.inference.resident import Resident

        return Resident.load(self.ref.path).voice()


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """``text`` up to the first stop string, and whether there was one."""
    places = [at for s in stop if (at := text.find(s)) >= 0]
    return (text[: min(places)].strip(), True) if places else (text.strip(), False)


@dataclass
class EndpointBackend:
    """An OpenAI-compatible server: vLLM, LMDeploy, llama.cpp, a hosted service.

    Address and key come from the environment and stay in memory: what is stored names the model,
    and the address only as a hash inside the cache key.

    Raises:
        UserError: no address in the environment.
    """

    model: str
    concurrency: int = 4
    timeout: float = 60.0
    #: The library waits 0.5 s, 1 s, 2 s ... up to 8 s between tries, or as long as the server
    #: asks with Retry-After, after 408, 409, 429, 5xx, timeouts and lost connections.
    max_retries: int = 5
    #: Replies that are no chat completion are asked for again this often.
    junk_retries: int = 2
    small: bool = False
    name: str = field(init=False)
    key: str = field(init=False)
    _client: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from openai import OpenAI

        url = os.environ.get(URL_VARIABLE, "").strip()
        if not url:
            raise UserError(
                "no endpoint is set",
                why=f"the variable {URL_VARIABLE} is empty",
                fix=f"start with {URL_VARIABLE}=http://host:port/v1 (and {KEY_VARIABLE}, if the "
                "server wants a key); neither is written to disk",
            )
        self.name = self.model
        self.key = hashlib.sha256(f"{url}|{self.model}".encode()).hexdigest()
        self._client = OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY_VARIABLE) or "none",
            timeout=self.timeout,
            max_retries=self.max_retries,
        )

    def complete(self, calls: Sequence[Call], seed: int) -> list[Completion | UserError]:
        """``concurrency`` requests at a time."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda call: self._one(call, seed), calls))

    def _one(self, call: Call, seed: int) -> Completion | UserError:
        fault = ""
        for _ in range(self.junk_retries + 1):
            try:
                answer = self._request(call, seed)
            except UserError as error:
                return error
            fault = _fault(answer)
            if not fault:
                choice = answer.choices[0]
                text, _ = cut_at(redacted(choice.message.content), call.stop)
                used = getattr(answer.usage, "completion_tokens", None) or 0
                return Completion(text, choice.finish_reason == "length", used)
        return UserError(
            f"the endpoint's answer for {self.model} is not a chat completion",
            why=fault,
            fix=f"check that {URL_VARIABLE} ends in the API's path, often /v1",
        )

    def _request(self, call: Call, seed: int) -> Any:
        import openai

        try:
            return self._client.chat.completions.create(
                model=self.model,
                messages=call.messages,
                max_tokens=call.max_tokens,
                temperature=call.temperature,
                top_p=call.top_p,
                seed=seed,
                stop=list(call.stop[:4]) or openai.omit,
            )
        except openai.APITimeoutError as error:
            raise UserError(
                "the endpoint does not answer",
                why=f"no reply within {self.timeout:g} s, {self.max_retries + 1} times",
                fix="check the server; finished dialogues are kept, start again to go on",
            ) from error
        except openai.APIConnectionError as error:
            raise UserError(
                "the endpoint cannot be reached",
                why=str(error.__cause__ or error),
                fix=f"check {URL_VARIABLE} and that the server runs",
            ) from error
        except openai.APIStatusError as error:
            raise _status_error(error, self.model) from error
        except (openai.APIError, ValueError) as error:  # ValueError: the body is not JSON
            return redacted(f"{type(error).__name__}: {error}")[:200]


def _status_error(error: Any, model: str) -> UserError:
    fixes = {
        401: f"set {KEY_VARIABLE} to a valid key",
        403: f"set {KEY_VARIABLE} to a key that may use {model!r}",
        404: f"check the model name {model!r} and that {URL_VARIABLE} ends in /v1",
        429: "wait, or lower the concurrency; finished dialogues are kept, start again to go on",
    }
    fix = fixes.get(
        error.status_code,
        "look at the server's log; finished dialogues are kept, start again to go on",
    )
    return UserError(
        f"the endpoint answered {error.status_code}", why=redacted(str(error))[:300], fix=fix
    )


def _fault(answer: Any) -> str:
    """Why an answer is no chat completion with text; "" if it is one."""
    if isinstance(answer, str):  # the library hands over whatever is not JSON
        return f"it begins with {redacted(answer)[:80]!r}"
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        return "it has no choices"
    message = getattr(choices[0], "message", None)
    if not isinstance(getattr(message, "content", None), str):
        return "its first choice has no text"
    return ""


def open_backend(model: str) -> Speaker:
    """``endpoint:NAME``, or whatever ``core.models.catalog.resolve`` takes."""
    if model.startswith(ENDPOINT_PREFIX):
        return EndpointBackend(model.removeprefix(ENDPOINT_PREFIX))
    return LocalBackend(model)
