"""Embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator

from mlx_guarded_llm import Backend, default_backend
from mlx_guarded_llm.errors import InvalidRequest

from .errors import framework_errors

Vectors = list[list[float]]


class MLXGuardedEmbeddings(BaseModel, Embeddings):
    """Embeds texts with a BERT-class model on MLX, under the same guard as chat models.

        from langchain_mlx_guarded import MLXGuardedEmbeddings

        embeddings = MLXGuardedEmbeddings(model="all-minilm-l6-v2")
        vector = embeddings.embed_query("a cat on a mat")
        print(len(vector))  # 384

    It needs `pip install "langchain-mlx-guarded[embeddings]"`. Nothing is loaded before
    the first call.

    Raises:
        pydantic.ValidationError: an argument is unknown or wrong.
    """

    model_name: str = Field(alias="model")
    """Alias, folder or Hugging Face repository of the model."""

    query_prefix: str = ""
    """What models such as e5 want before a query: "query: "."""

    document_prefix: str = ""
    """What they want before a document: "passage: "."""

    timeout: float | None = None
    """Seconds for one call, waiting and loading included."""

    backend: SkipValidation[Backend | None] = Field(default=None, exclude=True, repr=False)
    """Runs the model; None takes the one shared by the process, when it is first needed."""

    model_config = ConfigDict(
        populate_by_name=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.backend is not None and not hasattr(self.backend, "embed"):
            raise InvalidRequest(f"backend is {self.backend!r}; it must be a Backend.")
        return self

    def embed_documents(self, texts: list[str]) -> Vectors:
        """One vector for each text, in their order."""
        return self._embed(self.document_prefix, texts)

    async def aembed_documents(self, texts: list[str]) -> Vectors:
        """As `embed_documents`, without blocking the event loop."""
        return await self._aembed(self.document_prefix, texts)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self._embed(self.query_prefix, [text])[0]

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`, without blocking the event loop."""
        return (await self._aembed(self.query_prefix, [text]))[0]

    def _embed(self, prefix: str, texts: Sequence[str]) -> Vectors:
        if not texts:
            return []
        with framework_errors():
            found = self._runner().embed(
                self.model_name, [prefix + text for text in texts], timeout=self.timeout
            )
        return _rows(found)

    async def _aembed(self, prefix: str, texts: Sequence[str]) -> Vectors:
        if not texts:
            return []
        with framework_errors():
            found = await self._runner().aembed(
                self.model_name, [prefix + text for text in texts], timeout=self.timeout
            )
        return _rows(found)

    def _runner(self) -> Backend:
        return default_backend() if self.backend is None else self.backend


def _rows(found: Any) -> Vectors:
    rows: Vectors = found.vectors.tolist()
    return rows
