"""Anthropic's API."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..api import Api
from .errors import AnthropicError, error_body
from .messages import count_tokens, create_message
from .models import VersionedRoute, list_models, show_model
from .requests import CountRequest, MessageRequest


async def hello(request: Request) -> Response:
    """Claude Code asks this before it starts, to see whether there is a server."""
    del request
    return Response()


API = Api(
    routes=[
        Route("/v1/messages", create_message, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
        Route("/api/hello", hello),
        VersionedRoute("/v1/models", list_models),
        VersionedRoute("/v1/models/{name:path}", show_model),
    ],
    error=error_body,
    error_body=AnthropicError,
    prefixes=("/v1/messages", "/api/"),
    bodies={"/v1/messages": MessageRequest, "/v1/messages/count_tokens": CountRequest},
)
