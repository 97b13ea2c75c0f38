"""Local MLX models for LlamaIndex, whose answers say which model gave them.

    from llama_index.llms.mlx_guarded import MLXGuarded

    llm = MLXGuarded(model="smollm2-135m", fallbacks=["phi3-mini"])
    print(llm.complete("What is the capital of France?"))

Importing this imports neither mlx nor transformers, and making an LLM loads nothing.
"""

from .base import MLXGuarded
from .candidate import LlamaIndexCandidate
from .errors import NoToolCall, RequestRefused
from .watch import Watch, watch

__version__ = "0.1.0"

__all__ = ["LlamaIndexCandidate", "MLXGuarded", "NoToolCall", "RequestRefused", "Watch", "watch"]
