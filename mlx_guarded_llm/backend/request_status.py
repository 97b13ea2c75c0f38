"""How a request is, at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RequestState = Literal[
    "fetching", "preparing", "waiting", "running", "paused", "stopping", "interrupted"
]


@dataclass(frozen=True, kw_only=True)
class RequestStatus:
    """See `Backend.status`.

    Attributes:
        request_id: its own, or that of the attempt which `GuardedLLM` makes for it now.
        model: that it asks.
        state: "fetching" its model, "preparing" its prompt, "waiting" to start, "running",
            "paused" while another model loads, "stopping", or "interrupted" by a crash, after
            which it goes on.
        words: what it does or waits for, such as "phi3 waits to be loaded behind llama-70b".
        expected_wait: seconds until it is expected to start; None if it has, or that is unknown.
        tokens: of its answer so far.
        resumed: it goes on after a crash.
    """

    request_id: str
    model: str
    state: RequestState
    words: str = ""
    expected_wait: float | None = None
    tokens: int = 0
    resumed: bool = False
