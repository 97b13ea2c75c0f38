"""`/v1/completions`: continues text, without a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from typing import Any

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...params import MAX_TOP_LOGPROBS
from ...results import Result, TokenLogprob, Usage
from ..bodies import read_body
from ..calls import Pieces, Question, deadline, whole
from ..context import Context, client_of, new_id
from ..errors import HTTPError, refused, too_large
from ..events import EventStream, event
from ..guard import guard_headers
from ..models import ServedModel
from ..settings import Limits
from ..token_ids import Text, as_texts, read_texts
from .requests import CompletionRequest
from .shapes import finish_reason, provenance, until_done, usage_of

DEFAULT_MAX_TOKENS = 16  # the default in OpenAI's API


async def complete(request: Request) -> Response:
    """Continue some texts."""
    context = Context.of(request)
    context.ending.check()
    body = await read_body(request, CompletionRequest, context.settings.limits)
    model = context.models.find(body.model, client_of(request))
    prompts = await read_texts(
        _prompts(body, context.settings.limits), meaning=model.entry.token_ids, param="prompt"
    )
    _check_ids(body, prompts)
    questions = _questions(request, body, model, prompts)
    if not body.stream:
        return _answer(body, prompts, questions, await whole(request, questions))
    pieces = Pieces(request, questions)
    await pieces.begin()
    return EventStream(
        until_done(pieces, _events(body, prompts, questions, pieces)),
        pieces,
        heartbeat=context.settings.heartbeat,
        headers=pieces.headers,
    )


def _prompts(body: CompletionRequest, limits: Limits) -> list[Text]:
    """The prompts, as text or token ids.

    Raises:
        HTTPError: there are none, or a parameter is not supported.
    """
    body.check_stream_options()
    texts = as_texts(body.prompt)
    if not texts:
        raise refused("prompt is an empty list.", param="prompt")
    choices = len(texts) * (body.n or 1)
    if choices > limits.choices:
        raise too_large("choices", f"{choices:,}", limits.choices)
    wanted = {
        "suffix": body.suffix not in (None, ""),
        "best_of": body.best_of not in (None, 1, body.n),
        "echo": bool(body.echo) and body.logprobs is not None,
    }
    for name in (name for name, cannot in wanted.items() if cannot):
        raise _unsupported(name, " together with logprobs" if name == "echo" else "")
    if body.logprobs is not None and body.logprobs > MAX_TOP_LOGPROBS:
        raise refused(
            f"logprobs is {body.logprobs}; {MAX_TOP_LOGPROBS} are the most.", param="logprobs"
        )
    return texts


def _check_ids(body: CompletionRequest, prompts: Sequence[Text]) -> None:
    """Refuse what cannot be done with ids of the model's own tokenizer.

    Raises:
        HTTPError: there are none in a prompt, or they are to be echoed.
    """
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and body.echo:
            raise _unsupported("echo", " together with token ids")
        if not isinstance(prompt, str) and not prompt:
            raise refused(f"prompt.{place} has no tokens.", param="prompt")


def _unsupported(name: str, beside: str) -> HTTPError:
    return refused(
        f"{name} is not supported{beside}.",
        param=name,
        code="unsupported_parameter",
        hint="Leave it out.",
    )


def _questions(
    request: Request, body: CompletionRequest, model: ServedModel, prompts: Sequence[Text]
) -> list[Question]:
    """One question for each choice, grouped by prompt."""
    name = new_id("cmpl")
    options = {
        **body.sampling(),
        "raw": True,
        "max_tokens": DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        "logprobs": body.logprobs is not None,
        "top_logprobs": body.logprobs,
    }
    asked = [(prompt, seed) for prompt in prompts for seed in body.seeds()]
    return [
        Question(
            model=model,
            prompt=prompt,
            request_id=f"{name}-{place}" if place else name,
            options=options | {"seed": seed},
            timeout=deadline(request),
        )
        for place, (prompt, seed) in enumerate(asked)
    ]


def _answer(
    body: CompletionRequest,
    prompts: Sequence[Text],
    questions: Sequence[Question],
    results: Sequence[Result],
) -> Response:
    first = results[0].guard
    begun = [_beginning(body, question) for question in questions]
    data = {
        "id": questions[0].request_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": first.served_model,
        "system_fingerprint": first.fingerprint,
        "choices": [
            {
                "index": place,
                "text": begun[place] + result.text,
                "logprobs": _logprobs(result.logprobs, 0),
                "finish_reason": finish_reason(result.finish_reason),
                "guard": result.guard.as_dict(),
            }
            for place, result in enumerate(results)
        ],
        "usage": usage_of((result.usage for result in results), len(prompts)),
        "guard": first.as_dict(),
    }
    return JSONResponse(data, headers=guard_headers(first))


async def _events(
    body: CompletionRequest,
    prompts: Sequence[Text],
    questions: Sequence[Question],
    pieces: Pieces,
) -> AsyncIterator[ServerSentEvent]:
    head: dict[str, Any] = {
        "id": questions[0].request_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": questions[0].model.name,
    }
    offsets = [0] * len(questions)
    usages: dict[int, Usage] = {}
    for place, question in enumerate(questions):
        if beginning := _beginning(body, question):
            yield event({**head, "choices": [_piece(place, beginning)]})
    async for place, chunk in pieces:
        choice = _piece(place, chunk.text)
        choice["logprobs"] = _logprobs(chunk.logprobs, offsets[place])
        offsets[place] += sum(len(token.text) for token in chunk.logprobs)
        data = {**head, "choices": [choice]}
        if chunk.finish_reason is not None and chunk.guard is not None:
            choice["finish_reason"] = finish_reason(chunk.finish_reason)
            data |= provenance(chunk.guard)
        if chunk.usage is not None:
            usages[place] = chunk.usage
        if body.wants_usage:
            data["usage"] = None
        yield event(data)
    if body.wants_usage:
        each = [usages[place] for place in sorted(usages)]
        yield event({**head, "choices": [], "usage": usage_of(each, len(prompts))})


def _beginning(body: CompletionRequest, question: Question) -> str:
    """The prompt, if it is to be echoed."""
    return str(question.prompt) if body.echo else ""


def _piece(place: int, text: str) -> dict[str, Any]:
    return {"index": place, "text": text, "logprobs": None, "finish_reason": None}


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """Log probabilities in the format of completions."""
    if not tokens:
        return None
    lengths = [len(token.text) for token in tokens]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{text: logprob for _, text, logprob in token.top} for token in tokens],
        "text_offset": list(accumulate(lengths[:-1], initial=offset)),
    }
