"""Answers of the model that was asked for, or ones that say that they are not."""

from .candidate import Call, Candidate, LocalModel
from .llm import GuardedLLM
from .policy import RetryPolicy
from .streams import AsyncGuardedStream, GuardedStream
from .taint import Taint, provenance_of, taint

__all__ = [
    "AsyncGuardedStream",
    "Call",
    "Candidate",
    "GuardedLLM",
    "GuardedStream",
    "LocalModel",
    "RetryPolicy",
    "Taint",
    "provenance_of",
    "taint",
]
