"""Errors that a person reads. Anything else that escapes core/ is a bug."""

from __future__ import annotations

import html
import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

from typing_extensions import TypedDict  # pydantic reads it on Python 3.11


class ErrorRecord(TypedDict, total=False):
    """A UserError as plain data. ``what`` is always there; of the others those that say something.

    ``problems``: what a UserErrors holds.
    """

    what: str
    why: str
    fix: str
    where: str
    problems: list[ErrorRecord]


#: Environment variables that hold a secret, by their names.
_SECRET = re.compile(
    r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|CREDS|BEARER|PRIVATE|COOKIE|WEBHOOK"
    r"|CONNECTION_?STRING|(^|_)(PASS|PAT|AUTH|JWT|DSN)$|_(PWD|LOGIN)$|(?<!DESKTOP)_SESSION$",
    re.IGNORECASE,
)
#: Beginnings of keys that their makers chose to be told by, whatever the variable is called.
_KEY = re.compile(r"(sk-|gh[opsru]_|github_pat_|glpat-|hf_|xox[abeprs]-|AKIA|ASIA|eyJ)")
#: The login in an address: of a proxy, a repository, a server.
_LOGIN = re.compile(r"(?<=://)[^\s/@?#\"'<>]+(?=@)")


def redacted(text: str) -> str:
    """``text`` without the values of secret environment variables, and without logins in addresses.

    A server may echo the key that it refuses, and what it says ends in messages, logs and files:
    as it is, in two bytes a character, or as addresses, JSON, HTML and headers write it. Values of
    fewer than eight characters are no keys, and would tear words apart. Cut afterwards: half a key
    is a secret too.
    """
    if not text:
        return text
    secrets = {
        v for k, v in os.environ.items() if len(v) >= 8 and (_SECRET.search(k) or _KEY.match(v))
    }
    for value in sorted(secrets, key=len, reverse=True):  # one may begin as another does
        for form in _forms(value):
            text = text.replace(form, "***")
    return _LOGIN.sub("***", text)


@lru_cache(maxsize=256)
def _forms(value: str) -> tuple[str, ...]:
    """A secret as it is, and as others write it. The longest first: one may begin as another."""
    base64 = b64encode(value.encode("utf-8", "surrogateescape")).decode()
    wide = "\0".join(value)  # UTF-16, for a reader of one byte a character
    return tuple(sorted({base64, *_written(value), *_written(wide)}, key=len, reverse=True))


def _written(value: str) -> set[str]:
    in_json = json.dumps(value)[1:-1]
    escaped = re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", in_json)  # as Go does
    in_address = [quote(value, safe=""), quote(value), quote_plus(value)]
    lower = [re.sub("%..", lambda found: found[0].lower(), form) for form in in_address]
    in_python = repr(value)[1:-1]
    plain = {value, in_json, in_json.replace("/", "\\/"), escaped, in_python, html.escape(value)}
    return {*plain, *in_address, *lower}


class UserError(Exception):
    """Something the user can mend. Shown without a traceback; the CLI exits with 2.

    Args:
        what: what went wrong, one sentence, naming the thing at fault.
        why: the reason, if it is not plain from ``what``.
        fix: what to do now.
        where: file, with line or field, e.g. ``assistant.yaml:12 intents.who.reply``.
    """

    def __init__(self, what: str, why: str = "", fix: str = "", *, where: str = "") -> None:
        what, why, fix, where = map(redacted, (what, why, fix, where))
        super().__init__(what, why, fix, where)
        self.what = what
        self.why = why
        self.fix = fix
        self.where = where

    def to_dict(self) -> ErrorRecord:
        """For a file, a pipe or a transcript; ``from_dict`` is the inverse."""
        record: ErrorRecord = {"what": self.what}
        if self.why:
            record["why"] = self.why
        if self.fix:
            record["fix"] = self.fix
        if self.where:
            record["where"] = self.where
        return record

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> UserError:
        """The error that was written; never raises, for a record may come from a damaged file."""
        listed = record.get("problems")
        problems = listed if isinstance(listed, list) else []
        found = [UserError.from_dict(p) for p in problems if isinstance(p, Mapping)]
        if found:
            return UserErrors(found, str(record.get("what", "")))
        what, why, fix, where = (str(record.get(k) or "") for k in ("what", "why", "fix", "where"))
        return UserError(what, why, fix, where=where)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


#: Nobody mends more at one go, and a file of a stranger can have one in each of 100,000 lines.
MOST_PROBLEMS = 100


class UserErrors(UserError):
    """Several problems found in one pass, so that they can be mended in one pass.

    Args:
        problems: the first ``MOST_PROBLEMS`` are kept.
        more: how many were found beside them.
    """

    def __init__(self, problems: Sequence[UserError], what: str = "", *, more: int = 0) -> None:
        if not problems:
            raise ValueError("UserErrors needs at least one problem")
        count = len(problems) + more
        super().__init__(what or f"{count} problem{'s' if count > 1 else ''} found")
        self.problems = list(problems[:MOST_PROBLEMS])
        if left := count - len(self.problems):
            self.problems.append(UserError(f"{left:,} more are not listed here"))

    def to_dict(self) -> ErrorRecord:
        """As of UserError, with every problem."""
        return {**super().to_dict(), "problems": [p.to_dict() for p in self.problems]}

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "\n".join([self.what, *(f"- {problem}" for problem in self.problems)])
