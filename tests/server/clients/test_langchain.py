"""LangChain's `ChatOpenAI` and `OpenAIEmbeddings`, with the suites that every provider runs."""

from __future__ import annotations

from typing import Any, ClassVar

import httpx
import numpy as np
import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests.chat_models import ChatModelTests
from pydantic import SecretStr

from tests.conftest import MakeModel

from ..conftest import ANSWER, Running
from .conftest import ServeModule, usual_models

KEY = SecretStr("none")
# The tools of the suite, with the arguments that it looks for.
CALL = '<tool_call>\n{"name": "magic_function", "arguments": {"input": 3}}\n</tool_call>'
CUSTOMER = CALL.replace("magic_function", "unicode_customer").replace(
    '{"input": 3}', '{"customer_name": "你好啊集团 こんにちは株式会社", "description": "技术"}'
)
WEATHER = CALL.replace("magic_function", "get_weather").replace(
    '{"input": 3}', '{"location": "Paris"}'
)


@pytest.fixture(scope="module")
def server(serve_module: ServeModule, scripted: MakeModel, embedder: MakeModel) -> Running:
    def calling(text: str) -> str:
        return scripted(text, tools=True, later=("It is sunny.",), context_window=8192)

    return serve_module(
        models={
            **usual_models(scripted, embedder),
            "caller": calling(CALL),
            "customer": calling(CUSTOMER),
            "weather": calling(WEATHER),
            "joker": scripted('{"setup": "Why?", "punchline": "Because."}', context_window=8192),
            "thinker": scripted("<think>Well.</think>Paris.", thinking=True),
            "bert": {"model": embedder(), "token_ids": "cl100k_base"},
        }
    )


def chat_of(server: Running, model: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=f"{server.url}/v1", api_key=KEY, **options)


def embeddings_of(server: Running, model: str, **options: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(model=model, base_url=f"{server.url}/v1", api_key=KEY, **options)


# ---- LangChain's own suites ----------------------------------------------------------


class OurServer:
    """`ChatOpenAI` at a model that always makes the call which the test looks for.

    Where it gets no tools, that is the text of its answer.
    """

    server: ClassVar[Running]
    http: httpx.AsyncClient
    model_of: ClassVar = {  # that of all other tests calls `magic_function`
        "test_unicode_tool_call_integration": "customer",
        "test_agent_loop": "weather",
        "test_json_mode": "joker",
    }
    model_name = "caller"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def running(cls, server: Running) -> None:
        cls.server = server

    @pytest.fixture(autouse=True)
    def own_connections(self, http: httpx.AsyncClient) -> None:
        self.http = http

    @pytest.fixture(autouse=True)
    def chosen_model(self, request: pytest.FixtureRequest) -> None:
        self.model_name = self.model_of.get(request.function.__name__, "caller")

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "base_url": f"{self.server.url}/v1",
            "api_key": "none",
            "stream_usage": True,
            "http_async_client": self.http,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "smollm2-135m"


@pytest.mark.standard
# The openai client warns of its own parsed answers, LangChain of the suite's pydantic 1.
@pytest.mark.filterwarnings("ignore:Pydantic serializer", "ignore:Received a Pydantic BaseModel V1")
class TestChatOpenAI(OurServer, ChatModelIntegrationTests):
    """The whole suite."""


class TestSliceOfChatOpenAI(OurServer, ChatModelTests):
    """One test of the suite for each thing that it is about."""

    test_stream_events = ChatModelIntegrationTests.test_stream_events_v3
    test_usage = ChatModelIntegrationTests.test_usage_metadata_streaming
    test_tool_calling = ChatModelIntegrationTests.test_tool_calling_async
    test_histories = ChatModelIntegrationTests.test_tool_message_histories_list_content
    test_model_override = ChatModelIntegrationTests.test_invoke_with_model_override
    test_structured_output = ChatModelIntegrationTests.test_structured_output_optional_param


@pytest.mark.usefixtures("tiktoken_files")
class TestOpenAIEmbeddings(EmbeddingsIntegrationTests):
    """It sends the ids of tiktoken's cl100k_base."""

    server: ClassVar[Running]
    http: httpx.AsyncClient

    running = OurServer.running
    own_connections = OurServer.own_connections

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "model": "bert",
            "base_url": f"{self.server.url}/v1",
            "api_key": "none",
            "http_async_client": self.http,
        }


# ---- what the suites do not ask ------------------------------------------------------


@pytest.mark.usefixtures("tiktoken_files")
def test_vectors_are_those_of_the_text(server: Running) -> None:
    texts = ["Where is Paris?", "Zürich, 你好 😀", ""]
    own = server.backend.embed("bert", texts).vectors
    for model, options in (
        ("bert", {}),
        ("all-minilm-l6-v2", {"check_embedding_ctx_length": False}),
    ):
        found = embeddings_of(server, model, **options).embed_documents(texts)
        np.testing.assert_allclose(found, own, atol=1e-6)


@pytest.mark.usefixtures("tiktoken_files")
def test_ids_of_nobody_knows_which_tokenizer_are_refused(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings_of(server, "all-minilm-l6-v2").embed_query("Where?")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(server: Running, stream: bool) -> None:
    chat = chat_of(server, "smollm2-135m")
    with pytest.raises(ContextOverflowError, match="maximum context length is 2048"):
        list(chat.stream("a" * 3000)) if stream else chat.invoke("a" * 3000)


def test_who_answered(server: Running) -> None:
    message = chat_of(server, "smollm2-135m").invoke("Where?")
    assert message.content == ANSWER
    assert message.response_metadata["model_name"] == "smollm2-135m"


def test_thinking_is_counted_and_is_not_the_answer(server: Running) -> None:
    message = chat_of(server, "thinker").invoke("Where?")
    assert message.content == "Paris."
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_token_details"]["reasoning"] > 0


def test_the_responses_api(server: Running) -> None:
    chat = chat_of(
        server, "thinker", use_responses_api=True, reasoning={"effort": "low", "summary": "auto"}
    )
    thinking, text = chat.invoke("Where?").content_blocks
    assert thinking["type"] == "reasoning" and thinking["reasoning"] == "Well."
    assert text["type"] == "text" and text["text"] == "Paris."
    chat = chat_of(server, "smollm2-135m", use_responses_api=True)
    assert "".join(chunk.text for chunk in chat.stream("Where?")) == ANSWER


# ---- the page ------------------------------------------------------------------------
