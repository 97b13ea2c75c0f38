"""Embedding models on the MLX thread: opening one, and the batch of its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ...models.encoders import encoder_type, pooling
from ...models.spec import ModelFiles
from ..lazy_import import lazily_imported
from ..residency.staging import staged_weights
from .microbatch import EncodedTexts, MicroBatches


@dataclass(frozen=True)
class Embedded:
    """Some texts of a request have their vectors now."""

    encoded: EncodedTexts

    @property
    def request_id(self) -> str:
        return self.encoded.request_id


class Encoder:
    """An embedding model: from token ids to unit vectors.

    Args:
        model: a model of mlx-embeddings.
        first_token: the vector of a text is that of its first token (CLS pooling), which
            mlx-embeddings does not do by itself.
    """

    def __init__(self, model: Any, *, first_token: bool) -> None:
        self.model = model
        self._first_token = first_token

    def __call__(self, ids: mx.array, mask: mx.array) -> mx.array:
        """Vectors of shape (texts, size), for ids and mask of shape (texts, tokens)."""
        output = self.model(ids, attention_mask=mask)
        vectors: mx.array = output.text_embeds
        if self._first_token:
            vectors = output.last_hidden_state[:, 0]
            vectors = vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
        return vectors.astype(mx.float32)


def open_encoder(files: ModelFiles) -> Encoder:
    """An embedding model whose weights are not evaluated yet."""
    # Imported here because it takes a second (it imports mlx-vlm), which only embedding needs.
    with lazily_imported():
        from mlx_embeddings.utils import load_model  # type: ignore[import-untyped]  # has none

    mode = pooling(files.path)
    kind = encoder_type(files.config)
    config = {"classifier_pooling": mode} if kind == "modernbert" and mode else {}
    with staged_weights(files) as folder, lazily_imported():
        model = load_model(folder, lazy=True, model_config=config)
    return Encoder(model, first_token=mode == "cls" and kind != "modernbert")


class EncoderBatch:
    """Several embedding requests of one model, computed together.

    It corresponds to the `Decoder` of a language model; its updates are `Embedded`. One step
    computes one micro-batch, and leaves nothing in flight.

    Args:
        encoder: the model.
        padding: the token id that pads the shorter texts of a micro-batch.
        max_tokens: of a micro-batch, see `MicroBatches`.
    """

    def __init__(self, encoder: Encoder, *, padding: int, max_tokens: int) -> None:
        self._encoder = encoder
        self._padding = padding
        self._waiting = MicroBatches(max_tokens)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def begins(self) -> bool:
        """Never: it has no first token."""
        return False

    def insert(self, encoded: EncodedTexts) -> int:
        """Add a request. Returns 0, as there is no prefix cache."""
        self._waiting.add(encoded)
        return 0

    def remove(self, request_id: str) -> None:
        """See `Decoder.remove`."""
        self._waiting.remove(request_id)

    def step(self, *, beside: bool = False) -> list[Embedded]:
        """Compute one micro-batch. It is small, so `beside` makes no difference."""
        rows = self._waiting.next()
        texts = [encoded.texts[i] for encoded, i in rows]
        ids = np.full((len(texts), len(texts[0])), self._padding, dtype=np.int32)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        vectors = np.array(self._encoder(mx.array(ids), mx.array(mask)))
        for (encoded, i), vector in zip(rows, vectors, strict=True):
            encoded.vectors[i] = vector
        return [Embedded(encoded) for encoded in dict.fromkeys(encoded for encoded, _ in rows)]
