"""Numbers as people read them."""

from __future__ import annotations

from ..record.words import listing, seconds, size

__all__ = ["count", "listing", "rate", "seconds", "size"]


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 load", "2 loads"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def rate(tokens: int, duration: float) -> str:
    """Tokens per second, or "" when there is no speed to speak of."""
    return f"{tokens / duration:.1f} tokens/s" if tokens > 0 and duration > 0 else ""
