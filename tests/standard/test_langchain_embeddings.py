"""LangChain's own integration suite for embeddings, on a real model."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from langchain_mlx_guarded import MLXGuardedEmbeddings

pytestmark = [pytest.mark.standard, pytest.mark.timeout(900)]


class TestMLXGuardedEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[MLXGuardedEmbeddings]:
        return MLXGuardedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "all-minilm-l6-v2"}
