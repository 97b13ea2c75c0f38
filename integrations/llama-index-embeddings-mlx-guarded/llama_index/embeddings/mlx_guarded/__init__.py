"""Embeddings on MLX for LlamaIndex, in one engine with the chat models.

    from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding

    embedding = MLXGuardedEmbedding(model_name="all-minilm-l6-v2")

Importing this imports neither mlx nor transformers, and making one loads nothing.
"""

from .base import MLXGuardedEmbedding

__version__ = "0.1.0"

__all__ = ["MLXGuardedEmbedding"]
