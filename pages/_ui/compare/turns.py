"""One turn on the page: the question, the replies beside each other, and what to do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.chat import diff, votes
from core.chat.columns import Column
from core.chat.dialogue import Reply, Turn
from core.chat.personas import PersonaHint, marks
from core.chat.render import highlighted, literal, safe_markdown
from core.errors import UserError
from pages._ui.compare import columns as compare_columns
from pages._ui.compare import copying, icons
from pages._ui.shell.common import show_error
from pages._ui.shell.language import N_, listed, number, t, tn

View = Literal["formatted", "differences", "persona", "raw"]
VIEWS: dict[View, str] = {
    "formatted": N_("Formatted"),
    "differences": N_("Differences"),
    "persona": N_("Persona"),
    "raw": N_("Raw"),
}
_REASONS = {
    "stop": N_("ended by itself"),
    "length": N_("cut at the length limit"),
    "context": N_("cut at the end of the context"),
    "cancelled": N_("stopped by you"),
    "interrupted": N_("the server ended while this streamed"),
    "error": N_("broke off"),
}
_MARKS = {
    "claims": N_("Says: {names}"),
    "foreign": N_("Says it is {names}"),
    "denies": N_("Denies {names}"),
    "lacks": N_("{names} is missing"),
}


@dataclass(frozen=True)
class ReplyStyle:
    """How replies are shown. ``blind``: hide what gives the models away until there is a vote."""

    view: View
    blind: bool
    hint: PersonaHint


@dataclass(frozen=True)
class Actions:
    """What can be done with a turn; None where it cannot."""

    regenerate: Callable[[str], None] | None
    choose: Callable[[str, int], None]


#: Text and line under it of a reply that streams, by column id.
Boxes = dict[str, tuple[DeltaGenerator, DeltaGenerator]]


def draw_prompt(text: str, index: int = -1, beside: Callable[[], None] | None = None) -> None:
    """What the user said, as text: Markdown in it stays as typed unless it is safe.

    Args:
        index: of its turn, for ``beside``.
        beside: draws what can be done with the question, at its right.
    """
    with st.chat_message("user", avatar=":material/person:"):
        if beside is None:
            _question(text)
            return
        with st.container(horizontal=True, gap="small", key=f"beside_{index}"):
            with st.container():
                _question(text)
            with st.container(
                horizontal=True, vertical_alignment="center", gap="small", width="content"
            ):
                beside()


def _question(text: str) -> None:
    if len(text) > 3000:
        with st.container(height=240):
            st.markdown(safe_markdown(text))
    else:
        st.markdown(safe_markdown(text))


def reply_boxes(
    columns: list[Column], order: list[str], hidden: bool, key: str
) -> Iterator[Column]:
    """A titled box for each reply from left to right; draw the reply inside the loop.

    Args:
        order: column ids; not to be told from ``hidden``, for the shuffled order of two columns
            is the plain one half of the time.
        hidden: call them "Reply 1", "Reply 2".
    """
    by_id = {c.id: c for c in columns}
    boxes = st.container(key=f"columns_{key}").columns(len(order))
    for place, (box, name) in enumerate(zip(boxes, order, strict=True), 1):
        column = by_id[name]
        words = t("Reply {n}", n=place) if hidden else compare_columns.title(column)
        with box, st.container(border=True, key=f"{key}_{name}"):
            st.caption(f"**{safe_markdown(words)}**")
            yield column


def draw_replies(
    turn: Turn,
    index: int,
    columns: list[Column],
    order: list[str],
    look: ReplyStyle,
    actions: Actions,
) -> None:
    """The replies of a finished turn, with marks, figures and actions."""
    hidden = look.blind and not turn.vote
    for column in reply_boxes(columns, order, hidden, f"reply_{index}"):
        reply = turn.replies[column.id]
        draw_reply(reply, _reference(turn, column.id), look)
        if turn.vote == column.id:
            st.markdown(f":material/trophy: {t('Your vote')}")
        if not hidden:
            _marks(reply, turn.prompt, look.hint)
            st.caption(stats(reply))
        _actions(turn, index, column.id, None if hidden else actions)


def live_boxes(columns: list[Column], order: list[str], *, hidden: bool) -> Boxes:
    """Boxes of replies that stream; ``draw_live`` fills them."""
    return {c.id: (st.empty(), st.empty()) for c in reply_boxes(columns, order, hidden, "live")}


def draw_live(box: tuple[DeltaGenerator, DeltaGenerator], reply: Reply, hidden: bool) -> None:
    """A reply as far as it has come."""
    text, line = box
    text.markdown(safe_markdown(reply.text) + ("" if reply.finish_reason else " ▌"))
    line.caption("" if hidden else stats(reply))


def _reference(turn: Turn, column_id: str) -> str | None:
    """What this reply is compared with: the first column's; for the first, the second's."""
    first, *others = sorted(turn.replies)
    other = first if column_id != first else next(iter(others), first)
    return turn.replies[other].text if other != column_id else None


def draw_reply(reply: Reply, reference: str | None, look: ReplyStyle) -> None:
    """Text and error of a reply."""
    if reply.text.strip():
        if look.view == "raw":
            st.code(reply.text, language=None, wrap_lines=True)
        else:
            st.markdown(shown(reply.text, reference, look.view, look.hint))
    elif not reply.error:
        st.caption(t("(only blanks)") if reply.text else t("(an empty reply)"))
    if reply.error:
        show_error(UserError.from_dict(reply.error))


def shown(text: str, reference: str | None, view: View, hint: PersonaHint) -> str:
    """Markdown of a reply in this view."""
    if view == "differences" and reference is not None:
        mine, _ = diff.compare(text, reference)
        return highlighted((p.text, "green" if p.kind == "only" else "") for p in mine)
    if view == "persona":
        own = [(*span, "green") for span in diff.mentions(text, [*hint.names, *hint.makers])]
        foreign = [(*span, "orange") for span in diff.mentions(text, hint.foreign)]
        pieces: list[tuple[str, str]] = []
        end = 0
        for start, stop, colour in sorted([*own, *foreign]):
            if start >= end:
                pieces += [(text[end:start], ""), (text[start:stop], colour)]
                end = stop
        return highlighted([*pieces, (text[end:], "")])
    return safe_markdown(text)


def _marks(reply: Reply, prompt: str, hint: PersonaHint) -> None:
    """Hits and misses of the persona, so that nobody has to read for them."""
    for mark in marks(reply.text, prompt, hint):
        names = listed([literal(name) for name in mark.names])
        words = t(_MARKS[mark.kind], names=names)
        icon = ":material/check:" if mark.good else ":material/close:"
        colour = "green" if mark.good else "orange"
        st.markdown(f":{colour}-badge[{icon} {words}]")


def stats(reply: Reply) -> str:
    """One line: tokens, time to the first one, rate, why it ended, how it was drawn."""
    parts = [tn("{n} token", "{n} tokens", reply.tokens)]
    if reply.ttft_s is not None:
        parts.append(t("first after {seconds:.2f} s", seconds=reply.ttft_s))
    if reply.tokens_per_s is not None:
        parts.append(t("{rate:.1f} tokens/s", rate=reply.tokens_per_s))
    if reply.finish_reason:
        known = _REASONS.get(reply.finish_reason)
        parts.append(t(known) if known else literal(reply.finish_reason))
    if reply.settings is not None:
        drawn = {"heat": number(reply.settings.temperature), "seed": reply.settings.seed}
        parts.append(t("temperature {heat}, seed {seed}", **drawn))
    if reply.cut:
        parts.append(
            tn("{n} oldest message was left out", "{n} oldest messages were left out", reply.cut)
        )
    return " · ".join(parts)


def _actions(turn: Turn, index: int, column: str, actions: Actions | None) -> None:
    reply, key = turn.replies[column], f"{index}_{column}"
    with st.container(horizontal=True, vertical_alignment="center", gap=None):
        if reply.text:
            copying.button(reply.text, f"compare_copy_{key}")
        if actions is None:
            return
        if actions.regenerate is not None:
            icons.button(
                t("Regenerate"), ":material/refresh:", f"compare_again_{key}",
                actions.regenerate, (column,),
                more=t("Answers again with another seed; this reply is kept."),
            )  # fmt: skip
        place, count = turn.place(column)
        switch(place, count, lambda to: actions.choose(column, to), f"compare_version_{key}")
        _details(reply, key)


def switch(place: int, count: int, choose: Callable[[int], None], key: str) -> None:
    """``< 2 / 3 >`` for versions, counted from 0; nothing for a single one."""
    if count < 2:
        return
    with st.container(
        horizontal=True, vertical_alignment="center", gap=None, width="content", key=key
    ):
        icons.button(
            t("Previous version"), ":material/chevron_left:", f"{key}_back", choose, (place - 1,),
            disabled=place == 0,
        )  # fmt: skip
        st.caption(f"{place + 1} / {count}", width="content")
        icons.button(
            t("Next version"), ":material/chevron_right:", f"{key}_on", choose, (place + 1,),
            disabled=place == count - 1,
        )  # fmt: skip


def _details(reply: Reply, key: str) -> None:
    if not reply.prompt_ids:
        return
    words = t("Exact prompt")
    with st.popover(
        words, icon=":material/data_object:", type="tertiary", help=words,
        key=f"icon_compare_prompt_{key}",
    ):  # fmt: skip
        st.caption(
            tn(
                "{n} token, as fed, special tokens included",
                "{n} tokens, as fed, special tokens included",
                len(reply.prompt_ids),
            )
        )
        st.code(reply.prompt, language=None, wrap_lines=True)
        st.caption(t("Token ids of the prompt"))
        st.code(" ".join(map(str, reply.prompt_ids)), language=None, wrap_lines=True)
        st.caption(t("Token ids of the reply"))
        st.code(" ".join(map(str, reply.token_ids)) or t("(none)"), language=None, wrap_lines=True)


def vote_choices(order: list[str]) -> dict[str, str]:
    """Caption -> vote, for the columns from left to right."""
    if len(order) == 2:
        better = [t("Left is better"), t("Right is better")]
    else:
        better = [t("Reply {n} is better", n=i + 1) for i in range(len(order))]
    bad = t("All bad") if len(order) > 2 else t("Both bad")
    return {**dict(zip(better, order, strict=True)), t("Tie"): votes.TIE, bad: votes.BOTH_BAD}
