"""mlx and mlx-lm are as the library knows them; if not, each name that changed is told."""

from __future__ import annotations

import json

from tests.upstream.used import (
    KNOWN,
    all_used,
    changes,
    describe,
    describe_all,
    is_used,
    used,
    versions,
)


def test_every_name_is_as_we_know_it() -> None:
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    names = {name: signature for name, signature in known["names"].items() if is_used(name)}
    lines = changes(names, describe_all(all_used()))
    told = "\n  ".join(lines)
    assert not lines, f"known is {known['versions']}, installed {versions()}:\n  {told}"


def test_every_name_that_is_used_exists() -> None:
    missing = sorted(name for name in all_used() if not describe(name))
    assert not missing


def test_what_is_used_is_found() -> None:
    source = """
import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model as load
from .engine import other
def f():
    from mlx.nn import Module
    return mx.array([np.pi]), mx.random
"""
    assert set(used(source)) == {
        *("mlx_lm.utils.load_model", "mlx.nn.Module", "mlx.core.array", "mlx.core.random")
    }


def test_each_change_is_named() -> None:
    known = {"a.f": "(x)", "a.g": "(x)", "a.C": "class", "a.C.run": "(self)"}
    found = {"a.f": "(x)", "a.g": "(x, y)", "a.C": "class", "a.new": "()"}
    assert changes(known, found) == [
        "a.g was (x) and is (x, y)",
        "a.C.run is gone; it was (self)",
    ]


def test_a_name_that_is_gone_has_no_description() -> None:
    assert describe_all({"mlx_lm.utils.no_such_name", "mlx_lm.no_such_module.f"}) == {}
