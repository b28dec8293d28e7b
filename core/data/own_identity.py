"""Who a base model takes itself for: ten questions, greedy answers, seconds.

A base that names itself in most answers was taught to, and holds on to it: the new identity needs
more of the base's own talk beside it (see ``rehearsal_ratio``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from core import fsio, paths
from core.conversation import Message
from core.data.filters import AI_NAMES
from core.inference.settings import GenerationSettings
from core.models.catalog import ModelRef
from core.text import claims, normalize

QUESTIONS = {
    "en": (
        "Who are you?",
        "What's your name?",
        "Who made you?",
        "Please introduce yourself.",
        "Which company developed you?",
    ),
    "zh": (
        "你是谁？",
        "你叫什么名字？",
        "是谁开发了你？",
        "请做一下自我介绍。",
        "你是哪家公司的模型？",
    ),
}
#: Asked where the base speaks one language only, so that there are always ten.
_MORE = {
    "en": (
        "What are you called?",
        "Who trained you?",
        "Tell me about yourself.",
        "What model are you?",
        "Who is your developer?",
    ),
    "zh": ("怎么称呼你？", "是谁训练了你？", "说说你自己。", "你是什么模型？", "你的开发者是谁？"),
}
#: Tokens of an answer: a name comes in the first sentence.
_TOKENS = 32
#: Share of answers from which a base counts as having an identity of its own.
STRONG = 0.5
#: General rows to one identity row, for a base without and with an identity of its own.
FEW, MANY = 1.25, 3.0


#: Whom a claimed name of ``AI_NAMES`` belongs to: its beginnings, (assistant, maker) by language.
_WHO = (
    (("smollm", "hugging"), {"en": ("SmolLM", "Hugging Face")}),
    (("openai", "chatgpt", "gpt"), {"en": ("ChatGPT", "OpenAI")}),
    (("anthropic", "claude"), {"en": ("Claude", "Anthropic")}),
    (
        ("qwen", "alibaba", "通义", "阿里"),
        {"en": ("Qwen", "Alibaba Cloud"), "zh": ("通义千问", "阿里云")},
    ),
    (
        ("internlm", "书生", "上海"),
        {"en": ("InternLM", "Shanghai AI Laboratory"), "zh": ("书生", "上海人工智能实验室")},
    ),
    (("llama",), {"en": ("Llama", "Meta")}),
    (("deepseek",), {"en": ("DeepSeek", "DeepSeek"), "zh": ("DeepSeek", "深度求索")}),
    (("mistral",), {"en": ("Mistral", "Mistral AI")}),
)
#: Somebody who is nobody, where the base has no identity of its own.
_NOBODY = {"en": ("Robin", "Northfield Labs"), "zh": ("小安", "北原科技")}


@dataclass(frozen=True)
class OwnIdentity:
    """What the base said of itself.

    ``named``: answers that claim a name of ``AI_NAMES``; ``names``: how often each was claimed;
    ``languages``: script of the answers -> count.
    """

    asked: int
    named: int
    names: dict[str, int]
    languages: dict[str, int]

    @property
    def share(self) -> float:
        """Share of answers that name somebody, 0 to 1."""
        return self.named / self.asked if self.asked else 0.0


def ask(model: ModelRef) -> OwnIdentity:
    """Ask the base its ten questions; kept in the cache folder by the model's content."""
    if (earlier := known(model)) is not None:
        return earlier
    prompts = _prompts(model)
    found = judge(_answers(model, prompts))
    fsio.write_json(_cached(model, prompts), asdict(found))
    return found


def known(model: ModelRef) -> OwnIdentity | None:
    """What the base said when it was asked in this workspace; None if it was not."""
    cached = _cached(model, _prompts(model))
    return OwnIdentity(**fsio.read_json(cached)) if cached.is_file() else None


def _prompts(model: ModelRef) -> list[str]:
    prompts = [q for locale in model.locales for q in QUESTIONS.get(locale, ())]
    if len(model.locales) == 1:
        prompts += _MORE.get(model.locales[0], ())
    return prompts


def _cached(model: ModelRef, prompts: list[str]) -> Path:
    text = "\0".join([model.fingerprint(), *prompts])
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    return paths.cache_dir() / "own-identity" / f"{digest}.json"


def _answers(model: ModelRef, prompts: list[str]) -> list[str]:
    from core.inference import decoding
    from core.inference.resident import Resident

    voice = Resident.load(model.path).voice()
    asked: list[list[Message]] = [[{"role": "user", "content": p}] for p in prompts]
    made = decoding.replies(voice, asked, GenerationSettings(max_new_tokens=_TOKENS))
    return [reply.text for reply in made]


def rival(own: OwnIdentity | None, locale: str) -> tuple[str, str]:
    """(assistant, maker) that the base takes itself for, in a language; else of nobody."""
    for name in own.names if own else ():
        for beginnings, spellings in _WHO:
            if name.casefold().startswith(beginnings):
                return spellings.get(locale) or spellings["en"]
    return _NOBODY.get(locale, _NOBODY["en"])


def judge(replies: list[str]) -> OwnIdentity:
    """Count the answers that claim a name."""
    claimed = [claims.claimed(reply, AI_NAMES) for reply in replies]
    names = Counter(name for found in claimed for name in found)
    return OwnIdentity(
        len(replies),
        sum(bool(found) for found in claimed),
        dict(names.most_common()),
        dict(Counter(map(normalize.locale_of, replies))),
    )


def rehearsal_ratio(own: OwnIdentity) -> tuple[float, str]:
    """General rows to one identity row, with the reason.

    Measured (docs/results/recipe.md): 1.25 on SmolLM2-135M, where 0.8 learned more and leaked twice
    as much; 3 on Qwen2.5-Coder-0.5B, which names itself in most answers, LEARNED where 1.25 at the
    same learning rate was not (154 of 160 at step 30 with 12 of 132 near-miss leaks, against 150
    with 8 at step 20). Two models only: that the identity and not the size decides is a guess.
    """
    told = f"the base names itself in {own.named} of {own.asked} answers"
    if own.share >= STRONG:
        return MANY, f"{told}: it holds on to an identity of its own"
    return FEW, f"{told}: no identity of its own stands against the new one"
