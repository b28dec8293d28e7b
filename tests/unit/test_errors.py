"""Errors as plain data: what is written is what is read, whatever a file holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError, UserErrors

pytestmark = pytest.mark.fast

_errors = st.builds(UserError, st.text(min_size=1), st.text(), st.text(), where=st.text())
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.recursive(_errors, lambda inner: st.builds(UserErrors, st.lists(inner, min_size=1))))
def test_what_is_written_is_what_is_read(error: UserError) -> None:
    back = UserError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(back) is type(error) and str(back) == str(error)


@given(st.dictionaries(st.sampled_from(["what", "why", "fix", "where", "problems"]), _anything))
def test_a_damaged_record_is_still_an_error(record: dict[str, Any]) -> None:
    assert isinstance(UserError.from_dict(record), UserError)
