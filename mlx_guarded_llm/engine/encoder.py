"""Embedding models on the MLX thread: loading one, and a batch of its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..models.encoders import encoder_type, pooling
from ..models.spec import ModelFiles
from .microbatch import EmbedJob, MicroBatches


@dataclass(frozen=True)
class Embedded:
    """So many texts of a job have their vectors."""

    job: EmbedJob

    @property
    def request_id(self) -> str:
        return self.job.request_id


class Encoder:
    """An embedding model: token ids to unit vectors.

    Args:
        model: a model of mlx-embeddings.
        first_token: a text's vector is that of its first token, which mlx-embeddings
            does not do by itself.
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
    # Late: it brings mlx-vlm and takes a second, which only those who embed should pay.
    from mlx_embeddings.utils import load_model  # type: ignore[import-untyped]  # has none

    mode = pooling(files.path)
    kind = encoder_type(files.config)
    config = {"classifier_pooling": mode} if kind == "modernbert" and mode else {}
    model = load_model(files.path, lazy=True, model_config=config)
    return Encoder(model, first_token=mode == "cls" and kind != "modernbert")


class EncoderBatch:
    """Several embedding requests of one model, computed together.

    It is to `Encoder` what a `Decoder` is to a language model, with `Embedded` as its
    updates. One step is one micro-batch; nothing is in flight after it.

    Args:
        encoder: the model.
        padding: token id that fills the shorter texts of a micro-batch.
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

    def insert(self, job: EmbedJob) -> int:
        """Let a request join. It has no prefix cache: returns 0."""
        self._waiting.add(job)
        return 0

    def remove(self, request_id: str) -> None:
        """Let a request leave, finished or not. Unknown ones are ignored."""
        self._waiting.remove(request_id)

    def step(self, *, beside: bool = False) -> list[Embedded]:
        """Compute one micro-batch, which is small whoever else waits."""
        rows = self._waiting.next()
        texts = [job.texts[i] for job, i in rows]
        ids = np.full((len(texts), len(texts[0])), self._padding, dtype=np.int32)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        vectors = np.array(self._encoder(mx.array(ids), mx.array(mask)))
        for (job, i), vector in zip(rows, vectors, strict=True):
            job.vectors[i] = vector
        return [Embedded(job) for job in dict.fromkeys(job for job, _ in rows)]
