"""One turn on the page: the prompt, the replies beside each other, and how to read them."""

from __future__ import annotations

import streamlit as st

from core.chat import diff, votes
from core.chat.columns import Column
from core.chat.dialogue import Reply, Turn
from core.chat.render import highlighted, literal, safe_markdown

FORMATTED, DIFFERENCES, PERSONA, RAW = "Formatted", "Differences", "Persona", "Raw"
VIEWS = (FORMATTED, DIFFERENCES, PERSONA, RAW)
_REASONS = {
    "stop": "ended by itself",
    "length": "cut at the length limit",
    "context": "cut at the end of the context",
    "cancelled": "stopped by you",
    "interrupted": "the server ended while this streamed",
    "error": "broke off",
}


def draw_prompt(text: str) -> None:
    """What the user said, as text: Markdown in it stays as typed unless it is safe."""
    with st.chat_message("user", avatar=":material/person:"):
        if len(text) > 3000:
            with st.container(height=240):
                st.markdown(safe_markdown(text))
        else:
            st.markdown(safe_markdown(text))


def draw_turn(
    turn: Turn,
    sides: list[Column],
    index: int,
    view: str,
    names: list[str],
    seats: list[str],
    *,
    blind: bool,
) -> None:
    """A finished turn.

    Args:
        seats: column ids from left to right.
        blind: hide what gives the models away: labels, speed, details. Not to be told from
            ``seats``: the shuffled order of two columns is the plain one half of the time.
    """
    draw_prompt(turn.prompt)
    by_id = {s.id: s for s in sides}
    for place, (column, side_id) in enumerate(zip(st.columns(len(seats)), seats, strict=True), 1):
        reply = turn.replies.get(side_id)
        with column, st.container(border=True, key=f"reply_{index}_{side_id}"):
            won = " :material/trophy:" if turn.vote == side_id else ""
            label = f"Reply {place}" if blind else by_id[side_id].label
            st.caption(f"**{safe_markdown(label)}**{won}")
            if reply is None:
                st.caption("This column joined later.")
                continue
            _draw_reply(reply, _reference(turn, sides, side_id), view, names)
            if not blind:
                st.caption(stats(reply))
                _details(reply)


def _reference(turn: Turn, sides: list[Column], side_id: str) -> str | None:
    """What this reply is compared with: the first column's; for the first, the second's."""
    other = sides[1].id if side_id == sides[0].id and len(sides) > 1 else sides[0].id
    reply = turn.replies.get(other)
    return reply.text if reply is not None and other != side_id else None


def _draw_reply(reply: Reply, reference: str | None, view: str, names: list[str]) -> None:
    if reply.text.strip():
        if view == RAW:
            st.code(reply.text, language=None, wrap_lines=True)
        else:
            st.markdown(shown(reply.text, reference, view, names))
    elif not reply.error:
        st.caption("(only blanks)" if reply.text else "(an empty reply)")
    if reply.error:
        parts = [reply.error.get(k, "") for k in ("what", "why", "fix")]
        st.error(safe_markdown("\n\n".join(p for p in parts if p)), icon=":material/error:")


def shown(text: str, reference: str | None, view: str, names: list[str]) -> str:
    """Markdown of a reply in this view."""
    if view == DIFFERENCES and reference is not None:
        mine, _ = diff.compare(text, reference)
        return highlighted((p.text, "green" if p.kind == "only" else "") for p in mine)
    if view == PERSONA:
        pieces: list[tuple[str, str]] = []
        end = 0
        for start, stop in diff.mentions(text, names):
            pieces += [(text[end:start], ""), (text[start:stop], "violet")]
            end = stop
        return highlighted([*pieces, (text[end:], "")])
    return safe_markdown(text)


def stats(reply: Reply) -> str:
    """One line: tokens, time to the first one, rate, why it ended."""
    parts = [f"{reply.tokens:,} tokens"]
    if reply.ttft_s is not None:
        parts.append(f"first after {reply.ttft_s:.2f} s")
    if reply.tokens_per_s is not None:
        parts.append(f"{reply.tokens_per_s:.1f} tokens/s")
    if reply.finish_reason:
        parts.append(_REASONS.get(reply.finish_reason, literal(reply.finish_reason)))
    if reply.cut:
        parts.append(f"{reply.cut} oldest messages were left out")
    return " · ".join(parts)


def _details(reply: Reply) -> None:
    if not reply.prompt_ids:
        return
    with st.popover("Exact prompt", icon=":material/data_object:"):
        st.caption(f"{len(reply.prompt_ids):,} tokens, as fed, special tokens included")
        st.code(reply.prompt, language=None, wrap_lines=True)
        st.caption("Token ids of the prompt")
        st.code(" ".join(map(str, reply.prompt_ids)), language=None, wrap_lines=True)
        st.caption("Token ids of the reply")
        st.code(" ".join(map(str, reply.token_ids)) or "(none)", language=None, wrap_lines=True)


def vote_choices(seats: list[str]) -> dict[str, str]:
    """Caption -> vote, for the seats from left to right."""
    places = ["Left", "Right"] if len(seats) == 2 else [f"Reply {i + 1}" for i in range(len(seats))]
    better = {f"{place} is better": side for place, side in zip(places, seats, strict=True)}
    return {**better, "Tie": votes.TIE, "All bad" if len(seats) > 2 else "Both bad": votes.BOTH_BAD}
