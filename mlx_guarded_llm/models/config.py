"""Reading a config.json, in whatever spelling it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ModelUnsupported
from .files import UnreadableFile
from .rope import spell_rope
from .sources import Source

DEFAULT_CONTEXT_WINDOW = 4096  # small, because a too large one silently gives nonsense
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "max_sequence_length",
    "max_seq_len",
    "model_max_length",
    "n_positions",
    "n_ctx",
    "seq_length",
)
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")

# Keys that change what a model computes, and the values that change nothing.
_MATTER: Mapping[str, tuple[object, ...]] = {
    "alibi": (None, False),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None, 0),
    "clip_qkv": (None, 0),
    "embedding_multiplier": (None, 1),
    "final_logit_softcapping": (None, 0),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "n_group": (None, 0, 1),
    "residual_multiplier": (None, 1),
    "rope_traditional": (None, False),
    "routed_scaling_factor": (None, 1),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "scale_attn_weights": (None, True),
    "scale_emb": (None, 1),
    "swiglu_limit": (None,),
    "use_bidirectional_attention": (None, False, "vision"),  # of images alone
}
# What an architecture computes without a key.
_FIXED: Mapping[tuple[str, str], object] = {
    ("gpt_oss", "swiglu_limit"): 7,
    ("nanochat", "final_logit_softcapping"): 15,
}
# Mixture-of-experts architectures that never normalise the weights of the chosen experts.
_NOT_NORMALISED = frozenset({"deepseek", "deepseek_v2", "qwen2_moe"})
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
# Words in the source of an architecture that show that it computes one of these functions.
_ACTIVATION_WORDS = {
    "silu": ("silu", "swiglu", "SwitchGLU"),
    "gelu": ("gelu", "gelu_approx", "geglu", "GELU"),
    "relu": ("relu", "relu2", "relu_squared", "ReLU"),
}
_SCORE_WORDS = {"sigmoid": ("sigmoid",), "softmax": ("softmax",)}
# Every how many layers comes one of full attention, where there are layers of another type.
_INTERVALS = ("sliding_window_pattern", "full_attention_interval")


def spell_out(
    config: Mapping[str, Any], source: Callable[[Mapping[str, Any]], Source]
) -> dict[str, Any]:
    """A config.json in the spelling that its architecture reads.

    Everything that reads a config reads this one: verification, the prediction of memory, card and
    engine.

    Args:
        config: of a model.
        source: says which architecture reads the config of a level.

    Raises:
        UnreadableFile: it contradicts itself.
        ModelUnsupported: the architecture ignores a setting that changes the answers.
    """
    outer = source(config)
    spelt = _spell_level(config, outer)
    for key in _TEXT_CONFIGS:
        inner = spelt.get(key)
        if isinstance(inner, dict):
            kind = inner.get("model_type")
            own = source({"model_type": kind}) if isinstance(kind, str) else outer
            # An architecture may read it itself although another one has that name (llama4).
            spelt[key] = _spell_level(inner, own if own.module in outer.parts else outer)
    return spelt


def untie(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model whose weights include an output head.

    If a config does not say whether the head is tied to the embedding, architectures of mlx-lm have
    different defaults, and some drop the weights of the head.
    """
    untied = {"tie_word_embeddings": False, **config}
    for key in _TEXT_CONFIGS:
        if isinstance(untied.get(key), dict):
            untied[key] = {"tie_word_embeddings": False, **untied[key]}
    return untied


def _spell_level(config: Mapping[str, Any], source: Source) -> dict[str, Any]:
    spelt = _spell_intervals(spell_rope(config, source), source)
    unread = [key for key, value in spelt.items() if _matters(key, value, spelt, source)]
    if unread:
        raise _unread(unread[0], spelt[unread[0]], source)
    return spelt


def _matters(key: str, value: object, config: Mapping[str, Any], source: Source) -> bool:
    """Whether a setting changes the answers and the architecture ignores it."""
    if key == "norm_topk_prob":
        return bool(value) and source.module in _NOT_NORMALISED
    if source.reads(key):
        return False
    if key in _MATTER:
        return value not in _MATTER[key] and value != _FIXED.get((source.module, key))
    if key == "query_pre_attn_scalar":
        return value not in (None, config.get("head_dim"))
    if key == "rope_interleave":  # other architectures do not know the key at all
        return value is False and source.has("traditional=True")
    if key == "scoring_func":
        return not _computes(source, value, _SCORE_WORDS)
    return key in _ACTIVATIONS and not _computes(source, value, _ACTIVATION_WORDS)


def _unread(key: str, value: object, source: Source) -> ModelUnsupported:
    return ModelUnsupported(
        f"config.json has the {key} {str(value)[:40]}, which mlx-lm's {source.module} leaves out.",
        hint="Update mlx-lm or use another model.",
    )


def _computes(source: Source, function: object, families: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether an architecture that computes one fixed function computes this one."""
    name = "silu" if function in ("swish", "swiglu") else str(function)
    family = next((f for f in families if name.startswith(f)), None)
    present = [f for f, words in families.items() if source.mentions(*words)]
    return family is None or not present or family in present


def _spell_intervals(config: dict[str, Any], source: Source) -> dict[str, Any]:
    """Write down as an interval what newer configs list for each layer."""
    layers = config.get("layer_types")
    if not isinstance(layers, list) or source.reads("layer_types"):
        return config
    for key in _INTERVALS:
        if not source.reads(key):
            continue
        full = [kind == "full_attention" for kind in layers]
        every = full.index(True) + 1 if True in full else len(full) + 1
        letters = "".join("G" if f else "L" for f in full)
        given = config.get(key)
        value: object
        if source.module == "exaone4":  # a letter for each layer, and none without windows
            value = letters if "L" in letters else None
        elif full == [(i + 1) % every == 0 for i in range(len(full))]:
            value = every
        else:
            raise _unread("layer_types", layers, source)
        if given is not None and _letters(given, len(full)) != letters:
            raise UnreadableFile(
                f"config.json has the {key} {given}, and layer_types that say {value}"
            )
        config[key] = value
    return config


def _letters(interval: object, layers: int) -> str:
    """The types of layers that an interval, or a pattern of letters, means."""
    if isinstance(interval, str) and interval:
        return (interval * layers)[:layers]
    every = _positive(interval) or layers + 1
    return "".join("L" if (i + 1) % every else "G" for i in range(layers))


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model, falling back to the keys of the outer config."""
    for key in _TEXT_CONFIGS:
        inner = config.get(key)
        if isinstance(inner, dict):
            return {**config, **inner}
    return dict(config)


def context_window(config: Mapping[str, Any], settings: Mapping[str, Any]) -> int:
    """How many tokens a model can attend to.

    Args:
        config: its config.json.
        settings: its tokenizer_config.json.
    """
    if (told := _told_window(config)) is not None:
        return told
    window = _positive(settings.get("model_max_length"))
    # Tokenizers without a limit write 10**30.
    return window if window is not None and window <= 2**24 else DEFAULT_CONTEXT_WINDOW


def widest_window(config: Mapping[str, Any]) -> float:
    """The largest context window that may be set, in tokens.

    It is that of the config, times the factor of a scaled RoPE; infinite if the config does not
    say.
    """
    window = _told_window(config)
    if window is None:
        return math.inf
    flat = text_config(config)
    factors = [1.0]
    for key in ("rope_scaling", "rope_parameters"):
        scaling = flat.get(key)
        factor = scaling.get("factor") if isinstance(scaling, dict) else None
        if isinstance(factor, (int, float)) and math.isfinite(factor):
            factors.append(float(factor))
    return window * max(factors)


def _told_window(config: Mapping[str, Any]) -> int | None:
    flat = text_config(config)
    return next((w for key in _CONTEXT_KEYS if (w := _positive(flat.get(key)))), None)


def _positive(value: object) -> int | None:
    fine = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if fine and isinstance(value, int) else None
