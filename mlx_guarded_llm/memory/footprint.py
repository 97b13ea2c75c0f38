"""Predicting how much memory a model takes, from what verification read and without MLX."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from math import ceil

from ..models.architectures import module_name
from ..models.config import text_config
from ..models.hosts import Hosts
from ..models.numbers import Numbers
from ..models.spec import MOST_DRAFTED, ModelFiles
from .cache_plan import CACHE_STEP, plan_caches

_FUSED_HEAD_DIMS = (64, 80, 128)  # for these MLX's Metal kernel keeps scores on the chip


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """How many bytes a model takes for its weights and for each sequence.

    Attributes:
        weight_bytes: all tensors, adapters included.
        kv_bytes_per_token: of the caches that keep every token.
        windows: (tokens kept, bytes per token) of the sliding-window caches.
        state_bytes: what a sequence takes regardless of its length, in recurrent layers.
        activation_bytes: per token of a prefill chunk, while one layer works on it.
        score_bytes: per pair of a token of the chunk and a token that it attends to.
        logits_bytes: the logits of one token, in float32 as the sampler has them.
        overhead_bytes: a lower bound for a prefill, as measured (`Corrections`).
        whole_texts: it embeds texts, each as a whole however long it is.
        ranks: it is spread, and these are the takings of so many ranks; 0 if it is not.
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
    ranks: int = 0

    def kv_bytes(self, tokens: int) -> int:
        """The caches of one sequence of this many tokens, without `state_bytes`."""
        kept = -(-max(tokens, 0) // CACHE_STEP) * CACHE_STEP
        total = kept * self.kv_bytes_per_token
        for window, each in self.windows:
            # A rotating cache grows by a step from wherever its prefill ended.
            total += min(kept + CACHE_STEP, window) * each
        return total

    def prefill_bytes(self, chunk_tokens: int, *, context_tokens: int | None = None) -> int:
        """The most that a prefill chunk takes in addition to weights and caches.

        Args:
            chunk_tokens: tokens that are computed at once, over all rows of a batch.
            context_tokens: how many tokens each of them may attend to; None for the chunk itself.
                Only kernels that write attention scores to memory need this: the CPU's always,
                Metal's for unusual head sizes.
        """
        pairs = chunk_tokens * (context_tokens or chunk_tokens)
        # A rotating cache holds the whole chunk in addition to its window until it is trimmed.
        growth = chunk_tokens * sum(each for _, each in self.windows)
        predicted = (
            chunk_tokens * self.activation_bytes
            + pairs * self.score_bytes
            + growth
            + self.logits_bytes
        )
        return max(predicted, self.overhead_bytes)


def predict(files: ModelFiles) -> Footprint:
    """Predict the footprint of a verified model. It may be wrong by a little, never by a factor.

    What the config does not say is estimated on the large side. The draft of a model is part of it.
    Of a model that is spread, only what the ranks on this machine and GPU take counts.
    """
    if files.spec.task == "embed":
        return _predict_encoder(files)
    own = _predict_decoder(files)
    if files.hosts is not None:
        return _share(own, files, files.hosts)
    if files.spec.draft is None:
        return own
    # The logits of several tokens are compared with what was drafted.
    drafting = replace(own, logits_bytes=own.logits_bytes * (MOST_DRAFTED + 1))
    return drafting if files.draft is None else _together(drafting, _predict_decoder(files.draft))


def _together(model: Footprint, draft: Footprint) -> Footprint:
    """The footprint of a model and its draft, which never compute at the same time."""
    return replace(
        model,
        weight_bytes=model.weight_bytes + draft.weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token + draft.kv_bytes_per_token,
        windows=model.windows + draft.windows,
        state_bytes=model.state_bytes + draft.state_bytes,
        activation_bytes=max(model.activation_bytes, draft.activation_bytes),
        score_bytes=max(model.score_bytes, draft.score_bytes),
    )


def _predict_decoder(files: ModelFiles) -> Footprint:
    """The footprint of a language model without a draft."""
    config = text_config(files.config)
    module = _language_module(config)
    width = files.activation_bytes
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


def _share(whole: Footprint, files: ModelFiles, hosts: Hosts) -> Footprint:
    """What the ranks that share the memory of the first take of a model.

    Each has its part of the layers and of the KV caches, and all of the embedding and the head.
    """
    c = Numbers(text_config(files.config))
    layers, ranks, here = c.get("num_hidden_layers", default=1), len(hosts), hosts.counted
    part = 1 / ranks if hosts.sharding == "tensor" else -(-layers // ranks) / layers
    share = min(1.0, here * part)
    head = c.get("vocab_size", default=32000) * c.hidden * files.activation_bytes * 2
    head = min(head, whole.weight_bytes)
    return replace(
        whole,
        weight_bytes=here * head + ceil((whole.weight_bytes - head) * share),
        kv_bytes_per_token=ceil(whole.kv_bytes_per_token * share),
        windows=tuple((kept, ceil(each * share)) for kept, each in whole.windows),
        state_bytes=ceil(whole.state_bytes * share),
        activation_bytes=here * whole.activation_bytes,
        score_bytes=here * whole.score_bytes,
        logits_bytes=here * whole.logits_bytes,
        ranks=here,
    )


def _predict_encoder(files: ModelFiles) -> Footprint:
    """The footprint of an embedding model, which has neither caches nor logits."""
    c = Numbers(files.config)
    width = files.activation_bytes
    return Footprint(
        weight_bytes=files.weight_bytes,
        kv_bytes_per_token=0,
        # As measured: a forward pass is computed as a whole, and frees its arrays late.
        activation_bytes=(16 * c.hidden + 3 * c.get("intermediate_size", default=4 * c.hidden))
        * width,
        score_bytes=c.heads * 4 * 2,  # scores with mask, and their softmax, in float32
        whole_texts=True,
    )


def _language_module(config: dict[str, object]) -> str:
    """The module of mlx_lm.models that runs the language part of the model."""
    model_type = config.get("model_type")
    name = (
        module_name(model_type, config.get("architectures")) if isinstance(model_type, str) else ""
    )
    # The config of a model with several parts may only name the whole.
    return {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "lfm2-vl": "lfm2"}.get(name, name)


def _score_bytes(c: Numbers, width: int) -> int:
    """Scores and their softmax for each head, if the kernel writes them to memory."""
    fused = c.head_dim in _FUSED_HEAD_DIMS and not c.get("kv_lora_rank", default=0)
    return 0 if fused and sys.platform == "darwin" else c.heads * width * 2


def _activation_elements(c: Numbers) -> int:
    """How many elements per token are alive at once in the widest part of a layer.

    These are the residual and its norm, and either the queries, keys, values and output of the
    attention, or the gate, the up projection and their product.
    """
    attention = 2 * (c.heads + c.kv_heads) * c.head_dim
    inner = c.get("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim",
                  default=4 * c.hidden)  # fmt: skip
    experts = c.get("num_experts_per_tok", "moe_topk", "top_k_experts", default=0)
    if experts:
        routed = experts * c.get("moe_intermediate_size", default=inner)
        inner = max(inner, routed + experts * c.hidden)
    return 3 * c.hidden + max(attention, 3 * inner)
