"""LangChain's own unit suite for chat models."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings


@pytest.mark.filterwarnings("ignore:.*is in beta", "ignore:.*`dict` was deprecated")
class TestChatMLXGuarded(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`test_serdes` loads what LangChain's list of its own packages allows, and ours."""
        loading = importlib.import_module("langchain_core.load.load")
        allowed = loading._get_default_allowed_class_paths("all")
        ours = {tuple(ChatMLXGuarded.lc_id())}
        monkeypatch.setitem(loading._default_class_paths_cache, "all", allowed | ours)

    @property
    def chat_model_class(self) -> type[ChatMLXGuarded]:
        return ChatMLXGuarded

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2-135m"}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestMLXGuardedEmbeddings(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[MLXGuardedEmbeddings]:
        return MLXGuardedEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "all-minilm-l6-v2"}
