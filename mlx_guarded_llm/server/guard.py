"""Provenance as response headers: who was asked, who served, what the request waited for."""

from __future__ import annotations

from urllib.parse import quote

from ..results import Provenance

_SAFE = "/:@[]=,+ ()"  # characters of a model name that headers can carry


def guard_headers(guard: Provenance) -> dict[str, str]:
    """The headers of an answer, or of an error after attempts were made."""
    where = {"x-guard-replica": guard.replica} if guard.replica else {}
    return (
        asked_headers(guard.request_id, guard.requested_model)
        | where
        | {
            "x-guard-served-model": quote(guard.served_model, safe=_SAFE),
            "x-guard-fallback": str(guard.fallback).lower(),
            "x-guard-degraded": ",".join(guard.degraded),
            "x-guard-attempts": str(len(guard.attempts)),
            "x-guard-resumed": str(guard.resumed).lower(),
            "x-guard-queued": f"{guard.queued:.3f}",
            "x-guard-deferred": f"{guard.deferred:.3f}",
            "x-guard-loading": f"{guard.loading:.3f}",
        }
    )


def expected_headers(wait: float) -> dict[str, str]:
    """How long a request is expected to wait until it starts, in seconds."""
    return {"x-guard-expected-wait": f"{wait:.1f}"}


def asked_headers(request_id: str, model: str) -> dict[str, str]:
    """The headers that are known when a stream begins."""
    return {
        "x-guard-request-id": request_id,
        "x-guard-requested-model": quote(model, safe=_SAFE),
    }
