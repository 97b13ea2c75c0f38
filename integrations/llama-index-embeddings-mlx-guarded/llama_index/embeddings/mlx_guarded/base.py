"""MLXGuardedEmbedding: vectors of a model that shares the engine with the chat models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Self

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import BeforeValidator, ConfigDict, Field

from mlx_guarded_llm import as_backend
from mlx_guarded_llm.embed_request import split_requests
from mlx_guarded_llm.errors import ContextOverflow
from mlx_guarded_llm.models.naming import model_name, spelled, with_options

if TYPE_CHECKING:
    from mlx_guarded_llm.results import Embeddings


class MLXGuardedEmbedding(BaseEmbedding):
    """A local BERT-class model on MLX, run under the guard.

    It is resident beside the chat models and in the same memory budget; loading it waits
    for running generations, and none of its work overlaps theirs on the device.

        from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding

        embedding = MLXGuardedEmbedding(model_name="all-minilm-l6-v2")
        vectors = embedding.get_text_embedding_batch(["Paris is in France.", "Bread."])
        len(vectors), len(vectors[0])       # 2, 384

    Making one loads nothing. Vectors are of length 1, and the same whether a text comes
    alone or with others, up to the arithmetic of a batch.

    Raises:
        GuardedLLMError: as `mlx_guarded_llm.Backend.embed` raises it.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: Annotated[str, BeforeValidator(spelled)] = Field(
        description="Alias, folder or Hugging Face repository."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit.")
    context_window: int | None = Field(
        default=None, description="Tokens of one text; None reads it from the model's files."
    )
    query_instruction: str = Field(default="", description="Put before each query.")
    text_instruction: str = Field(default="", description="Put before each text.")
    truncate: bool = Field(
        default=False,
        description="Cut texts longer than the model's window; otherwise they are an error.",
    )
    timeout: float | None = Field(
        default=None, description="Seconds for a batch: waiting and loading included."
    )
    backend: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="An mlx_guarded_llm.Backend, or a server's address; None uses the one shared "
        "by the process. Copies share it; it is not dumped, and only an address is pickled.",
    )

    @classmethod
    def class_name(cls) -> str:
        return "MLXGuardedEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([self.query_instruction + query])[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([self.query_instruction + query]))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed([self.text_instruction + text for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed([self.text_instruction + text for text in texts])

    def _embed(self, texts: Sequence[str]) -> list[Embedding]:
        vectors: list[Embedding] = []
        with _smaller_chunks():
            for part, left in split_requests(texts, self.timeout):
                options = {"truncate": self.truncate, "timeout": left}
                vectors += _lists(self._runner().embed(self._named, part, **options))
        return vectors

    async def _aembed(self, texts: Sequence[str]) -> list[Embedding]:
        vectors: list[Embedding] = []
        with _smaller_chunks():
            for part, left in split_requests(texts, self.timeout):
                options = {"truncate": self.truncate, "timeout": left}
                vectors += _lists(await self._runner().aembed(self._named, part, **options))
        return vectors

    def _runner(self) -> Any:
        return as_backend(self.backend)

    @property
    def _named(self) -> str:
        loading = {"revision": self.revision, "context_window": self.context_window}
        return with_options(model_name(self.model_name), loading)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return super().__deepcopy__({**(memo or {}), id(self.backend): self.backend})

    def __getstate__(self) -> dict[Any, Any]:
        kept = self.backend if isinstance(self.backend, str) else None
        bare = self.model_copy(update={"backend": kept})
        state: dict[Any, Any] = super(MLXGuardedEmbedding, bare).__getstate__()
        return state


@contextmanager
def _smaller_chunks() -> Iterator[None]:
    """Tell how to split smaller where a text is too long: LlamaIndex takes 1024 tokens."""
    try:
        yield
    except ContextOverflow as error:
        size = max(error.context_window // 2, 1)
        error.hint = (
            f"Split documents smaller (Settings.chunk_size = {size}), or embed only the beginning "
            "of such texts (truncate=True)."
        )
        raise


def _lists(found: Embeddings) -> list[Embedding]:
    vectors: list[Embedding] = found.vectors.tolist()
    return vectors
