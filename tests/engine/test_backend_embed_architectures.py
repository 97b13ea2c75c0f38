"""mlx-embeddings has more types than BERT: the engine's vectors are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_guarded_llm import Backend
from tests.conftest import MakeModel
from tests.engine._embed import TEXTS


class TestOtherArchitectures:
    """The models are made by mlx-embeddings itself, on the MLX thread."""

    @pytest.mark.parametrize(
        ("kind", "config"),
        [
            ("xlm-roberta", {"max_position_embeddings": 66, "pad_token_id": 0}),
            ("modernbert", {"max_position_embeddings": 64, "architectures": ["ModernBertModel"]}),
            (
                "qwen3",
                {
                    "max_position_embeddings": 64,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "rms_norm_eps": 1e-6,
                    "rope_theta": 10000.0,
                },
            ),
        ],
    )
    def test_it_embeds(
        self, backend: Backend, tmp_path: Path, embedder: MakeModel, kind: str, config: dict
    ) -> None:
        folder = tmp_path / kind
        backend.run(lambda: make_by_itself(folder, Path(embedder()), kind, config))
        together = backend.embed(str(folder), TEXTS[:20]).vectors
        assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
        ids = [backend.tokens(str(folder), text) for text in TEXTS[:4]]
        if kind == "qwen3":  # a language model's tokens() are those of its own task
            ids = [backend.tokens(embedder(), text) for text in TEXTS[:4]]
        alone = backend.run(lambda: vectors_by_itself(folder, ids))
        assert np.allclose(together[:4], alone, atol=1e-4)


def make_by_itself(folder: Path, tokenizer: Path, kind: str, config: dict[str, Any]) -> None:
    """Write a model of mlx-embeddings with random weights, and another's tokenizer."""
    import importlib
    import json
    import shutil

    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    config = {
        "model_type": kind,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 200,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    module = importlib.import_module(f"mlx_embeddings.models.{kind.replace('-', '_')}")
    model = module.Model(module.ModelArgs.from_dict(config))
    parameters: Any = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(0), len(parameters))
    weights = {
        # ModernBERT's folders have no "model." before their names.
        name.removeprefix("model.") if kind == "modernbert" else name: value
        if "norm" in name.lower()
        else mx.random.normal(value.shape, key=key) * 0.3
        for (name, value), key in zip(parameters, keys, strict=True)
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def vectors_by_itself(folder: Path, texts: list[list[int]]) -> list[list[float]]:
    """What plain mlx-embeddings makes of texts, one after the other."""
    import mlx.core as mx
    from mlx_embeddings.utils import load_model  # type: ignore[import-untyped]  # has none

    model = load_model(folder)
    outputs = (model(mx.array([ids]), attention_mask=mx.array([[1] * len(ids)])) for ids in texts)
    return [output.text_embeds[0].tolist() for output in outputs]
