"""Which embedding models the installed mlx-embeddings can run, found without importing it.

Its import is heavy and brings MLX, so only its folder is looked at. What counts as well
is how a model pools its tokens into one vector: a wrong pooling gives wrong vectors and
no error, so a model whose pooling cannot be had is refused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ModelUnsupported
from .architectures import runs

# The poolings we can have of each type, the one that mlx-embeddings takes first.
POOLINGS: Mapping[str, tuple[str, ...]] = {
    "bert": ("mean", "cls"),
    "modernbert": ("mean", "cls"),
    "qwen3": ("lasttoken",),
    "xlm_roberta": ("mean", "cls"),
}
# Steps of a sentence-transformers model that add nothing of their own to the vectors.
_PLAIN_STEPS = frozenset({"Transformer", "Pooling", "Normalize"})
_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def encoder_type(config: Mapping[str, Any]) -> str:
    """The module of mlx_embeddings.models that runs a model."""
    return str(config["model_type"]).replace("-", "_")


def only_embeds(config: Mapping[str, Any]) -> bool:
    """Whether this is an embedding model that mlx-lm could not generate with."""
    return encoder_type(config) in POOLINGS and not runs(config)


def check_encoder(config: Mapping[str, Any], folder: Path) -> None:
    """Checks that a model can embed texts.

    Args:
        config: its config.json; "model_type" is a string.
        folder: where it lies.

    Raises:
        ModelUnsupported: mlx-embeddings is missing or has no such model, or the vectors
            would not be the ones the model was made for.
    """
    kind = encoder_type(config)
    if kind not in POOLINGS:
        raise ModelUnsupported(
            f"a model of type {config['model_type']!r} cannot embed texts.",
            hint="Ask it with generate(); for embed() take a model such as all-minilm-l6-v2 "
            f"(types {', '.join(POOLINGS)}).",
        )
    if not (_folder() / "models" / f"{kind}.py").is_file():
        raise ModelUnsupported(
            f"the installed mlx-embeddings has no model type {kind!r}.",
            hint="Run `pip install --upgrade 'mlx-guarded-llm[embeddings]'`.",
        )
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    if kind == "modernbert" and architecture.endswith(_HEADS):
        raise ModelUnsupported(
            f"{architecture} has a head for another task and gives no text vectors.",
            hint="Use an embedding model made from it.",
        )
    mode = pooling(folder)
    if mode is not None and mode not in POOLINGS[kind]:
        raise ModelUnsupported(
            f"its vectors are pooled by {mode!r}; of type {kind!r} only "
            f"{' and '.join(POOLINGS[kind])} can be had."
        )
    steps = _read(folder / "modules.json")
    for step in steps if isinstance(steps, list) else ():
        name = str(step.get("type", "") if isinstance(step, dict) else "").rsplit(".", 1)[-1]
        if name not in _PLAIN_STEPS:
            raise ModelUnsupported(
                f"its vectors pass through a {name or 'nameless'} layer, which mlx-embeddings "
                "leaves out.",
                hint="Use a model without one, such as all-minilm-l6-v2.",
            )


def pooling(folder: Path) -> str | None:
    """How a sentence-transformers folder says tokens become one vector, or None."""
    settings = _read(folder / "1_Pooling" / "config.json")
    if not isinstance(settings, dict):
        return None
    chosen = [
        name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and value is True
    ]
    return "+".join(chosen) or None


def encoder_window(config: Mapping[str, Any], folder: Path, positions: int) -> int:
    """Tokens of the longest text a model can embed.

    Args:
        config: its config.json.
        folder: where it lies.
        positions: that its config says it has.
    """
    if encoder_type(config) == "xlm_roberta":  # it counts positions from behind its padding
        positions -= int(config.get("pad_token_id", 1)) + 1
    settings = _read(folder / "tokenizer_config.json")
    limit = settings.get("model_max_length") if isinstance(settings, dict) else None
    return min(positions, limit) if isinstance(limit, int) and limit > 0 else positions


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


@cache
def _folder() -> Path:
    spec = importlib.util.find_spec("mlx_embeddings")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnsupported(
            "embedding texts needs the package mlx-embeddings.",
            hint="Run `pip install 'mlx-guarded-llm[embeddings]'`.",
        )
    return Path(next(iter(spec.submodule_search_locations)))
