"""Which caches each layer of a model keeps, read from its config.json.

The truth is `make_cache` of each module in `mlx_lm/models`. This follows it for the families
that matter. Where it does not know a layer it takes the largest kind: a key and a value for
every token. Sizes are in bytes for one sequence.
"""

# Why there are tables here. A forward pass that is never evaluated shows the caches of most
# models: of 99 modules of mlx-lm 0.32.2, as its own tests configure them, 85 gave the numbers
# of this file. All but one pass took 1 to 200 ms and did not touch the weights. It is no
# replacement because
#
# - dbrx copies its router's choice to NumPy, so its pass evaluates the router's weights and
#   whatever comes before them: 7.4 s and 160 MB, before anybody has decided that the model
#   may be loaded;
# - bitnet has a Metal kernel and no other, so there is no such pass on Linux;
# - llama4's caches shrink to their chunk only when the next tokens come, and hold a step more
#   than one pass shows;
# - the model must be built to be asked, on the MLX thread, while others generate.
#
# For some modules the pass was right and this file was not: baichuan_m1, bailing_moe_linear,
# dbrx, jamba, lfm2-vl, longcat_flash_ngram, mamba, plamo, plamo2, recurrent_gemma, rwkv7. For
# those that were small enough to evaluate, this file says too much, or too little by less than
# a hundredth. Others, among them dbrx, jamba, mamba and plamo, were too large: how far off
# this file is for them was not measured.

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..models.numbers import MAX_LAYERS, Numbers

CACHE_STEP = 256  # tokens; caches grow by this many (mlx_lm.models.cache.KVCache.step)

Kind = Literal["full", "window", "state", "both", "none"]

# Modules whose sliding layers have a rotating cache. Others keep every token.
_WINDOWED = frozenset({
    "afmoe", "baichuan_m1", "cohere2", "exaone4", "exaone_moe", "gemma3_text", "gemma3n",
    "gemma4_text", "gpt_oss", "laguna", "llama", "llama4", "mellum", "mimo_v2_flash",
    "ministral3", "muse_glimmer", "olmo3", "recurrent_gemma", "spark2_5", "step3p5",
})  # fmt: skip
# Multi-head latent attention: modules that cache the latent itself, not its expansion.
_LATENT = frozenset({
    "bailing_hybrid", "bailing_moe_v3", "deepseek_v3", "deepseek_v32", "glm4_moe_lite",
    "glm_moe_dsa", "kimi_k25", "kimi_k3", "kimi_linear", "kimi_vl", "longcat_flash",
    "longcat_flash_ngram", "mistral4",
})  # fmt: skip
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv7"})
_GATED_DELTA = frozenset({"qwen3_5", "qwen3_5_moe", "qwen3_next"})
_TWICE = frozenset({"longcat_flash", "longcat_flash_ngram"})  # two attentions in a layer
_LAYER_LISTS = ("layer_types", "layers_block_type", "hybrid_layer_pattern", "block_types",
                "_block_types")  # fmt: skip
_KINDS: Mapping[str, Kind] = {
    "sliding_attention": "window",
    "chunked_attention": "window",
    "linear_attention": "state",
    "mamba": "state",
    "conv": "state",
    "recurrent": "state",
    "M": "state",
    "*": "full",
    "-": "none",
    "E": "none",
    "mlp": "none",
    "moe": "none",
    "1": "window",  # of mimo_v2_flash's hybrid_layer_pattern
}


@dataclass(frozen=True)
class CachePlan:
    """The caches of one sequence, summed over all layers.

    Attributes:
        full: bytes per token of the caches that keep every token.
        windows: (tokens kept, bytes per token) of the caches that keep only the last tokens.
        state: bytes regardless of the number of tokens.
    """

    full: int
    windows: tuple[tuple[int, int], ...]
    state: int


def plan_caches(
    config: Mapping[str, Any],
    module: str,
    *,
    width: int,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
) -> CachePlan:
    """Add up the caches of a model.

    Args:
        config: of the language model (`models.config.text_config`).
        module: the name of the module of mlx_lm.models that runs it.
        width: bytes of one element.
        kv_bits: bits of a quantised cache; rotating caches are not quantised.
        kv_group_size: how many elements share a scale and a bias.
    """
    c = Numbers(config)
    kinds = _layer_kinds(c, module)
    window = c.get("sliding_window", "attention_window_size", "attention_chunk_size",
                   "sliding_window_size", "window_size", default=0)  # fmt: skip
    if module == "llama4":
        window += CACHE_STEP  # it is trimmed to the chunk only when the next tokens come
    state = _state_bytes(c, module, width)
    full, total_state = 0, 0
    windows: Counter[int] = Counter()
    for kind in kinds:
        if kind in ("full", "both") or (kind == "window" and not window):
            rows = _rows(c, module, sliding=False)
            full += sum(_quantised(n, width, kv_bits, kv_group_size) * heads for heads, n in rows)
        elif kind == "window":
            windows[window] += sum(n * heads for heads, n in _rows(c, module, sliding=True)) * width
        if kind in ("state", "both"):
            total_state += state
    if module == "iquestloopcoder":  # its second loop keeps a window beside the first's cache
        window = c.get("loop_window_size", default=64)
        windows[window] += len(kinds) * 2 * c.kv_heads * c.head_dim * width
    return CachePlan(full, tuple(sorted(windows.items())), total_state)


def _layer_kinds(c: Numbers, module: str) -> list[Kind]:
    """The kind of each layer that has a cache of its own."""
    layers = min(c.layers * c.get("num_loops", default=1), MAX_LAYERS)
    if module in _RECURRENT:
        return ["state"] * layers
    if module == "falcon_h1":
        return ["both"] * layers
    # In these models the last layers use the caches of earlier ones.
    layers -= c.get("num_kv_shared_layers", "num_kv_reuse_layers", default=0)
    pattern = c.raw.get("hybrid_override_pattern")  # a letter for each layer
    named = list(pattern) if isinstance(pattern, str | list) else c.list(*_LAYER_LISTS)
    if named:
        kinds = [_KINDS.get(str(named[i % len(named)]), "full") for i in range(max(layers, 0))]
    else:
        kinds = [_kind_by_position(c, module, i) for i in range(max(layers, 0))]
    if module not in _WINDOWED:
        kinds = ["full" if kind == "window" else kind for kind in kinds]
    if module == "baichuan_m1":
        sliding = set(map(str, c.list("sliding_window_layers")))
        kinds = ["window" if str(i) in sliding else "full" for i in range(layers)]
    return kinds


def _kind_by_position(c: Numbers, module: str, i: int) -> Kind:
    """For configs with a rule instead of a list. The rules are those of the modules."""
    if module in _GATED_DELTA or "full_attention_interval" in c.raw:
        interval = c.get("full_attention_interval", default=4)
        return "full" if (i + 1) % interval == 0 else "state"
    if period := c.get("attn_layer_period", default=0):
        return "full" if i % period == c.get("attn_layer_offset", default=0) else "state"
    if group := c.get("layer_group_size", default=0):
        return "full" if (i + 1) % group == 0 or i >= c.layers // group * group else "state"
    if full := c.list("full_attn_idxs"):
        return "full" if i in full else "state"
    if isinstance(linear := c.raw.get("linear_attn_config"), dict):
        return "state" if i + 1 in linear.get("kda_layers", ()) else "full"
    if step := c.get("mamba_step", default=0):  # plamo2
        if c.layers <= step // 2:
            return "full" if i == c.layers - 1 else "state"
        return "full" if i % step == step // 2 else "state"
    if module == "llama4":
        return "full" if (i + 1) % 4 == 0 else "window"
    if module in ("gemma3_text", "cohere2"):
        every = c.get("sliding_window_pattern", default=6 if module == "gemma3_text" else 4)
        return "full" if i % every == every - 1 else "window"
    pattern = c.raw.get("sliding_window_pattern")
    if module == "exaone4" and isinstance(pattern, str) and pattern:
        return "window" if pattern[i % len(pattern)] == "L" else "full"
    if module == "gpt_oss":
        return "window" if i % 2 == 0 else "full"
    if module == "olmo3":
        return "full" if (i + 1) % 4 == 0 else "window"
    return "full"


def _rows(c: Numbers, module: str, *, sliding: bool) -> list[tuple[int, int]]:
    """(heads, elements) that one layer caches for a token, for each array."""
    rank = c.get("kv_lora_rank", default=0)
    rope = c.get("qk_rope_head_dim", default=0)
    if rank and module in _LATENT:
        rows = [(1, rank), (1, rope)]
        if module in ("deepseek_v32", "glm_moe_dsa"):
            rows.append((1, c.get("index_head_dim", default=128)))
            rows.append(rows[-1])  # the indexer stores its keys in both halves of its cache
        return rows * 2 if module in _TWICE else rows
    if rank:
        key = c.get("qk_nope_head_dim", default=c.head_dim) + rope
        value = c.get("v_head_dim", default=c.head_dim)
        return [(c.heads, key), (c.heads, value)]
    heads, key = c.kv_heads, c.head_dim
    if module == "gemma4_text" and not sliding:
        key = c.get("global_head_dim", default=key)
        if c.raw.get("attention_k_eq_v") is True:
            heads = c.get("num_global_key_value_heads", default=heads)
    if sliding:
        heads = c.get("swa_num_key_value_heads", default=heads)
        key = c.get("swa_head_dim", default=key)
    value = c.get("swa_v_head_dim" if sliding else "v_head_dim", default=key)
    return [(heads, key), (heads, value)]


def _quantised(elements: int, width: int, bits: int | None, group_size: int) -> int:
    """Bytes of one cached vector: packed elements, with a scale and a bias for each group."""
    if bits is None:
        return elements * width
    return elements * bits // 8 + elements // group_size * 2 * width


def _state_bytes(c: Numbers, module: str, width: int) -> int:
    """Bytes that one recurrent layer keeps, with the state itself in float32."""
    hidden = c.hidden
    if module == "rwkv7":
        head_dim = c.head_dim
        return hidden * head_dim * 4 + 2 * hidden * width
    if module in ("lfm2", "lfm2_moe"):
        return (c.get("conv_L_cache", default=3) - 1) * hidden * width
    if module == "recurrent_gemma":
        lru = c.get("lru_width", default=hidden)
        return lru * c.get("conv1d_width", default=4) * width + lru * 4
    kernel = c.get("conv_kernel", "mamba_d_conv", "linear_conv_kernel_dim", default=4)
    if heads := c.get("linear_num_value_heads", default=0):  # gated delta net
        key_dim = c.get("linear_key_head_dim", default=128)
        values = heads * c.get("linear_value_head_dim", default=128)
        keys = c.get("linear_num_key_heads", default=heads) * key_dim
        return (kernel - 1) * (2 * keys + values) * width + values * key_dim * 4
    if isinstance(linear := c.raw.get("linear_attn_config"), dict):  # Kimi delta attention
        k = Numbers(linear)
        inner = k.get("num_heads", default=c.heads) * k.get("head_dim", default=c.head_dim)
        kernel = k.get("short_conv_kernel_size", default=kernel)
        return (kernel - 1) * 3 * inner * width + inner * k.get("head_dim", default=c.head_dim) * 4
    size = c.get("ssm_state_size", "state_size", "mamba_d_state", default=0)
    if not size:  # linear attention without a convolution
        return c.heads * c.head_dim * c.head_dim * 4
    heads = c.get("mamba_num_heads", "mamba_n_heads", default=0)
    if module == "mamba2":
        heads = c.get("num_heads", default=0)
    if heads:  # the second generation has heads, and convolves B and C too
        per_head = c.get("mamba_head_dim", "mamba_d_head", "head_dim", "hidden_size_per_head",
                         default=64)  # fmt: skip
        inner = c.get("mamba_d_ssm", default=heads * per_head)
        groups = c.get("n_groups", "mamba_n_groups", default=1)
        return (kernel - 1) * (inner + 2 * groups * size) * width + inner * size * 4
    inner = c.get("intermediate_size", default=2 * hidden) if module == "mamba" else (
        c.get("mamba_expand", default=2) * hidden
    )  # fmt: skip
    return (kernel - 1) * inner * width + inner * size * 4
