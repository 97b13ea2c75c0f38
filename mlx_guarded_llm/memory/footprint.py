"""Predicts what a model takes in memory, from its files alone and without MLX."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

from ..models.architectures import module_name
from ..models.safetensors import BrokenFile, Tensor, read_header
from ..models.spec import ModelFiles
from ..models.verify import text_config
from .cache_plan import CACHE_STEP, Numbers, plan_caches

_FUSED_HEAD_DIMS = (64, 80, 128)  # whose scores MLX's Metal kernel keeps on the chip


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a model takes, for its weights and for each sequence.

    Attributes:
        weight_bytes: all tensors, adapters included.
        kv_bytes_per_token: of the caches that keep every token.
        windows: (tokens kept, bytes per token) of the sliding-window caches.
        state_bytes: what a sequence takes whatever its length: recurrent layers.
        activation_bytes: per token of a prefill chunk, while one layer works on it.
        score_bytes: per pair of a chunk's token and a token it attends to.
        logits_bytes: the logits of one token, which the sampler holds in float32.
        overhead_bytes: the least to allow for a prefill, as measured (`Corrections`).
        whole_texts: it embeds texts, each at once however long it is.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    windows: tuple[tuple[int, int], ...] = ()
    state_bytes: int = 0
    activation_bytes: int = 0
    score_bytes: int = 0
    logits_bytes: int = 0
    overhead_bytes: int = 0
    whole_texts: bool = False

    def kv_bytes(self, tokens: int) -> int:
        """Caches of one sequence of that many tokens, without `state_bytes`."""
        kept = -(-max(tokens, 0) // CACHE_STEP) * CACHE_STEP
        total = kept * self.kv_bytes_per_token
        for window, each in self.windows:
            # A rotating cache grows by a step from wherever its prefill ended.
            total += min(kept + CACHE_STEP, window) * each
        return total

    def prefill_bytes(self, chunk_tokens: int, *, context_tokens: int | None = None) -> int:
        """The most a prefill chunk takes beyond weights and caches.

        Args:
            chunk_tokens: tokens that are prefilled at once, over all rows of a batch.
            context_tokens: tokens that each of them may attend to; None means the
                chunk itself. Only kernels that write attention scores out need them:
                the CPU's always, Metal's for unusual head sizes.
        """
        pairs = chunk_tokens * (context_tokens or chunk_tokens)
        # A rotating cache holds the whole chunk beside its window until it is trimmed.
        growth = chunk_tokens * sum(each for _, each in self.windows)
        predicted = (
            chunk_tokens * self.activation_bytes
            + pairs * self.score_bytes
            + growth
            + self.logits_bytes
        )
        return max(predicted, self.overhead_bytes)


def predict(files: ModelFiles) -> Footprint:
    """Predicts the footprint of a verified model; wrong by a little, never by a factor.

    What cannot be read off the config is taken on the large side.
    """
    if files.spec.task == "embed":
        return _predict_encoder(files)
    config = text_config(files.config)
    module = _language_module(config)
    width = _activation_width(files)
    spec = files.spec
    caches = plan_caches(
        config, module, width=width, kv_bits=spec.kv_bits, kv_group_size=spec.kv_group_size
    )
    c = Numbers(config)
    return Footprint(
        weight_bytes=files.weight_bytes,
        kv_bytes_per_token=caches.full,
        windows=caches.windows,
        state_bytes=caches.state,
        activation_bytes=_activation_elements(c) * width,
        score_bytes=_score_bytes(c, width),
        logits_bytes=c.get("vocab_size", default=32000) * 2 * 4,
    )


def _predict_encoder(files: ModelFiles) -> Footprint:
    """An embedding model keeps nothing of a text; it has no caches and no logits."""
    c = Numbers(files.config)
    width = _activation_width(files)
    return Footprint(
        weight_bytes=files.weight_bytes,
        kv_bytes_per_token=0,
        # Measured: a whole forward pass is computed at once, and frees its arrays late.
        activation_bytes=(16 * c.hidden + 3 * c.get("intermediate_size", default=4 * c.hidden))
        * width,
        score_bytes=c.heads * 4 * 2,  # with the mask and their softmax, in float32
        whole_texts=True,
    )


def _language_module(config: dict[str, object]) -> str:
    """The module of mlx_lm.models that runs the language part of the model."""
    model_type = config.get("model_type")
    name = (
        module_name(model_type, config.get("architectures")) if isinstance(model_type, str) else ""
    )
    # A config of several parts may name only the whole.
    return {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "lfm2-vl": "lfm2"}.get(name, name)


def _activation_width(files: ModelFiles) -> int:
    """Bytes of an activation: norms and embeddings in float32 make all of them so."""
    tensors: dict[str, Tensor] = {}
    for file in files.weight_files:
        try:
            tensors.update(read_header(file).tensors)
        except (BrokenFile, OSError):
            return 4
    decisive = Counter(
        tensor.dtype
        for name, tensor in tensors.items()
        if tensor.dtype in ("F16", "BF16", "F32") and ("norm" in name or "embed" in name)
    )
    return 4 if not decisive or decisive.most_common(1)[0][0] == "F32" else 2


def _score_bytes(c: Numbers, width: int) -> int:
    """Scores and their softmax, for each head, where the kernel writes them out."""
    fused = c.head_dim in _FUSED_HEAD_DIMS and not c.get("kv_lora_rank", default=0)
    return 0 if fused and sys.platform == "darwin" else c.heads * width * 2


def _activation_elements(c: Numbers) -> int:
    """Elements per token alive at once in the widest part of a layer.

    The residual and its norm, then either the queries, keys, values and output of
    the attention or the gate, the up projection and their product.
    """
    attention = 2 * (c.heads + c.kv_heads) * c.head_dim
    inner = c.get("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim",
                  default=4 * c.hidden)  # fmt: skip
    experts = c.get("num_experts_per_tok", "moe_topk", "top_k_experts", default=0)
    if experts:
        routed = experts * c.get("moe_intermediate_size", default=inner)
        inner = max(inner, routed + experts * c.hidden)
    return 3 * c.hidden + max(attention, 3 * inner)
