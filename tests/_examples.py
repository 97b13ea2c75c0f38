"""Examples in docstrings, for the tests that run them."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

_BLOCK = re.compile(r"\n\n((?:    .*\n|\n)+)")


def example_of(documented: Any) -> str:
    """The first indented block of a docstring."""
    block = _BLOCK.search(f"{inspect.cleandoc(documented.__doc__)}\n")
    assert block, f"{documented} has no example"
    return textwrap.dedent(block[1])
