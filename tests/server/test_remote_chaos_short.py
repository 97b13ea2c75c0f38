"""A few kills of a server and its engine, so that the long run cannot rot."""

from __future__ import annotations

import re

import pytest

from tests._soak import soaked


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_four_kills_under_eight_clients() -> None:
    said = soaked("remote", "--small", "--kills", "4", "--seed", "7")
    found = re.search(
        r"^remote: ok: (\d+) kills of the server, (\d+) of its engine; (\d+) right answers",
        said,
        re.M,
    )
    assert found is not None, said
    servers, engines, right = map(int, found.groups())
    assert servers and engines and servers + engines == 4
    assert right > 0, "it judged nothing"
