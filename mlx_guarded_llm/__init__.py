"""Several MLX models in one process: no load overlaps a generation.

    from mlx_guarded_llm import Backend

    with Backend() as backend:
        print(backend.generate("smollm2-135m", "What is the capital of France?").text)

Importing this package imports neither mlx nor transformers; the first use does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .backend import AsyncStream, Backend, BaseBackend, ModelInfo, Stream
    from .backend.default_backend import as_backend, check_backend, default_backend
    from .display import ProgressBars
    from .errors import GuardedLLMError
    from .fallback import (
        Candidate,
        GuardedLLM,
        LocalModel,
        OpenAIModel,
        RetryPolicy,
        Taint,
        taint,
    )
    from .models import Catalog, ModelCard, ModelSpec, Progress
    from .models.default_catalog import aliases, pull, rm
    from .params import SamplingParams
    from .record import Event, Timeline
    from .results import Attempt, Chunk, Embeddings, Provenance, Result, ToolCall, Usage

__all__ = [
    "AsyncStream",
    "Attempt",
    "Backend",
    "BaseBackend",
    "Candidate",
    "Catalog",
    "Chunk",
    "Embeddings",
    "Event",
    "GuardedLLM",
    "GuardedLLMError",
    "LocalModel",
    "ModelCard",
    "ModelInfo",
    "ModelSpec",
    "OpenAIModel",
    "Progress",
    "ProgressBars",
    "Provenance",
    "Result",
    "RetryPolicy",
    "SamplingParams",
    "Stream",
    "Taint",
    "Timeline",
    "ToolCall",
    "Usage",
    "aliases",
    "as_backend",
    "check_backend",
    "default_backend",
    "pull",
    "rm",
    "taint",
]

_HOMES = {
    "backend": ("AsyncStream", "Backend", "BaseBackend", "ModelInfo", "Stream"),
    "backend.default_backend": ("as_backend", "check_backend", "default_backend"),
    "display": ("ProgressBars",),
    "errors": ("GuardedLLMError",),
    "fallback": (
        "Candidate",
        "GuardedLLM",
        "LocalModel",
        "OpenAIModel",
        "RetryPolicy",
        "Taint",
        "taint",
    ),
    "models": ("Catalog", "ModelCard", "ModelSpec", "Progress"),
    "models.default_catalog": ("aliases", "pull", "rm"),
    "params": ("SamplingParams",),
    "record": ("Event", "Timeline"),
    "results": ("Attempt", "Chunk", "Embeddings", "Provenance", "Result", "ToolCall", "Usage"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Each name is imported on first use, so that importing the package stays cheap.
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
