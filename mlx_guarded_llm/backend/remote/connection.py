"""The connection to a server: one thread with an event loop, on which every call is a task."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import tenacity
import yarl

from ...errors import (
    BackendClosed,
    GuardedLLMError,
    InvalidRequest,
    ModelError,
    ServerUnavailable,
    retry_after,
)
from ...logs import THREAD_PREFIX
from ...models import Progress
from ..streams import Put
from . import frames

CONNECT = 10.0  # seconds
SILENCE = 120.0  # seconds without a byte, after which a server is taken for gone; it beats each 10
AGAIN = 10.0  # seconds in which a server that went away may come back
CLOSING = 5.0  # seconds for calls under way to end

_BROKEN = (aiohttp.ClientError, OSError)
# A server that is about to end says `ServerUnavailable`.
_AWAY = (*_BROKEN, ServerUnavailable)
# What to do about statuses that come before a call is read.
_HINTS = {
    401: "Give the server's key: Backend.connect(url, key=...), or MLX_GUARDED_KEY.",
    403: "Use an address or a name that the server allows (allowed_hosts).",
    404: "Is it a server of this library (`mlx-guarded serve`), and of this version?",
}


class Connection:
    """Sends calls to one server. From any thread.

    Args:
        url: "http://host:port", or "unix:///path".
        key: sent with each call, if there is one.

    Raises:
        InvalidRequest: the address is none.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self._base, self._socket = _address(self.url)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._headers = {**headers, "content-type": "application/json"}
        self._loop = asyncio.new_event_loop()
        self._loop.call_soon(self._open)
        self._outbox = Outbox(self._loop)
        self._under_way: set[_Reply] = set()
        self._closed = False
        self._thread = threading.Thread(
            target=self._live, name=f"{THREAD_PREFIX}remote", daemon=True
        )
        self._thread.start()

    def send(
        self,
        call: str,
        body: Mapping[str, Any],
        put: Put,
        progress: Callable[[Progress], None] | None = None,
        *,
        patient: bool = True,
    ) -> Callable[[], None]:
        """Begin a call.

        Args:
            call: its name.
            body: fields of `frames.Call`.
            put: gets chunks, the value, or an error of ours that ends it. It gets an end.
            progress: gets that.
            patient: a server that is away may come back.

        Returns:
            What drops the call; the server then ends it, too.
        """
        reply = _Reply(call, body, put, progress, self._outbox)
        begin = functools.partial(self._begin, call, frames.call_of(body), reply, patient)
        self._under_way.add(reply)
        if not self._soon(begin):
            self._ended(reply)
        return lambda: self._drop(reply)

    def forsake(self, request_id: str) -> None:
        """Do not send a request again, since nobody wants it any more."""
        for reply in tuple(self._under_way):
            if reply.request_id == request_id:
                reply.wanted = False

    def close(self, *, wait: bool) -> None:
        """End every call that waits.

        Args:
            wait: until the thread has ended.
        """
        self._closed = True
        if self._soon(self._loop.stop) and wait:
            self._thread.join(CLOSING)

    def _live(self) -> None:
        self._loop.run_forever()  # until `close`
        self._loop.run_until_complete(self._end())
        self._outbox.hand_over()
        self._loop.close()
        for reply in tuple(self._under_way):  # the loop has not come to these
            self._ended(reply)

    def _open(self) -> None:  # on the loop, as aiohttp wants it
        if self._socket:
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(self._socket, limit=0)
        else:
            connector = aiohttp.TCPConnector(limit=0)
        # Without the proxies of the environment: none stands before a server of one's own.
        self._client = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT, sock_read=SILENCE),
        )

    async def _end(self) -> None:
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await self._client.close()

    def _soon(self, do: Callable[[], object]) -> bool:
        """Have the loop do something, from any thread. Whether it still runs."""
        try:
            self._loop.call_soon_threadsafe(do)
        except RuntimeError:  # it is closed
            return False
        return True

    def _begin(self, call: str, body: bytes, reply: _Reply, patient: bool) -> None:
        if self._closed:
            self._ended(reply)
            return
        reply.task = self._loop.create_task(self._work(call, body, reply, patient))
        reply.task.add_done_callback(lambda _: self._ended(reply))

    def _drop(self, reply: _Reply) -> None:
        """End a call, which the loop has begun by then."""
        self._soon(lambda: reply.task is not None and reply.task.cancel())

    def _ended(self, reply: _Reply) -> None:
        self._under_way.discard(reply)
        reply.end(_closed())

    async def _work(self, call: str, body: bytes, reply: _Reply, patient: bool) -> None:
        """One call, sent again where a server went away: it ends those whose client is gone."""
        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, _AWAY) and reply.can_go_on
            ),
            stop=lambda _: not patient or time.monotonic() - reply.heard > AGAIN,
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=1.0),
            reraise=True,
        )
        try:
            await again(self._attempt, call, body, reply)
        except ServerUnavailable as error:  # it said so itself
            away = ServerUnavailable(error.message, text=reply.text, hint=error.hint)
            away.retry_after = error.retry_after
            reply.end(away)
        except GuardedLLMError as error:
            reply.end(error)
        except _BROKEN as error:
            reply.end(_gone(self.url, str(error) or type(error).__name__, reply.text))
        except Exception as error:  # a frame that cannot be read
            reply.end(_gone(self.url, f"its reply cannot be read ({error})", reply.text))

    async def _attempt(self, call: str, first: bytes, reply: _Reply) -> None:
        content = frames.call_of(reply.rest()) if reply.attempts else first
        reply.attempts += 1
        reply.moved = False
        where = f"{self._base}{frames.PATH}{call}"
        body = io.BytesIO(content)  # of which aiohttp sends a part at a time
        async with self._client.post(where, data=body, allow_redirects=False) as response:
            if response.status != 200:
                raise await _refused(self.url, response)
            begun: list[bytes] = []  # parts of a line, which may be long
            async for data in response.content.iter_any():
                reply.heard = time.monotonic()
                part, *others = data.split(b"\n")
                begun.append(part)
                for other in others:
                    if line := b"".join(begun):
                        reply.take(frames.read_frame(line))
                    begun = [other]
        if not reply.over:
            raise aiohttp.ClientPayloadError("its reply broke off")


class Outbox:
    """Pieces of answers on their way from the connection's thread to those that wait for them.

    A caller that wakes takes the interpreter's lock from this thread. So the pieces of all
    answers that have arrived together are read first, and then handed over together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[Put, Any]] = deque()

    def put(self, put: Put, item: Any) -> None:
        """Hand an item over when all that has arrived is read. On the loop's thread."""
        if not self._items:
            self._loop.call_soon(self.hand_over)
        self._items.append((put, item))

    def hand_over(self) -> None:
        """Hand over what is there. From any thread."""
        while True:
            try:
                put, item = self._items.popleft()
            except IndexError:
                return
            put(item)


class _Reply:
    """What has come of the reply to a call.

    Attributes:
        over: it has its end.
        wanted: nobody has cancelled it.
        heard: when the server was last heard, by `time.monotonic()`.
        attempts: how often the call was sent.
        moved: something of the answer has come since it was sent last.
        task: of the loop, once it has begun.
    """

    def __init__(
        self,
        call: str,
        body: Mapping[str, Any],
        put: Put,
        progress: Callable[[Progress], None] | None,
        outbox: Outbox,
    ) -> None:
        self.request_id = str(body.get("request_id") or "")
        self.over = False
        self.wanted = True
        self.heard = self._began = time.monotonic()
        self.attempts = 0
        self.moved = False
        self.task: asyncio.Task[None] | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._untold = False  # a piece has come without its tokens
        self._fingerprint = ""
        self._call = call
        self._body = body
        self._put = put
        self._progress = progress
        self._outbox = outbox

    @property
    def text(self) -> str:
        """Of the answer so far."""
        return "".join(self._texts)

    @property
    def can_go_on(self) -> bool:
        """Another server can give what is missing."""
        begun = bool(self._tokens) or self._untold
        return self.wanted and not (self._untold or (begun and not self._fingerprint))

    def rest(self) -> dict[str, Any]:
        """The call for what is missing, in the time that is left."""
        body = dict(self._body)
        if body.get("timeout") is not None:
            body["timeout"] = max(0.0, body["timeout"] - (time.monotonic() - self._began))
        if self._tokens:
            body |= {"emitted": self._tokens, "fingerprint": self._fingerprint}
        return body

    def take(self, frame: frames.Frame) -> None:
        """The next frame.

        Raises:
            ServerUnavailable: the server says that it ends.
        """
        if frame.chunk is not None:
            chunk = frame.chunk
            self.moved = True
            self._texts.append(chunk.text)
            self._tokens += chunk.tokens
            self._untold = self._untold or not chunk.tokens
            self.over = chunk.finish_reason is not None
            self._outbox.put(self._put, chunk)
        elif frame.fingerprint:
            self._fingerprint = frame.fingerprint
        elif frame.progress is not None:
            if self._progress is not None:
                self._progress(frame.progress)
        elif frame.error is not None:
            error = frames.raised(frame.error)
            if isinstance(error, ServerUnavailable):
                raise error
            self.end(self._not_resumed(error) or error)
        elif frame.done:
            self.end(frames.read_value(self._call, frame.value))

    def end(self, item: Any) -> None:
        """The value, or the error that ends it. Only the first end counts."""
        if not self.over:
            self.over = True
            self._outbox.hand_over()  # what comes before it
            self._put(item)

    def _not_resumed(self, error: GuardedLLMError) -> ServerUnavailable | None:
        """What a refusal of another server means for an answer that one had begun."""
        if self.moved or not self._tokens or not isinstance(error, InvalidRequest | ModelError):
            return None
        return ServerUnavailable(
            f"the server went away in the middle of the answer, and cannot go on with it: "
            f"{error.message} {len(self.text):,} characters had come.",
            text=self.text,
            hint=error.hint,
        )


def _address(url: str) -> tuple[str, str]:
    """The first part of each call's URL, and the path of the Unix socket or ""."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return "http://localhost", str(Path(urllib.parse.unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.netloc:
        with suppress(ValueError):  # of a port, say
            return str(yarl.URL(url)).rstrip("/"), ""
    raise InvalidRequest(
        f"{url[:200]!r} is no address of a server.",
        hint='Write "http://127.0.0.1:8080" or "unix:///path/of/the/socket".',
    )


def _closed() -> BackendClosed:
    return BackendClosed("the backend is closed.", hint="Call Backend.connect(url) again.")


def _gone(url: str, why: str, text: str) -> ServerUnavailable:
    had = f" {len(text):,} characters of the answer had come." if text else ""
    return ServerUnavailable(
        f"the server at {url} does not answer: {why}.{had}",
        text=text,
        hint="Is it running? `mlx-guarded serve` starts one.",
    )


async def _refused(url: str, response: aiohttp.ClientResponse) -> GuardedLLMError:
    """What a status means that came before the call was read."""
    status = response.status
    try:
        said = json.loads(await response.read())["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = ""
    words = f"the server at {url} refused the call with status {status}: {said or 'no reason'}"
    if status >= 500:
        away = ServerUnavailable(words)
        away.retry_after = retry_after(response.headers.get("retry-after"))
        return away
    return InvalidRequest(words, hint=_HINTS.get(status, ""))
