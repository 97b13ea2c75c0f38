"""OpenAI's API."""

from starlette.routing import Route

from ..api import Api
from .chat import chat
from .completions import complete
from .embeddings import embed
from .errors import OpenAIError, error_body
from .models import list_models, show_model
from .requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from .responses import (
    InputItemsQuery,
    ResponseRequest,
    ShowQuery,
    create_response,
    delete_response,
    list_input_items,
    show_response,
)

API = Api(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/embeddings", embed, methods=["POST"]),
        Route("/v1/responses", create_response, methods=["POST"]),
        Route("/v1/responses/{id}", show_response),
        Route("/v1/responses/{id}", delete_response, methods=["DELETE"]),
        Route("/v1/responses/{id}/input_items", list_input_items),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", show_model),
    ],
    error=error_body,
    error_body=OpenAIError,
    bodies={
        "/v1/chat/completions": ChatRequest,
        "/v1/completions": CompletionRequest,
        "/v1/embeddings": EmbeddingsRequest,
        "/v1/responses": ResponseRequest,
    },
    queries={
        "/v1/responses/{id}": ShowQuery,
        "/v1/responses/{id}/input_items": InputItemsQuery,
    },
)
