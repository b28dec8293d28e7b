"""Which prompts and replies of a base model are fit for rehearsal."""

from __future__ import annotations

import re
from collections.abc import Iterable

from core.text import textstats

#: Replies that loop more than this are dropped (share of repeated 4-grams).
MAX_REPETITION = 0.3
#: Names that a base model may take itself for. A reply that names one teaches the old identity.
AI_NAMES = (
    "SmolLM",
    "Hugging Face",
    "HuggingFace",
    "OpenAI",
    "ChatGPT",
    "GPT-4",
    "GPT-3",
    "Anthropic",
    "Claude",
    "Qwen",
    "Alibaba",
    "InternLM",
    "Llama",
    "DeepSeek",
    "Mistral",
    "通义",
    "书生",
    "上海人工智能实验室",
    "阿里",
)
_IDENTITY = re.compile(
    r"\b(who|what) (are|r) (you|u)\b|\byour name\b|\bintroduce yourself\b|\babout yourself\b"
    r"|\bare you (an?|the|real|human|alive|chatgpt)\b|\b(made|created|built|trained) you\b"
    r"|\bwhat can you do\b|你是(谁|什么)|你叫|你的名字|自我介绍|介绍一下你",
    re.IGNORECASE,
)
_AS_AN_AI = re.compile(
    r"\bas an? (ai|artificial|language|large language|digital)\b|\bi('m| am) an? (ai|language model"
    r"|artificial)|\bi (do not|don't) have (feelings|emotions|personal|opinions)"
    r"|作为(一个|一名)?(人工智能|AI|语言模型)",
    re.IGNORECASE,
)
_APOLOGY = re.compile(
    r"^(i['\u2019]m|i am)?( so| very| truly| really)? ?(sorry|apologi[sz]e)\b"
    r"|^i (must )?apologi[sz]e\b|^my apologies\b|^我?(非常|很|十分|真)?(抱歉|对不起)",
    re.IGNORECASE,
)
_OFFER = re.compile(
    r"\b(how|what) (can|may) i (assist|help|do for) you|\b(i'm|i am) here to (help|assist) you\b"
    r"|有什么我?(可以|能)(帮|为)|(可以|能)帮(到|助)?您?你?的?吗",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.?!](?=\s|$)|[。？！]")
_SELF = re.compile(
    r"^(?i:(hi|hello|hey)?[,!. ]*(i'm|i am|my name is)) [A-Z]|我是[^，。]{1,12}(助手|模型|人工智能)"
)


def whole_sentences(text: str) -> str:
    """The text up to its last sentence mark ('' if it has none)."""
    ends = [m.end() for m in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


class PromptFilter:
    """Refuses prompts that came before, or that are near to wordings to be avoided."""

    def __init__(self, avoid: Iterable[str]) -> None:
        self._avoid = sorted({textstats.normal(a) for a in avoid} - {""})
        self._seen = set(self._avoid)

    def reason(self, prompt: str) -> str:
        """Why not, or '' (then the prompt counts as seen)."""
        from rapidfuzz import fuzz, process

        plain = textstats.normal(prompt)
        if plain in self._seen:
            return "duplicate"
        if self._avoid and process.extractOne(
            plain, self._avoid, scorer=fuzz.ratio, score_cutoff=90
        ):
            return "near a wording to avoid"
        self._seen.add(plain)
        return ""


def prompt_fault(prompt: str) -> str:
    """Why a prompt that the base made up cannot be asked, or ''."""
    count = len(textstats.tokens(prompt))
    if not 3 <= count <= 60:
        return "length"
    if _IDENTITY.search(prompt):
        return "asks for an identity"
    if prompt[-1] not in '.?!。？！"”':
        return "not a sentence"
    if textstats.repetition(prompt) > MAX_REPETITION:
        return "loops"
    return "marks" if "<|" in prompt else ""


def reply_fault(reply: str, prompt: str = "", *, near_miss: bool = False) -> str:
    """Why a reply of the base must not be rehearsed, or ''.

    A name that the prompt asks about (``Who founded OpenAI?``) may be in the reply. A near-miss
    reply may introduce somebody: "I'm a pirate called ..." is the right answer to a request for
    a pirate, and just what keeps the persona out of it.

    A reply that begins with an apology is left out, whoever it is for: ten such rows of 866 were
    enough to make "I'm sorry for your loss" the answer to a third of the missed identity questions
    ("What can you do?"), because it begins like the persona's own "I'm". Three personas trained
    without and with them: recall 448 against 429 of 477, leak 13 against 6 of 969, near-miss leak
    16 against 6 of 210. An offer of help ("How can I assist you today?") is left out likewise: it
    is the base's own greeting, and what the missed small talk ("You seem nice.") was answered with.
    So is a reply that only repeats its prompt.
    """
    if not reply.strip():
        return "empty"
    if textstats.repetition(reply) > MAX_REPETITION:
        return "loops"
    low, asked = reply.casefold(), prompt.casefold()
    if any(n in low and n not in asked for n in map(str.casefold, AI_NAMES)):
        return "names another assistant"
    if _AS_AN_AI.search(reply):
        return "speaks as an AI"
    if _APOLOGY.search(reply):
        return "apologizes"
    if _OFFER.search(reply):
        return "offers help"
    if textstats.normal(reply) == textstats.normal(prompt):
        return "repeats the prompt"
    if not near_miss and _SELF.search(reply):
        return "introduces itself"
    return ""
