"""A little of the soak, so that it cannot rot and a gross fault shows at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests._soak import soaked


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_quarter_of_a_minute_of_the_soak(isolation: str, tmp_path: Path) -> None:
    options = ["--minutes", "0.25", "--isolation", isolation, "--seed", "7"]
    said = soaked("soak", *options, cache=tmp_path)
    summary = re.search(r"^soak: ok: (\d+) operations, (\d+) periods", said, re.M)
    assert summary is not None, said
    assert int(summary[1]) > 0 and int(summary[2]) > 1  # how many is up to the machine
    saw = re.search(r"the witness saw (.*)", said)
    assert saw is not None
    for kind in ("loads", "steps", "unloads", "foreigns"):
        assert kind in saw[1]
