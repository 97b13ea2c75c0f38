"""Which embedding models the installed mlx-embeddings can run, found without importing it.

Importing it is slow and imports MLX, so only its folder is read. It also matters how a model pools
its tokens into one vector: a wrong pooling silently gives wrong vectors, so a model whose pooling
is not available is refused.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ModelUnsupported
from .architectures import runs
from .files import UnreadableFile, parse, read_bytes, read_optional
from .sources import Source, read_source

# The poolings that are available for each type, starting with the one of mlx-embeddings.
POOLINGS: Mapping[str, tuple[str, ...]] = {
    "bert": ("mean", "cls"),
    "modernbert": ("mean", "cls"),
    "qwen3": ("lasttoken",),
    "xlm_roberta": ("mean", "cls"),
}
# Steps of a sentence-transformers model that do not change the vectors any further.
_PLAIN_STEPS = frozenset({"Transformer", "Pooling", "Normalize"})
_HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def encoder_type(config: Mapping[str, Any]) -> str:
    """The module of mlx_embeddings.models that runs a model."""
    return str(config["model_type"]).replace("-", "_")


def encoder_source(config: Mapping[str, Any]) -> Source:
    """The source of the architecture of mlx-embeddings that reads a config."""
    return read_source(_folder() / "models", encoder_type(config))


def only_embeds(config: Mapping[str, Any]) -> bool:
    """Whether this is an embedding model that mlx-lm could not generate with."""
    return encoder_type(config) in POOLINGS and not runs(config)


def check_encoder(config: Mapping[str, Any], folder: Path) -> None:
    """Check that a model can embed texts.

    Args:
        config: its config.json; "model_type" must be a string.
        folder: of the model.

    Raises:
        ModelUnsupported: mlx-embeddings is missing or has no such model, or its vectors would
            not be those that the model was trained for.
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
    for step in _steps(folder):
        name = str(step.get("type", "") if isinstance(step, dict) else "").rsplit(".", 1)[-1]
        if name not in _PLAIN_STEPS:
            raise ModelUnsupported(
                f"its vectors pass through a {name or 'nameless'} layer, which mlx-embeddings "
                "leaves out.",
                hint="Use a model without one, such as all-minilm-l6-v2.",
            )


def pooling(folder: Path) -> str | None:
    """The pooling that a sentence-transformers folder specifies, or None."""
    settings = read_optional(folder / "1_Pooling" / "config.json")
    chosen = [
        name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and value is True
    ]
    return "+".join(chosen) or None


def encoder_window(config: Mapping[str, Any], settings: Mapping[str, Any], positions: int) -> int:
    """The length of the longest text that a model can embed, in tokens.

    Args:
        config: its config.json.
        settings: its tokenizer_config.json.
        positions: how many its config says it has.
    """
    if encoder_type(config) == "xlm_roberta":  # its positions start after that of the padding
        padding = config.get("pad_token_id", 1)
        positions -= padding + 1 if isinstance(padding, int) else 2
    limit = settings.get("model_max_length")
    return min(positions, limit) if isinstance(limit, int) and limit > 0 else positions


def _steps(folder: Path) -> list[Any]:
    """The steps of a sentence-transformers model; empty if it does not list them."""
    file = folder / "modules.json"
    if not os.path.lexists(file):
        return []
    steps = parse(file, read_bytes(file))
    if not isinstance(steps, list):
        raise UnreadableFile(f"{file} is not a JSON list")
    return steps


@cache
def _folder() -> Path:
    spec = importlib.util.find_spec("mlx_embeddings")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnsupported(
            "embedding texts needs the package mlx-embeddings.",
            hint="Run `pip install 'mlx-guarded-llm[embeddings]'`.",
        )
    return Path(next(iter(spec.submodule_search_locations)))
