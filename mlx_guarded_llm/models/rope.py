"""RoPE settings, in whatever spelling a config.json has them.

They decide what every position means. An architecture that does not find them uses its defaults,
which gives plausible text at first and nonsense later. transformers 5 has all of them in
`rope_parameters`, separately for each type of layer if these differ; earlier versions had separate
keys, and some families had their own names. Each architecture of mlx-lm reads some of these. So
both spellings are filled in from what is there, and what an architecture does not read is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

from ..errors import ModelUnsupported
from .files import UnreadableFile
from .sources import Source

# Architectures that read `rope_parameters` for each type of layer.
_PER_LAYER = frozenset({"gemma4", "gemma4_text", "laguna", "mellum", "spark2_5"})
# Architectures that scale by `rope_parameters` itself.
_BY_PARAMETERS = _PER_LAYER | {"ministral3", "mistral4", "minimax_m3_vl"}
# Architectures whose sliding layers never scale.
_SLIDING_PLAIN = frozenset({"afmoe", "exaone4", "olmo3"})
# The types that `mlx_lm.models.rope_utils.initialize_rope` supports.
_KNOWN_TYPES = frozenset({
    "linear", "dynamic", "llama3", "yarn", "deepseek_yarn", "telechat3-yarn", "longrope",
    "proportional", "mrope",
})  # fmt: skip
# Types that a module implements without naming them.
_UNNAMED_TYPES = {
    "deepseek_v2": "yarn", "deepseek_v41": "yarn", "glm_moe_dsa": "yarn",
    "hunyuan": "dynamic", "hunyuan_v1_dense": "dynamic", "minicpm3": "longrope",
    "phimoe": "longrope",
}  # fmt: skip
# Architectures that rotate this fraction of a head without a setting.
_FIXED_FACTORS = {"recurrent_gemma": 0.5}
_MOST = 1e15  # the largest number in them
_THETAS = ("rope_theta", "rotary_emb_base")
_FACTORS = ("partial_rotary_factor", "rotary_pct")
_ROTARY = (*_FACTORS, "rope_parameters", "rotary_dim", "partial_rotary_factors")
_LOCAL_THETAS = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta", "local_rope_theta")


def spell_rope(config: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """A config with its RoPE settings in every spelling that its architecture may read.

    Args:
        config: of one level: the model's, or that of its language model.
        source: of the architecture that reads it.

    Raises:
        UnreadableFile: they contradict each other, or are invalid.
        ModelUnsupported: the architecture does not read them.
    """
    spelt = dict(config)
    given: dict[str, Any] | None = _object(config, "rope_parameters")
    old = _object(config, "rope_scaling")
    if given and all(isinstance(part, dict) for part in given.values()):
        if source.module in _PER_LAYER:
            return spelt
        given = spelt["rope_parameters"] = _flatten(given, spelt, source)
    if given and old and _differ(_scaling(given), _scaling(old)):
        raise UnreadableFile(
            "config.json has rope_scaling and rope_parameters, which say different things"
        )
    settings = {**(old or {}), **(given or {})}
    theta = _agreed(spelt, settings, _THETAS)
    factor = _agreed(spelt, settings, _FACTORS)
    scaling = _complete(_scaling(settings), spelt)
    _check(spelt, source, scaling, theta=theta, factor=factor)
    for names, value in ((_THETAS, theta), (_FACTORS, factor)):
        if value is not None:
            spelt.update(dict.fromkeys(names, value))
    if settings:
        spelt["rope_scaling"] = scaling
    if scaling and "original_max_position_embeddings" in scaling:
        original = scaling["original_max_position_embeddings"]
        spelt.setdefault("original_max_position_embeddings", original)
    if source.reads("rope_parameters") and not given and source.module not in _PER_LAYER:
        parts = {"rope_theta": theta, "partial_rotary_factor": factor}
        whole = {**(scaling or {}), **{k: v for k, v in parts.items() if v is not None}}
        if whole:
            spelt["rope_parameters"] = {"rope_type": "default", **whole}
    return spelt


def _flatten(layers: Mapping[str, Any], spelt: dict[str, Any], source: Source) -> dict[str, Any]:
    """The settings of the full layers. Those of sliding layers go to separate keys."""
    full = layers.get("full_attention") or next(iter(layers.values()))
    others = [part for part in layers.values() if part and part != full]
    if not others:
        return dict(full)
    plain = [part for part in others if _scaling(part) is None]
    thetas = {part.get("rope_theta") for part in others}
    if len(plain) == len(others) and len(thetas) == 1:
        theta = thetas.pop()
        local = [name for name in _LOCAL_THETAS if source.reads(name)]
        if local:
            spelt.update(dict.fromkeys(local, theta))
            if source.reads("global_rope_theta"):
                spelt["global_rope_theta"] = full.get("rope_theta")
            return dict(full)
        if source.module in _SLIDING_PLAIN and theta == full.get("rope_theta"):
            return dict(full)
    raise ModelUnsupported(
        f"its layers of types {', '.join(sorted(layers))} differ in RoPE settings, and mlx-lm's "
        f"{source.module} cannot be told so.",
        hint="Update mlx-lm or use another model.",
    )


def _scaling(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling of the positions, with its type under both names; None if there is none."""
    kind = settings.get("rope_type", settings.get("type"))
    if kind in (None, "default"):
        # "alpha" and "mrope_section" come without a type.
        return None if "alpha" not in settings else {**settings, "type": "dynamic"}
    if kind == "su":  # the older name
        kind = "longrope"
    scaling = {k: v for k, v in settings.items() if k not in ("rope_theta", "rope_type", "type")}
    if type(scaling.get("factor")) is int:
        scaling["factor"] = float(scaling["factor"])  # some architectures insist
    return {**scaling, "type": kind, "rope_type": kind}


def _differ(some: Mapping[str, Any] | None, others: Mapping[str, Any] | None) -> bool:
    if some is None or others is None:
        return some is not others
    return any(some[key] != others[key] for key in some.keys() & others.keys())


def _complete(scaling: dict[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fill in what transformers derives, where mlx-lm would use another default."""
    if scaling is None or scaling["type"] not in ("yarn", "longrope", "llama3"):
        return scaling
    for name in ("original_max_position_embeddings", "max_position_embeddings"):
        if scaling.get("original_max_position_embeddings") is None and config.get(name):
            scaling["original_max_position_embeddings"] = config[name]
    attention: Any = scaling.get("attention_factor")
    stretch: Any = scaling.get("factor")
    numbers = isinstance(attention, int | float) and isinstance(stretch, int | float)
    if scaling["type"] == "yarn" and numbers and stretch > 1:
        # If a scaling has both, transformers uses this one.
        scaling["mscale"] = (attention - 1) / (0.1 * log(stretch))
        scaling.pop("mscale_all_dim", None)
    return scaling


def _check(
    config: Mapping[str, Any],
    source: Source,
    scaling: Mapping[str, Any] | None,
    *,
    theta: float | None,
    factor: float | None,
) -> None:
    """Refuse settings that the architecture would ignore."""
    unread = None
    kind = str(scaling["type"]) if scaling else ""
    scales = source.reads("rope_scaling") or source.module in _BY_PARAMETERS
    if scaling and not (scales and _makes(source, kind)):
        unread = f"RoPE scaling of type {kind[:40]!r}"
    elif theta not in (None, 10000) and not source.reads(*_THETAS, "rope_parameters"):
        unread = f"a rope_theta of {theta}"
    elif factor not in (
        None,
        _FIXED_FACTORS.get(source.module, 1),
    ) and not source.reads(*_ROTARY):
        unread = f"a partial_rotary_factor of {factor}"
    if unread:
        raise ModelUnsupported(
            f"the model has {unread}, which mlx-lm's {source.module} leaves out.",
            hint="Update mlx-lm or use another model.",
        )


def _makes(source: Source, kind: str) -> bool:
    if source.calls("initialize_rope") and kind in _KNOWN_TYPES:
        return True
    return source.names(kind) or _UNNAMED_TYPES.get(source.module) == kind


def _agreed(
    config: Mapping[str, Any], settings: Mapping[str, Any], names: tuple[str, ...]
) -> float | None:
    """The number that a setting has, wherever it is."""
    found = [place[name] for place in (settings, config) for name in names if name in place]
    values = [value for value in found if value is not None]
    if any(
        isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < _MOST for v in values
    ):
        # A list has a number for each layer; only its own architecture reads it.
        if len(values) == 1 and isinstance(values[0], list):
            return None
        raise UnreadableFile(f"config.json has the {names[0]} {str(values)[:80]}")
    if len(set(values)) > 1:
        raise UnreadableFile(
            f"config.json has several values of {names[0]}: {', '.join(map(str, values))}"
        )
    return values[0] if values else None


def _object(config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise UnreadableFile(f"config.json has the {name} {str(value)[:80]}, which is no object")
    return value or None
