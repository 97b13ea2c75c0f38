"""The methods of `Backend`, for a `RemoteBackend`; see `backend.remote.frames`.

What comes here goes to the backend as it is: no fallbacks and no retries, since whoever asks has
those of his own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..backend.callbacks import at_once
from ..backend.remote import frames
from ..backend.remote.frames import Call, Frame
from ..backend.request_status import RequestStatus
from ..backend.streams import AsyncStream
from ..errors import (
    EngineDied,
    GuardedLLMError,
    InvalidRequest,
    ModelNotFound,
    ServerUnavailable,
    retry_after,
)
from ..logs import get_logger
from ..models.naming import bare_name, split_options, with_options
from .api import Api
from .bodies import read_body
from .context import Context, client_of, require_admin
from .errors import HTTPError, http_error, refused
from .following import mark_of, position_of
from .models import ServedModel, check_hosts
from .openai.errors import OpenAIError, error_body
from .presence import while_there
from .security import Client
from .settings import ModelEntry

logger = get_logger("server")

Tell = Callable[[Frame], None]
Handler = Callable[["Asked"], Awaitable[Any]]

LOCAL = ("adapter_path", "revision")  # options that only the settings may give


class Asked:
    """One call of a client.

    Attributes:
        context: of the server.
        client: who calls.
        call: what it says.
        name: of the model, as the backend knows it.
        options: what is asked, and what the model is loaded with.
        tell: takes what the client is to see.
    """

    def __init__(self, context: Context, client: Client, call: Call, tell: Tell) -> None:
        self.context = context
        self.client = client
        self.backend = context.backend
        self.call = call
        self.options = frames.options_of(call)
        self.tell = tell
        self._loop = asyncio.get_running_loop()

    @property
    def name(self) -> str:
        """The model that is asked for.

        Raises:
            HTTPError: it is not served here, or to this client.
        """
        found = split_options(self.call.model)
        bare, options = found or (self.call.model, {})
        models = self.context.models
        model = models.find(bare, self.client)
        model.check_local("asked by a backend")
        name = model.name
        check_hosts(self.client, {**options, **self.options})
        if not models.is_named(bare):  # every name is served, with whatever options
            return self.call.model
        for option in () if self.client.owner else LOCAL:
            if option in options or option in self.options:
                raise refused(f"{option} is what only the server's settings may give.")
        return with_options(name, options, always=True) if found else name

    @at_once
    def progress(self, progress: Any) -> None:
        """From another thread."""
        try:
            self._loop.call_soon_threadsafe(self.tell, Frame(progress=progress))
        except RuntimeError:  # the loop is closed, so nobody listens
            pass


async def _hello(asked: Asked) -> int:
    return frames.VERSION


async def _generate(asked: Asked) -> None:
    call, backend = asked.call, asked.backend
    begin: Callable[..., AsyncStream] = backend.astream
    if call.emitted:
        begin = partial(backend.aresume, emitted=call.emitted, fingerprint=call.fingerprint)
    stream = begin(
        asked.name,
        call.prompt,
        timeout=call.timeout,
        request_id=call.request_id,
        on_progress=asked.progress,
        **asked.options,
    )
    told = bool(call.emitted)
    with asked.context.under_way.listed(stream.request_id, asked.client.name):
        async with stream:
            async for chunk in stream:
                asked.tell(Frame(chunk=chunk))
                if told or chunk.finish_reason is not None:
                    continue
                if found := backend.fingerprint(stream.request_id):
                    told = True
                    asked.tell(Frame(fingerprint=found))


async def _embed(asked: Asked) -> frames.Vectors:
    call = asked.call
    name = call.request_id or ""
    with asked.context.under_way.listed(name, asked.client.name):
        found = await asked.backend.aembed(
            asked.name,
            call.texts,
            truncate=call.truncate,
            timeout=call.timeout,
            request_id=call.request_id,
            on_progress=asked.progress,
            **asked.options,
        )
    return frames.vectors(found)


async def _tokens(asked: Asked) -> list[int]:
    call = asked.call
    return await asked.backend.atokens(
        asked.name,
        call.prompt,
        special_tokens=call.special_tokens,
        timeout=call.timeout,
        **asked.options,
    )


async def _full_name(asked: Asked) -> str:
    return asked.backend.full_name(asked.name, **asked.options)


async def _card(asked: Asked) -> Any:
    return await asyncio.to_thread(asked.backend.card, asked.name, **asked.options)


async def _load(asked: Asked) -> Any:
    require_admin(asked.client)
    return await asked.backend.aload(
        asked.name,
        pin=asked.call.pin,
        timeout=asked.call.timeout,
        on_progress=asked.progress,
        **asked.options,
    )


async def _unload(asked: Asked) -> bool:
    require_admin(asked.client)
    return await asked.backend.aunload(asked.name, timeout=asked.call.timeout, **asked.options)


async def _models(asked: Asked) -> Any:
    client = asked.client
    infos = await asyncio.to_thread(asked.backend.models)
    return [info for info in infos if client.may_use(bare_name(info.name))]


async def _memory(asked: Asked) -> tuple[int, int]:
    return await asyncio.to_thread(asked.backend.memory)


async def _unpin(asked: Asked) -> bool:
    require_admin(asked.client)
    return await asyncio.to_thread(asked.backend.unpin, asked.name, **asked.options)


async def _forgive(asked: Asked) -> bool:
    require_admin(asked.client)
    return await asyncio.to_thread(asked.backend.forgive, asked.call.model, **asked.options)


async def _health(asked: Asked) -> Any:
    now = await asked.backend.ahealth()
    # Which requests and other programs there are is for nobody but admins.
    return now if asked.client.admin else replace(now, tokens={}, held_by=())


async def _expected_wait(asked: Asked) -> float | None:
    return await asked.backend.aexpected_wait(asked.call.request_id or "")


async def _status(asked: Asked) -> RequestStatus | None:
    return await asked.backend.astatus(asked.call.request_id or "")


async def _server(asked: Asked) -> Any:
    return asked.context.entry


async def _end(asked: Asked) -> None:
    require_admin(asked.client)
    asked.context.ending.ask(now=asked.call.now)


async def _requests(asked: Asked) -> Any:
    require_admin(asked.client)
    return await asyncio.to_thread(asked.backend.requests)


async def _news(asked: Asked) -> frames.News:
    require_admin(asked.client)
    record, call = asked.backend.record, asked.call
    position = position_of(asked.context.run_id, call.mark) if call.mark else -call.most
    if position is None:
        raise refused(f"mark is {call.mark[:80]!r}; it is none of this server's.", param="mark")
    found, after = await asyncio.to_thread(record.since, position)
    mark = mark_of(asked.context.run_id, after)
    return frames.News(events=list(found), mark=mark, now=time.monotonic())


async def _served(asked: Asked) -> list[frames.Served]:
    models, client = asked.context.models, asked.client
    states = await models.states()
    named = {model.name: model for model in models.visible(client)}
    every = asked.backend.aliases() if models.any_model or client.owner else []
    others = {name for name in (*states, *every) if client.may_use(bare_name(name))}
    found = []
    for name in sorted({*named, *others}):
        model = named.get(name) or ServedModel(name, ModelEntry(), asked.backend)
        info, card = states.get(name), await model.card()
        found.append(
            frames.Served(
                name=name,
                state=model.state(info, card),
                context_window=card.context_window if card else model.entry.context_window,
                weight_bytes=card.weight_bytes if card else None,
                memory_bytes=info.memory_bytes if info else 0,
                pinned=info.pinned if info else False,
            )
        )
    return found


async def _events(asked: Asked) -> Any:
    require_admin(asked.client)
    return await asyncio.to_thread(asked.backend.events)


async def _cancel(asked: Asked) -> None:
    name = asked.call.request_id or ""
    if asked.context.under_way.may_cancel(name, asked.client):
        asked.backend.cancel(name)


CALLS: dict[str, Handler] = {
    "hello": _hello,
    "generate": _generate,
    "embed": _embed,
    "tokens": _tokens,
    "full_name": _full_name,
    "card": _card,
    "load": _load,
    "unload": _unload,
    "models": _models,
    "memory": _memory,
    "unpin": _unpin,
    "forgive": _forgive,
    "health": _health,
    "expected_wait": _expected_wait,
    "status": _status,
    "requests": _requests,
    "events": _events,
    "news": _news,
    "served": _served,
    "cancel": _cancel,
    "server": _server,
    "end": _end,
}


async def answer(request: Request) -> Response:
    """One call of a `RemoteBackend`."""
    context = Context.of(request)
    handler = CALLS.get(request.path_params["call"])
    if handler is not _end:
        context.ending.check()
    if handler is None:
        raise refused(f"there is no call {request.path_params['call'][:80]!r}.", param="call")
    call = await read_body(request, Call, context.settings.limits)
    return Frames(request, Reply(context, client_of(request), handler, call))


def reply_to(context: Context, client: Client, call: str, body: bytes) -> Reply:
    """The reply to a call that came some other way than over HTTP.

    Args:
        context: of the server.
        client: who calls.
        call: its name, one of `CALLS`.
        body: a `Call` as JSON.
    """
    return Reply(context, client, CALLS[call], Call.model_validate_json(body))


class Reply:
    """The lines of a reply: its frames as they come, and empty ones by the clock.

    Args:
        context: of the server.
        client: who calls.
        handler: answers it. What it returns is the value; None where chunks were told.
        call: what the client says.
    """

    def __init__(self, context: Context, client: Client, handler: Handler, call: Call) -> None:
        self._heartbeat = context.settings.heartbeat
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._news = asyncio.Event()  # there are lines, or the work is done
        self._handler = handler
        self._asked = Asked(context, client, call, self._tell)

    async def parts(self) -> AsyncGenerator[bytes]:
        """What is to be sent, as soon as there is something; all of it at once.

        The work ends with this iterator, so close it.
        """
        work = asyncio.ensure_future(self._work())
        work.add_done_callback(lambda _: self._news.set())
        self._beat_later()
        try:
            while not work.done() or self._lines:
                await self._news.wait()
                yield self._take()
        finally:
            self._beating.cancel()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def last(self, error: GuardedLLMError) -> bytes:
        """What is still to be sent where an error ended it."""
        self._tell(_failed(error))
        return self._take()

    def _beat_later(self) -> None:
        self._beating = self._loop.call_later(self._heartbeat, self._beat)

    def _beat(self) -> None:
        self._put(b"\n")
        self._beat_later()

    async def _work(self) -> None:
        try:
            value = await self._handler(self._asked)
            if self._handler is not _generate:
                self._tell(Frame(value=value, done=True))
        except GuardedLLMError as error:
            self._tell(_failed(error))
        except Exception as error:
            if not isinstance(error, HTTPError):
                logger.error("%s failed", self._handler.__name__, exc_info=error)
            self._tell(_failed(_as_ours(http_error(error))))

    def _tell(self, frame: Frame) -> None:
        self._put(frames.write_frame(frame) + b"\n")

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._news.set()

    def _take(self) -> bytes:
        lines, self._lines = self._lines, []
        self._news.clear()
        return b"".join(lines)


class Frames(Response):
    """A reply over HTTP.

    Args:
        request: of the client; its body has been read.
        reply: to it.
    """

    def __init__(self, request: Request, reply: Reply) -> None:
        super().__init__(media_type=frames.MEDIA_TYPE)
        del self.headers["content-length"]
        self._request = request
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Response`."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            await while_there(self._request, self._send_all(send))
        except HTTPError as error:  # the server ends
            away = ServerUnavailable(error.message, hint=error.hint)
            away.retry_after = retry_after(error.headers.get("retry-after"))
            await send(_part(self._reply.last(away), more=True))
        await send(_part(b"", more=False))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._reply.parts()) as parts:
            async for part in parts:
                await send(_part(part, more=True))


def _failed(error: GuardedLLMError) -> Frame:
    return Frame(error=frames.failure(error))


def _part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _as_ours(error: HTTPError) -> GuardedLLMError:
    """What the server refuses, as the error that the client's caller expects."""
    kind: type[GuardedLLMError] = InvalidRequest
    if error.code == "model_not_found":
        kind = ModelNotFound
    elif error.status >= 500:
        kind = EngineDied
    return kind(error.message, hint=error.hint)


API = Api(
    routes=[Route(f"{frames.PATH}{{call}}", answer, methods=["POST"])],
    error=error_body,
    error_body=OpenAIError,
    prefixes=(frames.PATH,),
    bodies={f"{frames.PATH}{{call}}": Call},
)
