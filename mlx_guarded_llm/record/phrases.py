"""Numbers and names as phrases, the same in logs, stories, charts and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_KB = 1000  # decimal units, as disks and model pages use them


def seconds(value: float) -> str:
    """A duration with about three significant digits: "0.28 s", "35.0 s", "120 s"."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} s"


def about(value: float) -> str:
    """A duration that is only expected: "about 40 s", "about 3 min"."""
    if value < 1:
        return "less than 1 s"
    if value < 90:
        return f"about {value:.0f} s"
    if value < 90 * 60:
        return f"about {value / 60:.0f} min"
    return f"about {value / 3600:.0f} h"


def size(count: float) -> str:
    """A number of bytes: "831 B", "2.39 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < _KB:
            return f"{count:.3g} {unit}"
        count /= _KB
    return f"{count:.3g} TB"


def listing(items: Iterable[str]) -> str:
    """The items as an English list: "a, b and c"."""
    *head, last = list(items) or [""]
    return f"{', '.join(head)} and {last}" if head else last


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 load", "2 loads"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def rate(tokens: int, duration: float) -> str:
    """Tokens per second, or "" if they cannot be told."""
    return f"{tokens / duration:.1f} tokens/s" if tokens > 0 and duration > 0 else ""


def who(pairs: Iterable[tuple[str, str]]) -> str:
    """(id, model) pairs as "r1 (phi3) and r2 (qwen)"."""
    return listing([f"{name} ({model})" if model else name for name, model in pairs])


def number(details: Mapping[str, Any], key: str) -> float | None:
    """The number under `key`, or None when there is none."""
    value = details.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def count(details: Mapping[str, Any], key: str) -> int | None:
    """The whole number under `key`, or None when there is none."""
    value = number(details, key)
    return value if isinstance(value, int) else None


def parts(details: Mapping[str, Any], *keys: str) -> str:
    """The durations under these keys, such as "spawn 0.20 s, import 0.70 s"."""
    numbers = [(key, number(details, key)) for key in keys]
    return ", ".join(f"{key} {seconds(value)}" for key, value in numbers if value is not None)


def tokens(details: Mapping[str, Any]) -> str:
    """The token counts of a finished request, or "" if they are not known."""
    prompt, completion = number(details, "prompt_tokens"), number(details, "completion_tokens")
    cached = number(details, "cached_tokens")
    parts = []
    if prompt is not None:
        parts.append(f"{prompt} prompt tokens" + (f" ({cached} cached)" if cached else ""))
    if completion is not None:
        parts.append(f"{completion} generated" if parts else f"{completion} generated tokens")
    return ", ".join(parts)


def loaded(details: Mapping[str, Any]) -> str:
    """What a load read and how long that took, such as "2.39 GB in 2.31 s", or ""."""
    read, took = number(details, "bytes"), number(details, "seconds")
    parts = [] if read is None else [size(read)]
    return " ".join(parts if took is None else [*parts, f"in {seconds(took)}"])


def took(details: Mapping[str, Any]) -> float | None:
    """The seconds that a finished generation took, for prefill and decode together."""
    whole = number(details, "seconds")
    parts = number(details, "prefill"), number(details, "decode")
    if whole is None and None not in parts:
        return sum(part for part in parts if part is not None)
    return whole


def because(cause: str) -> str:
    """The cause as the end of a sentence: ": cause", or ""."""
    return f": {cause}" if cause else ""


def without_class(cause: str) -> str:
    """What follows the class of an error: "RequestCancelled: gone" becomes "gone"."""
    head, _, tail = cause.partition(": ")
    return "" if head.isidentifier() and not tail else tail if head.isidentifier() else cause


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, which would forge log lines."""
    return "".join(c if c.isprintable() else " " for c in text)
