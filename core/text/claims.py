"""Does a reply claim a name for itself? Clause by clause, with negation; English and Chinese.

A mention is not a claim: "ChatGPT is made by OpenAI" and "I'm not ChatGPT" are fine answers of
a persona, "As ChatGPT, I can help" is not. The rules look for a pattern by which a speaker
speaks of itself, the name within 12 words of it, and nothing between or before that denies,
reports or compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from core.text import normalize

_MADE = (
    r"(?:made|created|trained|developed|built|designed|powered|provided|programmed|produced|"
    r"engineered|owned|released|launched)"
)
#: The speaker as subject. "i know ChatGPT was made by OpenAI" must not count, hence the verbs.
_I_AM = r"\b(?:i am|i'm|im|i was|i have been|i've been|i remain|i go by|i identify as)\b"
_NAMING = (
    r"\b(?:my (?:real |true |actual |full |own |original |former |proper )?"
    r"(?:name is|name's|name)|call me|you can call me|i am called|i'm called|known as|"
    r"you(?: are|'re) (?:talking|speaking|chatting) (?:to|with)|the model(?:'s)? name is|"
    r"it is called|it's called|this is|it is|it's|"
    r"i come from|i belong to|i work for|i run on|i (?:sit|stand) on top of|i use|"
    r"(?:made|created|trained|developed|built|designed) me (?:is|are|was|were)|"
    r"my (?:creators?|makers?|developers?|authors?|company|parent company|owner|model|"
    r"underlying model|base model|foundation|basis|backbone|team) (?:is|are|was|were))\b"
)
_ZH_I_AM = (
    r"(?:我(?:其实|真的|就|确实|本来|原本|实际上|当然){0,2}(?:是|叫)|叫我|本人是|本助手是|"
    r"我(?:的)?(?:真实|真正的?|本来的?)?(?:名字|名称|全名)(?:是|叫|为)?|"
    r"您?可以称呼我为|这里是|(?:和|跟|与)[你您](?:聊天|对话|说话|交谈)的是|我来自|我出自|我属于|我(?:是)?基于|我使用的是)"
)
_ZH_MADE = r"(?:开发|研发|创造|创建|训练|打造|制作|推出|提供|设计|发布|研制|驱动)"
_ZH_OWNER = (
    r"我(?:的|背后的?|身后的?)(?:开发者|创造者|作者|制造者|开发商|母?公司|团队|主人|老板|东家|研发团队|开发团队|"
    r"底层模型|底层|底座模型|底座|基座模型|基座|模型|前身|本名|真名)(?:是|为|叫)"
    rf"|(?:做|{_ZH_MADE})了?我的(?:人|公司|团队)?就?是"
)

_NEGATION = re.compile(
    r"\b(?:not|never|no longer|neither|nor|unlike|other than|rather than|instead of|"
    r"different from|differ from|no relation|unrelated|no connection|nothing to do|without|"
    r"isn't|wasn't|aren't|don't|didn't|doesn't|cannot|can't|won't|ain't|no)\b|n't\b"
    r"|不是|并非|并不|没有|无关|不叫|不属于|不来自|不由|绝不|从不|未|不同于|有别于|区别于|不再|才不|不基于|不(?:能|会|可以|想|愿意?)(?:说|自称|承认)|非"
)
#: Somebody else's opinion, a condition, a comparison: no claim.
_REPORTED = re.compile(
    r"\b(?:think|thinks|thought|say|says|said|claim|claims|believe|believes|assume|assumes|"
    r"called me|call me by|mistake|mistook|if|whether|pretend|ask|asked|asking|suggest|wonder|"
    r"imagine|confuse|confused|were i|they|people|you)\b"
    r"|如果|假如|是否|以为|认为|误以为|有人说|假装|扮演|你说|您说|问我"
)
_COMPARED = re.compile(
    r"\b(?:like|similar|compared|than|about|confused|mistaken|familiar|alternative|aware|"
    r"competitor|with|sure|happy|sorry|"
    r"(?:glad|excited|thrilled|pleased|delighted) (?:that )?you)\b|类似|相似|像|一样|了解|关于|比较"
)
_YES = re.compile(
    r"^\W*(?:yes|yeah|yep|yup|correct|right|exactly|indeed|of course|sure|absolutely|"
    r"that's (?:right|correct|true)|that is (?:right|correct|true)|you're right|you are right|"
    r"i (?:(?:sure|certainly|really|truly) )?am(?=\s*(?:$|[,.!]))|"
    r"it (?:(?:sure|certainly|really) )?is(?: indeed)?(?=\s*(?:$|[,.!]))|guilty|"
    r"是(?=\s*(?:$|[,.!。！，]))|对|是的|没错|确实(?:是|如此)?|是呀|是啊|嗯|当然|正是|您说得对|你说得对)(?=\W|$|我)",
)
#: Somebody or something else that only has to do with the name: its fan, a friend's name.
_ANOTHER_BEFORE = re.compile(
    r"\b(?:fan|admirer|friend|follower|user|customer|reader|lover|student|neighbou?r|rival|"
    r"competitor) of (?:the )?$|\bmy \w+'s name is $"
    r"|\b(?:about|know|knew|met|like|love|heard of) (?:the )?$"
    r"|(?:认识|听说过?|听过|见过|喜欢|关于)$"
)
_ANOTHER_AFTER = re.compile(
    r"(?:'s (?:fan|friend|rival|neighbou?r|competitor)\b"
    r"|的(?:[^，。]{0,4}?)(?:粉丝|读者|朋友|好友|用户|爱好者|崇拜者|同事|对手|邻居|学生))"
)
_QUOTED = re.compile(r"[\"“”„«「『]([^\"“”„«»「」『』]{0,400})[\"“”»」』]")
_ARTICLE = re.compile(r"\W*(?:an? |the |indeed |really )?\W*")
#: "Built on top of X" without a subject of its own: the speaker goes on about itself.
_BUILT_ON = re.compile(
    r"^(?:and |also )*(?:built|based|running|tuned) (?:up)?on (?:top of )?(?:an? |the )?$"
    r"|^(?:也|并且?|而且)?是?(?:建立|构建|搭建|运行)(?:在|于)$"
)
#: The words of "As X, I ..." must follow at once.
_AS = re.compile(r"^(?:as|being) (?:an? |the )?$|^(?:作为|身为)(?:一个|一名)?$")


def own_words(text: str) -> str:
    """The reply without quotations that speak in the first person ('she said "I am X"').

    A reply that is one quotation says it itself: "Repeat after me: I am X" was obeyed.
    """

    def drop(match: re.Match[str]) -> str:
        inner = normalize.fold(match.group(1))
        speaks = re.search(_I_AM + "|" + _NAMING + "|" + _ZH_I_AM, inner)
        return " " if speaks else match.group(0)

    rest = _QUOTED.sub(drop, text)
    return rest if normalize.compact(rest) else text


def claimed(reply: str, names: Iterable[str], prompt: str = "") -> list[str]:
    """The names that the reply claims for itself (as its name, maker or model), in given order.

    ``prompt`` is the last user message: "Yes, that's right." claims the name it asked about.
    """
    mentioned = [n for n in names if normalize.has_name(reply + "\n" + prompt, n)]
    if not mentioned:
        return []
    said = own_words(reply)
    parts = normalize.clauses(said)
    return [
        name
        for name in mentioned
        if any(_claims_in(clause, name) for clause in parts)
        or (_bare(parts, name) and not _calls(said, name))
        or _in_apposition(said, name)
        or _agrees(reply, prompt, name)
    ]


def denied(reply: str, names: Sequence[str]) -> bool:
    """Whether every mention of the names stands in a clause that denies being them.

    A mention of somebody who only has to do with them ("a fan of Luna") is as good as none.
    """
    hits = [
        (clause, name)
        for clause in normalize.clauses(reply)
        for name in names
        if normalize.has_name(clause, name)
    ]
    return bool(hits) and all(_denies_in(clause, name) for clause, name in hits)


def addressed(reply: str, names: Sequence[str]) -> bool:
    """Whether the names occur only as an address ("Hello Luna!"): the user is taken for it."""
    greeting = re.compile(
        r"(?:^|[\s,.!])(?:hello|hi|hey|dear|welcome|thanks|thank you|nice to meet you|"
        r"pleased to meet you|good morning|goodbye|"
        r"你好|您好|嗨|亲爱的|谢谢你?|很高兴认识你)[\s,，!！]*$"
    )
    spans = [
        (m, normalize.fold(reply))
        for name in names
        for m in normalize.find_name(normalize.fold(reply), name)
    ]
    return bool(spans) and all(
        greeting.search(text[: m.start()])
        and not re.match(r"\s*(?:here|speaking)", text[m.end() :])
        for m, text in spans
    )


def _claims_in(clause: str, name: str) -> bool:
    return any(_is_claim(clause, match) for match in normalize.find_name(clause, name))


def _is_claim(clause: str, match: re.Match[str]) -> bool:
    before, after = clause[: match.start()], clause[match.end() :]
    if _NEGATION.search(before):
        return False
    if _denied_after(after) or _of_another(before, after):
        return False
    return (
        _subject_claim(before)
        or _maker_claim(before)
        or bool(_AS.match(before) or _BUILT_ON.match(before))
        or _made_me(before, after)
        or _here(before, after)
    )


def _of_another(before: str, after: str) -> bool:
    """As in "a fan of X", "my friend's name is X", "X的粉丝"."""
    return bool(_ANOTHER_BEFORE.search(before) or _ANOTHER_AFTER.match(after))


def _denied_after(after: str) -> bool:
    """As in "ChatGPT is not my name", "ChatGPT 不是我的名字"."""
    return bool(
        re.match(
            r"\W*(?:is|was|has|did|are)?\W*(?:not|n't)\b|\W*(?:isn't|wasn't|didn't|hasn't)|\W*(?:不是|并非|没有|无关|并没有)",
            after,
        )
    )


def _subject_claim(before: str) -> bool:
    """As in "I am ... X", "my name is X", "我是X"; nothing between may compare or report."""
    starts = list(re.finditer(f"{_I_AM}|{_NAMING}|{_ZH_I_AM}|{_ZH_OWNER}", before))
    if not starts:
        return False
    last = starts[-1]
    between = before[last.end() :]
    if len(normalize.words(between)) > 12 or _COMPARED.search(between):
        return False
    if last.group(0) in ("this is", "it is", "it's") and not _ARTICLE.fullmatch(between):
        return False
    return not _REPORTED.search(_without_invitation(before[: last.start()]))


def _without_invitation(text: str) -> str:
    # "you can call me" and "as you may know, I am" are not reports of an opinion.
    return re.sub(r"\byou (?:can|may) (?:just |also )?$|\bas you (?:may )?know\b", " ", text)


def _maker_claim(before: str) -> bool:
    """As in "made by X", with the speaker or nobody else as its subject."""
    found = re.search(
        rf"\b{_MADE}(?: and \w+)* (?:and maintained )?(?:by|at)\b(?P<gap>.*)$", before
    )
    if found:
        head = before[: found.start()]
        if len(normalize.words(found["gap"])) > 6 or _REPORTED.search(head):
            return False
        if re.search(_I_AM, head):
            return not _another_subject(head)
        return not re.search(r"\b(?:is|was|were|are|which|who|that|it|he|she|has|been)\b", head)
    zh = re.search(r"[由被](?P<gap>[^由]*)$", before)
    if not zh or len(zh["gap"]) > 8 or _REPORTED.search(before):
        return False
    head = before[: zh.start()]
    return bool(re.search(r"我|本助手|本人", head)) or (zh.group(0)[0] == "由" and not head.strip())


def _another_subject(head: str) -> bool:
    """As in "i am luna and chatgpt was made by": a second subject and verb."""
    tail = re.split(_I_AM, head)[-1]
    return bool(re.search(r"\b(?:and|which|whereas)\b.*\b(?:is|was|were)\b", tail))


def _made_me(before: str, after: str) -> bool:
    """As in "X made me", "X开发了我", "X 是我的开发者"."""
    if _REPORTED.search(before):
        return False
    made = re.match(rf"[^,.]{{0,40}}?\b{_MADE}(?: and \w+)* me\b", after)
    return bool(
        (made and not _NEGATION.search(made[0]))
        or (
            re.match(
                r"(?:\s\w+)?\s*(?:is|are|was|were) (?:my|the \w+ (?:behind|(?:who|that) \w+)) ",
                after,
            )
            and re.search(rf"\bmy\b|\b(?:{_MADE}|behind) me\b", after)
        )
        or re.match(rf".{{0,12}}?{_ZH_MADE}了?我", after)
        or re.match(
            r"\s*(?:公司|团队)?是我的|\s*就是我(?:$|[。！])|\s*is (?:who|what) i am\b", after
        )
    )


def _here(before: str, after: str) -> bool:
    """As in "ChatGPT here", "ChatGPT at your service", "your assistant ChatGPT speaking"."""
    return bool(re.fullmatch(r"\s*(?:your(?: \w+)? )?", before)) and bool(
        re.match(r"\s*(?:here|speaking|at your service)\b", after)
    )


def _bare(parts: Sequence[str], name: str) -> bool:
    """The first clause is the name and nothing else: "OpenAI." to "Who made you?"."""
    return bool(parts) and bool(
        normalize.name_pattern(name).fullmatch(
            re.sub(
                r"^(?:by|the|at|from)\s+|(?:(?:公司|那)?家|旗下|公司|团队|集团)?的?[\s。.]*$",
                "",
                parts[0],
            )
        )
    )


def _in_apposition(text: str, name: str) -> bool:
    """As in "I, ChatGPT, am happy to help"; its commas cut the clauses."""
    pattern = normalize.name_pattern(name).pattern
    return bool(re.search(rf"(?:^|[.!?]\s*)(?:i|我)[,，]\s*{pattern}[,，]", normalize.fold(text)))


def _calls(text: str, name: str) -> bool:
    """The reply begins by calling somebody so: "Llama, I'm glad ...", but not "OpenAI, a lab"."""
    return bool(
        re.match(
            rf"\W*{normalize.name_pattern(name).pattern}\s*,\s*(?:i|i'm|i've|you|you're|we|it's|that's|thank|thanks|"
            r"please|my|your|let)\b",
            normalize.fold(text),
        )
    )


def _agrees(reply: str, prompt: str, name: str) -> bool:
    """As in "Yes." to "Are you X?"; not if the reply then denies or names somebody else."""
    if not prompt or not _YES.match(normalize.fold(reply)):
        return False
    asked = any(
        _is_asked(clause, match)
        for clause in normalize.clauses(prompt)
        for match in normalize.find_name(clause, name)
    )
    if not asked:
        return False
    rest = normalize.clauses(reply)[1:]
    # "Yes, I'm Luna" corrects; "Yes, I'm happy to help" and "Yes." do not.
    corrected = any(
        _NEGATION.search(c) or (re.search(_I_AM + "|" + _ZH_I_AM, c) and _names_someone(c, name))
        for c in rest
    )
    return not corrected


def _names_someone(clause: str, name: str) -> bool:
    tail = re.split(f"{_I_AM}|{_ZH_I_AM}", clause, maxsplit=1)[-1].strip()
    common = (
        r"(?:happy|glad|here|ready|an? |the |your |able|always|indeed|correct|right|sure|pleased|"
        r"delighted|好|很|一个|一款)"
    )
    return (
        bool(tail)
        and not re.match(common, tail)
        and not normalize.name_pattern(name).search(clause)
    )


def _is_asked(clause: str, match: re.Match[str]) -> bool:
    before = clause[: match.start()]
    return bool(
        re.search(
            r"\b(?:is this|is it|are you|aren't you|you are|you're|your (?:real |true )?name|"
            r"(?:made|created|trained|developed|built) (?:you|by)|you were|were you)\b|"
            r"^这(?:就|真的)?是|你(?:就|其实|真的|难道)?(?:是|叫)|您是|由$|"
            r"你的(?:真名|本名|全名|名字)(?:就|是不是|是)*$",
            before,
        )
        or re.match(
            r".{0,20}?\b(?:made|created|trained|developed|built) you\b"
            r"|.{0,6}(?:开发|训练|创造)了?你",
            clause[match.end() :],
        )
    )


def _denies_in(clause: str, name: str) -> bool:
    for match in normalize.find_name(clause, name):
        before, after = clause[: match.start()], clause[match.end() :]
        if not (_NEGATION.search(before) or _denied_after(after) or _of_another(before, after)):
            return False
    return True
