"""The connection to a server: each call is a request over HTTP."""

from __future__ import annotations

import io
import json
import time
import urllib.parse
from contextlib import suppress
from pathlib import Path

import aiohttp
import yarl

from ...errors import GuardedLLMError, InvalidRequest, ServerUnavailable, retry_after
from . import frames
from .calls import Calls, Reply

CONNECT = 10.0  # seconds
SILENCE = 120.0  # seconds without a byte, after which a server is taken for gone; it beats each 10

# What to do about statuses that come before a call is read.
_HINTS = {
    401: "Give the server's key: Backend.connect(url, key=...), or MLX_GUARDED_KEY.",
    403: "Use an address or a name that the server allows (allowed_hosts).",
    404: "Is it a server of this library (`mlx-guarded serve`), and of this version?",
}


class Connection(Calls):
    """Sends calls to one server. From any thread.

    Args:
        url: "http://host:port", or "unix:///path".
        key: sent with each call, if there is one.

    Raises:
        InvalidRequest: the address is none.
    """

    broken = (aiohttp.ClientError, OSError)

    def __init__(self, url: str, key: str | None) -> None:
        place = url.rstrip("/")
        self._base, self._socket = _address(place)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._headers = {**headers, "content-type": "application/json"}
        super().__init__(place)

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

    async def _shut(self) -> None:
        await self._client.close()

    async def _attempt(self, call: str, content: bytes, reply: Reply) -> None:
        where = f"{self._base}{frames.PATH}{call}"
        body = io.BytesIO(content)  # of which aiohttp sends a part at a time
        async with self._client.post(where, data=body, allow_redirects=False) as response:
            if response.status != 200:
                raise await _refused(self.place, response)
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
