"""Added tokens of a vocabulary, among them the markers of turns, thinking and tools."""

from __future__ import annotations

import json
from pathlib import Path

from .files import UnreadableFile, read_head, read_object

_HEAD = 4 * 1024**2  # bytes at the start of a tokenizer.json that are searched for them


def named_tokens(folder: Path) -> dict[str, int]:
    """The added tokens of a tokenizer, from all its files; empty if they cannot be read."""
    added = numbered_tokens(folder)
    try:
        entries = read_object(folder / "tokenizer_config.json")["added_tokens_decoder"]
        added |= {entry["content"]: int(number) for number, entry in entries.items()}
    except (UnreadableFile, ValueError, KeyError, TypeError, AttributeError):
        pass
    return added


def numbered_tokens(folder: Path) -> dict[str, int]:
    """The added tokens in tokenizer.json, with the ids it gives them."""
    try:
        head = read_head(folder / "tokenizer.json", _HEAD).decode(errors="replace")
        start = head.index('"added_tokens"') + len('"added_tokens"')
        entries, _ = json.JSONDecoder().raw_decode(head, head.index("[", start))
        return {entry["content"]: entry["id"] for entry in entries}
    except (UnreadableFile, ValueError, RecursionError, KeyError, TypeError):
        return {}
