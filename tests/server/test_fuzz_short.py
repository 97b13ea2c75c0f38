"""A little of the fuzz of a server's API, so that it cannot rot and a gross fault shows at once."""

from __future__ import annotations

import re

import pytest

from tests._soak import soaked


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_some_cases() -> None:
    said = soaked("fuzz_api", "--cases", "120", "--seed", "7")
    assert len(re.findall(r": ok: \d+ cases", said)) == 2, said
