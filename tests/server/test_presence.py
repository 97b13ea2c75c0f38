"""What a request costs while its client is there, and what happens when it goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from mlx_guarded_llm.server.ending import Ending
from mlx_guarded_llm.server.errors import HTTPError
from mlx_guarded_llm.server.presence import until_gone
from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve
from .test_leaving import asked, count, sending, tasks

HEARTBEAT = 0.02


class Client:
    """Goes away when it is told to."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


def run(test: Callable[[Client], Awaitable[None]]) -> None:
    async def alone() -> None:
        await test(Client())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(alone())


async def endless(began: asyncio.Event, ends: list[str]) -> None:
    try:
        began.set()
        await asyncio.Event().wait()
    finally:
        ends.append("cancelled")


def test_the_work_ends_first() -> None:
    async def one(client: Client) -> None:
        ending = Ending()
        assert await until_gone(client.receive, asyncio.sleep(0, "done"), ending=ending) == "done"
        ending.begin(0)  # whoever has ended is not told
        await asyncio.sleep(0.01)

    run(one)


def test_the_client_goes_as_the_work_ends() -> None:
    faults: list[dict[str, Any]] = []

    async def one(client: Client) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        for turns in range(8):  # of the loop, between the one and the other
            client.leaves.clear()

            async def work(turns: int = turns) -> str:
                client.leaves.set()
                for _ in range(turns):
                    await asyncio.sleep(0)
                return "done"

            try:
                assert await until_gone(client.receive, work()) == "done"
            except ClientDisconnect:
                pass
            await asyncio.sleep(0)

    run(one)
    assert not faults


def test_its_own_timeout_stays_one() -> None:
    async def fails() -> None:
        raise TimeoutError("of the work")

    async def one(client: Client) -> None:
        with pytest.raises(TimeoutError, match="of the work"):
            await until_gone(client.receive, fails())

    run(one)


def test_the_client_goes() -> None:
    async def one(client: Client) -> None:
        began, ends = asyncio.Event(), list[str]()
        asyncio.get_running_loop().call_soon(client.leaves.set)
        with pytest.raises(ClientDisconnect):
            await until_gone(client.receive, endless(began, ends))
        assert ends == ["cancelled"]

    run(one)


@pytest.mark.parametrize("before", [True, False])
def test_the_server_ends(before: bool) -> None:
    async def one(client: Client) -> None:
        began, ends, ending = asyncio.Event(), list[str](), Ending()
        if before:
            ending.begin(0)
            await asyncio.sleep(0.01)
        work = asyncio.ensure_future(
            until_gone(client.receive, endless(began, ends), ending=ending)
        )
        if not before:
            await began.wait()
            ending.begin(0)
        with pytest.raises(HTTPError) as raised:
            await work
        assert raised.value.code == "shutting_down"

    run(one)


def test_a_beat_fails() -> None:
    async def beat() -> None:
        raise OSError("nobody takes it")

    async def one(client: Client) -> None:
        began, ends = asyncio.Event(), list[str]()
        with pytest.raises(OSError, match="nobody takes it"):
            await until_gone(client.receive, endless(began, ends), heartbeat=0.01, beat=beat)
        assert ends == ["cancelled"]

    run(one)


@pytest.fixture
def busy(serve: Serve, tiny: MakeModel, scripted: MakeModel) -> Running:
    """One place; streams get their headers at once."""
    return serve(
        options={"max_active": 1},
        models={
            "noise": tiny(hidden_size=256, layers=6, context_window=8192),
            "paris": scripted(ANSWER),
        },
        heartbeat=HEARTBEAT,
        early_errors=0.0,
    )


@pytest.mark.parametrize(("stream", "most"), [(False, 2), (True, 3)])
def test_tasks_of_a_request(busy: Running, stream: bool, most: int) -> None:
    """Each one more makes each garbage collection longer, for which all streams stand still."""
    path, waiting = "/v1/chat/completions", 4
    holder = asked("/v1/completions", "noise", "Go on", stream=True, tokens=8000)
    body = asked(path, "noise", "Go on", stream=stream, tokens=8)
    with sending(busy, "/v1/completions", holder, "close"):
        until(lambda: count(busy, "active", "noise") == 1)
        loop = busy.server.servers[0].get_loop()
        before = len(asyncio.all_tasks(loop))
        with (
            sending(busy, path, body, "close"),
            sending(busy, path, body, "close"),
            sending(busy, path, body, "close"),
            sending(busy, path, body, "close"),
        ):
            until(lambda: count(busy, "waiting", "noise") == waiting)
            until(lambda: len(asyncio.all_tasks(loop)) - before <= waiting * most)
            assert count(busy, "waiting", "noise") == waiting
    until(lambda: tasks(busy) <= before)


@pytest.mark.parametrize(
    ("path", "last"),
    [("/v1/responses", "response.completed"), ("/v1/messages", "message_stop")],
)
def test_no_beat_after_the_last_event(busy: Running, path: str, last: str) -> None:
    """Even where the last event is taken slowly."""
    body = json.dumps(asked(path, "paris", "Where?", stream=True, tokens=48)).encode()
    headers = {"host": "localhost", "content-type": "application/json"}
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": ("localhost", 80),
    }
    sent: list[bytes] = []

    async def ask() -> None:
        client, bodies = Client(), iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            return next(bodies, None) or await client.receive()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if last.encode() in sent[-1]:
                await asyncio.sleep(10 * HEARTBEAT)

        await busy.server.config.loaded_app(scope, receive, send)

    loop = busy.server.servers[0].get_loop()
    asyncio.run_coroutine_threadsafe(ask(), loop).result()
    *_, event, nothing = sent
    assert last.encode() in event and nothing == b""


def test_head_of_a_stream_without_end(busy: Running) -> None:
    reply = busy.client.head("/models/sse")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith(
        "text/event-stream"
    )
