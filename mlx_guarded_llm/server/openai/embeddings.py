"""`/v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64

from starlette.requests import Request
from starlette.responses import Response

from ...results import Embeddings
from ..bodies import read_body
from ..calls import deadline, priority
from ..context import Context, client_of, new_id
from ..errors import refused, too_large
from ..events import compact
from ..guard import guard_headers
from ..observing import observed
from ..presence import while_there
from ..settings import Limits
from ..token_ids import Text, as_texts, read_texts
from .requests import EmbeddingsRequest


async def embed(request: Request) -> Response:
    """Make vectors of texts."""
    context = Context.of(request)
    context.ending.check()
    body = await read_body(request, EmbeddingsRequest, context.settings.limits)
    model = context.models.find(body.model, client_of(request))
    texts = await read_texts(
        _texts(body, context.settings.limits),
        meaning=model.entry.token_ids,
        param="input",
        hint="; with LangChain, OpenAIEmbeddings(check_embedding_ctx_length=False)",
    )
    name = new_id("emb")
    with observed(
        context.tally,
        operation="embeddings",
        model=model.name,
        request_id=name,
        options={},
        headers=request.headers,
    ) as seen:
        limit, goes = deadline(request), priority(request)
        if model.remote is not None:
            limit = context.settings.guard.timeout if limit is None else limit
            work = model.remote.aembed(texts, timeout=limit, request_id=name)
        else:
            work = context.backend.aembed(
                model.name, texts, timeout=limit, request_id=name, priority=goes
            )
        found = await while_there(request, work)
        seen.answered(found.guard, found.usage, None)
    size = int(found.vectors.shape[1])
    if body.dimensions not in (None, size):
        raise refused(
            f"dimensions is {body.dimensions}; the vectors of {model.name} have {size}.",
            hint="Leave it out.",
            param="dimensions",
            code="unsupported_parameter",
        )
    # Encoding a million numbers takes a while and must not block the event loop.
    written = await asyncio.to_thread(_written, body, found)
    return Response(written, media_type="application/json", headers=guard_headers(found.guard))


def _texts(body: EmbeddingsRequest, limits: Limits) -> list[Text]:
    texts = as_texts(body.input)
    if len(texts) > limits.texts:
        raise too_large("texts", f"{len(texts):,}", limits.texts)
    return texts


def _written(body: EmbeddingsRequest, found: Embeddings) -> str:
    vectors = found.vectors.astype("<f4")
    as_text = body.encoding_format == "base64"
    return compact(
        {
            "object": "list",
            "model": found.guard.served_model,
            "data": [
                {
                    "object": "embedding",
                    "index": place,
                    "embedding": base64.b64encode(vector.tobytes()).decode()
                    if as_text
                    else vector.tolist(),
                }
                for place, vector in enumerate(vectors)
            ],
            "usage": {
                "prompt_tokens": found.usage.prompt_tokens,
                "total_tokens": found.usage.prompt_tokens,
            },
            "guard": found.guard.as_dict(),
        }
    )
