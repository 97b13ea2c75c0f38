"""Embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator

from mlx_guarded_llm import BaseBackend, as_backend, check_backend
from mlx_guarded_llm.embed_request import split_requests
from mlx_guarded_llm.models.naming import model_name, with_options

from .errors import framework_errors
from .options import ModelName
from .sharing import SharesBackend

Vectors = list[list[float]]


class MLXGuardedEmbeddings(SharesBackend, BaseModel, Embeddings):
    """Embeds texts with a BERT-class model on MLX, under the same guard as chat models.

        from langchain_mlx_guarded import MLXGuardedEmbeddings

        embeddings = MLXGuardedEmbeddings(model="all-minilm-l6-v2")
        vector = embeddings.embed_query("a cat on a mat")
        print(len(vector))  # 384

    It needs `pip install "langchain-mlx-guarded[embeddings]"`. Nothing is loaded before
    the first call. Copies share the backend; it is neither dumped nor pickled.

    Raises:
        pydantic.ValidationError: an argument is unknown or wrong.
    """

    model_name: ModelName = Field(alias="model")
    """Alias, folder or Hugging Face repository of the model."""

    revision: str | None = None
    """Branch, tag or commit of the model's repository."""

    context_window: int | None = None
    """Tokens of one text at most; None takes what the model's files say."""

    query_prefix: str = ""
    """What models such as e5 want before a query: "query: "."""

    document_prefix: str = ""
    """What they want before a document: "passage: "."""

    truncate: bool = False
    """Cut texts longer than the model's window; otherwise they are an error."""

    timeout: float | None = None
    """Seconds for one call, waiting and loading included."""

    backend: SkipValidation[BaseBackend | str | None] = Field(
        default=None, exclude=True, repr=False
    )
    """Runs the model: a `Backend` or the address of a server ("http://127.0.0.1:8080"). None takes
    the one shared by the process, when it is first needed."""

    model_config = ConfigDict(
        populate_by_name=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.backend is not None:
            check_backend(self.backend, "embed")
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
        rows: Vectors = []
        with framework_errors():
            for part, left in split_requests([prefix + text for text in texts], self.timeout):
                found = self._runner().embed(
                    self._named, part, truncate=self.truncate, timeout=left
                )
                rows += _rows(found)
        return rows

    async def _aembed(self, prefix: str, texts: Sequence[str]) -> Vectors:
        rows: Vectors = []
        with framework_errors():
            for part, left in split_requests([prefix + text for text in texts], self.timeout):
                found = await self._runner().aembed(
                    self._named, part, truncate=self.truncate, timeout=left
                )
                rows += _rows(found)
        return rows

    @property
    def _named(self) -> str:
        loading = {"revision": self.revision, "context_window": self.context_window}
        return with_options(model_name(self.model_name), loading)

    def _runner(self) -> BaseBackend:
        return as_backend(self.backend)


def _rows(found: Any) -> Vectors:
    rows: Vectors = found.vectors.tolist()
    return rows
