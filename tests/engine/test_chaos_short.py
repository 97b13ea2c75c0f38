"""A few kills of the chaos, so that it cannot rot and a gross fault shows at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests._soak import soaked


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_eight_kills_of_the_chaos(tmp_path: Path) -> None:
    said = soaked("chaos", "--kills", "8", "--seed", "7", cache=tmp_path)
    summary = re.search(r"^chaos: ok: (\d+) kills, (\d+) answers, (\d+) resumed", said, re.M)
    assert summary is not None, said
    kills, answers, resumed = map(int, summary.groups())
    assert kills == 8
    assert answers > 0 and resumed > 0, "it judged nothing"  # right ones: else it had failed
