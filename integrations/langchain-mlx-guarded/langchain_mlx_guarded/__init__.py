"""LangChain on MLX: chat models and embeddings that say where an answer came from.

    from langchain_mlx_guarded import ChatMLXGuarded

    chat = ChatMLXGuarded(model="smollm2-135m", max_tokens=32)
    print(chat.invoke("What is the capital of France?").content)

`langchain_mlx_guarded.middleware` has the middleware for agents; it needs langchain.
"""

from .candidate import LangChainCandidate
from .chat_models import ChatMLXGuarded
from .embeddings import MLXGuardedEmbeddings

__version__ = "0.1.0"

__all__ = ["ChatMLXGuarded", "LangChainCandidate", "MLXGuardedEmbeddings"]
