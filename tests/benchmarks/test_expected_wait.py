"""The benchmark of the expected wait: what it compares, and that it runs."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.expected_wait import Told, measure, quantiles, report
from tests.conftest import MakeModel


def test_only_those_that_waited_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    report(
        [
            Told(0, expected=2.0, mean=4.0, wait=1.0),
            Told(1, expected=None, mean=4.0, wait=1.0),
            Told(2, expected=2.0, mean=None, wait=1.0),
            Told(3, expected=2.0, mean=4.0, wait=0.0),
            Told(4, expected=2.0, mean=4.0, wait=None),
        ]
    )
    said = capsys.readouterr().out
    assert "5 requests, of which 3 waited; compared on 1." in said
    assert said.splitlines()[-2].split()[-4:] == ["1.00"] * 4
    assert said.splitlines()[-1].split()[-4:] == ["3.00"] * 4


def test_quantiles() -> None:
    assert quantiles(range(101)) == (50, 90)
    assert quantiles([7.0]) == (7.0, 7.0)


def test_it_watches_a_real_backend(tiny: MakeModel) -> None:
    models = [tiny(), tiny(seed=1)]
    args = argparse.Namespace(seconds=1.0, rate=8.0, max_active=1, seed=1)
    told = measure(models, args)
    assert told and all(one.wait is not None and one.wait >= 0 for one in told)
