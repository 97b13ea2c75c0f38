"""LangChain's own integration suite for chat models, on a real model of 135M parameters.

It answers greedily, and what it marks as degraded is taken: the suite asks a model this
small for things that it cannot say well.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_mlx_guarded import ChatMLXGuarded

pytestmark = [pytest.mark.standard, pytest.mark.timeout(900)]

MODEL = "smollm2-135m-bf16"


class TestChatMLXGuarded(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatMLXGuarded]:
        return ChatMLXGuarded

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "temperature": 0.0,
            "seed": 0,
            "max_tokens": 128,
            "on_degraded": "mark",
        }

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        # So small a model repeats itself within a string, and retries would cost minutes.
        return {"repetition_penalty": 1.1}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "smollm2-135m"

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatMLXGuarded(**self.chat_model_params)
        question = "Name three colours. " * 20
        chat.invoke(question)
        if not stream:
            return chat.invoke(question)
        first, *rest = chat.stream(question)
        message = sum(rest, first)
        assert message.usage_metadata is not None
        assert message.usage_metadata["input_token_details"]["cache_read"] > 0
        return message

    @pytest.mark.xfail(strict=False, reason="135M parameters: left to itself it calls no tool")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(strict=False, reason="135M parameters: it leaves out the fields it is told")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
