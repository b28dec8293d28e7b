"""Every parser of foreign files, on a few hostile inputs each; ``make fuzz`` tries many."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz.feeding import feed
from tests.fuzz.parsers import PARSERS

FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", PARSERS)
def test_a_hostile_file_is_read_or_refused_in_words(name: str) -> None:
    feed(PARSERS[name], FEW)
