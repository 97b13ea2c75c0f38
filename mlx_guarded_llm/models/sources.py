"""Which keys of a config.json an architecture reads, from its source.

mlx-lm silently drops every key that an architecture does not know. Importing one would import MLX,
so it is read as text, together with the modules that it imports parts from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Helpers that every architecture imports. What they mention says nothing about any of them.
_HELPERS = frozenset({"activations", "base", "cache", "pipeline", "rope_utils", "switch_layers"})
_IMPORT = re.compile(r"^\s*from \.(\w*) import \(?([^)\n]*)", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """The source of an architecture.

    Attributes:
        module: its name.
        text: its own text, and that of the modules that it imports parts from.
        parts: the names of all of these.
    """

    module: str
    text: str
    parts: frozenset[str] = frozenset()

    def reads(self, *keys: str) -> bool:
        """Whether it reads one of these keys of a config. Declaring it is not enough."""
        return any(_mentions(self.text, rf"(?:\.{re.escape(k)}\b)") or self.names(k) for k in keys)

    def names(self, word: str) -> bool:
        """Whether it contains this word as a string."""
        return _mentions(self.text, rf"[\"']{re.escape(word)}[\"']")

    def mentions(self, *words: str) -> bool:
        """Whether its code contains one of these words."""
        return any(_mentions(self.text, rf"\b{re.escape(word)}\b") for word in words)

    def has(self, code: str) -> bool:
        """Whether its code contains exactly this."""
        return code in self.text

    def calls(self, function: str) -> bool:
        """Whether it calls this function."""
        return _mentions(self.text, rf"\b{re.escape(function)}\(")


@cache
def read_source(folder: Path, module: str) -> Source:
    """The source of one of the modules in a folder of architectures."""
    texts: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = folder / f"{name}.py"
        if name in texts or name in _HELPERS or not file.is_file():
            continue
        texts[name] = file.read_text(encoding="utf-8")
        for parent, names in _IMPORT.findall(texts[name]):
            waiting += [parent] if parent else re.findall(r"\w+", names)
    return Source(module, "\n".join(texts.values()), frozenset(texts))


@cache
def _mentions(text: str, pattern: str) -> bool:
    return re.search(pattern, text) is not None
