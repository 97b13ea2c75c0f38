"""Retries, fallbacks and provenance: an answer is the one asked for, or says that it is not.

`GuardedLLM` is what users and the adapters call. It makes `Attempts`, which decides, with
tenacity, what to try next; `drivers` does it, by threads or by asyncio. Each attempt asks a
`Candidate`: `LocalModel` calls `Backend`, `OpenAIModel` a server that speaks OpenAI's API,
`ExternalModel` (the base of that and of the adapters' own) a model of another library. `checks`
judges each answer, and `remedies` says what to change.
"""

from .candidate import Call, Candidate, LocalModel
from .llm import GuardedLLM
from .openai.model import OpenAIModel
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
    "OpenAIModel",
    "RetryPolicy",
    "Taint",
    "provenance_of",
    "taint",
]
