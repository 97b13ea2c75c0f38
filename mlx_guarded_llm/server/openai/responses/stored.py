"""`/v1/responses/{id}` and what was asked for it, as long as it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...bodies import read_query
from ...context import Context, client_of
from ...conversations import Conversation, Item
from ...errors import HTTPError, refused


class ShowQuery(BaseModel):
    """What may be asked of a response that is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stream: bool = False


class InputItemsQuery(BaseModel):
    """Which of the items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


async def show_response(request: Request) -> Response:
    """A response that is kept, as it was given."""
    if read_query(request, ShowQuery).stream:
        raise refused(
            "a response is kept when it has ended, and is not streamed again.",
            param="stream",
            code="unsupported_parameter",
            hint="Leave it out.",
        )
    return JSONResponse(_kept(request).response)


async def delete_response(request: Request) -> Response:
    """Forget a response, so that no other goes on with it."""
    _kept(request)
    name = request.path_params["id"]
    Context.of(request).conversations.forget(name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


async def list_input_items(request: Request) -> Response:
    """What a response was made of: everything that was said before it, the latest first."""
    query = read_query(request, InputItemsQuery)
    items = list(_kept(request).asked)
    if query.order == "desc":
        items.reverse()
    if query.after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == query.after]
        if not places:
            raise refused(f"there is no item {query.after[:200]!r} here.", param="after")
        items = items[places[0] + 1 :]
    page = items[: query.limit]
    return JSONResponse(
        {
            "object": "list",
            "data": [_shown(item) for item in page],
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }
    )


def _shown(item: Item) -> Item:
    """An item as OpenAI's API shows it: a message may be given in a shorter form."""
    if item.get("type", "message") != "message" or not isinstance(item.get("content"), str):
        return item
    kind = "output_text" if item.get("role") == "assistant" else "input_text"
    return {**item, "type": "message", "content": [{"type": kind, "text": item["content"]}]}


def _kept(request: Request) -> Conversation:
    """The conversation up to the response that is asked for.

    Raises:
        HTTPError: 404; it is not kept, or was made for another key.
    """
    name = request.path_params["id"]
    kept = Context.of(request).conversations.find(name, client_of(request).name)
    if kept is None:
        raise HTTPError(
            404,
            "response_not_found",
            f"there is no response {name[:200]!r} here, or no longer.",
            hint="Those of store=False are not kept, and the oldest make room for others.",
        )
    return kept
