"""A little of the soak of a server, so that it cannot rot and a gross fault shows at once."""

from __future__ import annotations

import re

import pytest

from tests._soak import soaked


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_ten_clients_for_a_quarter_of_a_minute() -> None:
    said = soaked("serve", "--clients", "10", "--seconds", "15", "--seed", "7")
    assert re.search(r"^serve: ok: \d+ requests", said, re.M), said
    for outcome in ("whole: ok", "streamed: ok", "left_stream: left", "bad_body: refused"):
        assert outcome in said
