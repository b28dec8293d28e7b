"""Headers of every response: what a page may load, and from where.

Nothing but this server: should text of a stranger ever become an element of a page, the browser
still fetches nothing for it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def _own_scripts() -> str:
    """Hashes of the scripts that stand in Streamlit's own index.html (one line in 1.67)."""
    index = (Path(streamlit.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
    digests = [hashlib.sha256(text.encode()).digest() for text in _INLINE.findall(index)]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def content_security_policy() -> str:
    """The policy. Streamlit's styles are written by its scripts, hence ``unsafe-inline`` there.

    Files that a page offers or shows come from this server's media store or from memory
    (``blob:``, ``data:``); charts are interpreted, not compiled, so no ``unsafe-eval``.
    """
    rules = {
        "default-src": "'none'",
        # blob: is how Streamlit runs a component of ours (the copy button); only a script that
        # runs already can make such an address.
        "script-src": f"'self' blob: {_own_scripts()}",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "media-src": "'self' blob:",
        "connect-src": "'self'",
        "worker-src": "'self' blob:",
        "manifest-src": "'self'",
        "frame-src": "'self'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'self'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


class SafeHeaders:
    """ASGI middleware that adds the headers to every HTTP response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # A link in a reply that is followed must not tell its host which chat or run was open.
        headers = {
            "content-security-policy": content_security_policy(),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; only the start of an HTTP response is changed."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in self._headers}
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in ours]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
