"""Clients that do not keep to HTTP, or leave it half-way, at a server that others use.

    python -m tests.soak.fuzz_wire --cases 2000 [--seed N]

Each case draws a request, breaks it, draws how it is sent (at once, in pieces, byte by byte)
and how the client leaves: it reads the answer, reads a little of it, shuts one side of its
connection, resets it, or says nothing more until the server has had enough. Several cases run at
once. Beside them one client asks the same question all the time and must get the same answer.

After every so many cases, and at the end: nothing is queued or running, and no more descriptors
or threads are held than before. Whatever the server answers is HTTP, its status is none of
500, and an error has the shape of OpenAI's API.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import h11

from .served import MODELS, PATIENCE, Served, served

TOGETHER = 8  # cases at once
BETWEEN = 100  # cases between two looks at what is held
LIMITS = {"head_seconds": 1.0, "body_seconds": 1.0, "send_seconds": 1.0, "connections": 200}
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/models/load",
    "/models/unload",
)
GETS = ("/health", "/v1/models", "/metrics", "/models/sse", "/guard/events?from=start", "/%ff/..")
# In the place of a value.
JUNK = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"1" * 400,
    b"1" * 6000,
    b"-0",
    b'"\\ud800"',
    b'"\xff\xfe"',
    b'"\\u0000"',
    b"[" * 300 + b"]" * 300,
    b'{"a":' * 150 + b"1" + b"}" * 150,
    b"{}",
    b"[[]]",
    b"null",
    b"true",
    b'"' + b"x" * 100_000 + b'"',
)
CHUNKS = (
    b"zz\r\n{}\r\n0\r\n\r\n",
    b"-1\r\n",
    b"ffffffffffffffffffff\r\n",
    b"2\r\n{}x\r\n0\r\n\r\n",
    b"2;" + b"x" * 20_000 + b"\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\r\n",
    b"1\r\n{\r\n1\r\n}\r\n0\r\nx: y\r\n\r\n",
)
HEADERS = (
    b"content-length: 7",
    b"content-length: -1",
    b"content-length: 99999999999999999999",
    b"content-length: 999999999",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip",
    b"x: " + b"y" * 15_000,
    b"x: " + b"y" * 90_000,
    b"\r\n".join(b"x-%d: y" % number for number in range(300)),
    b"host: evil.example",
    b"expect: 100-continue",
    b"expect: 200-ok",
    b"upgrade: websocket\r\nconnection: upgrade",
    b"connection: close",
    b"x-guard-deadline: 1e400",
    b"authorization: Bearer \xff\xfe",
    b"x\x00: y",
    b"no colon",
    b" folded",
)


def request(dice: Random) -> bytes:
    """A good request."""
    if dice.random() < 0.2:
        return b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % dice.choice(GETS).encode()
    body: dict[str, Any] = {"model": dice.choice(MODELS)}
    path = dice.choice(PATHS)
    if path.startswith("/v1/"):
        talk = [{"role": "user", "content": "Go on"}]
        body |= {"stream": dice.random() < 0.6} if path != "/v1/embeddings" else {}
        if path.endswith(("chat/completions", "messages", "count_tokens")):
            body["messages"] = talk
            body["max_tokens"] = dice.choice((8, 1500))
        else:
            body["prompt" if path == "/v1/completions" else "input"] = "Go on"
        if path.endswith("count_tokens"):
            del body["max_tokens"], body["stream"]
    content = json.dumps(body).encode()
    if dice.random() < 0.3:  # one of its values is something else
        name = dice.choice(list(body))
        old = b'"%s": %s' % (name.encode(), json.dumps(body[name]).encode())
        new = b'"%s": %s' % (name.encode(), dice.choice(JUNK))
        twice = dice.random() < 0.3
        content = content.replace(old, old + b", " + new if twice else new, 1)
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head % path.encode() + b"content-length: %d\r\n\r\n" % len(content) + content


def broken(dice: Random, text: bytes) -> bytes:
    """A request, with something wrong in it."""
    head, _, body = text.partition(b"\r\n\r\n")
    what = dice.randrange(9)
    if what == 0:
        return dice.randbytes(dice.randint(1, 2000))
    if what == 1:  # cut off
        return text[: dice.randint(0, len(text))]
    if what == 2:
        return head + b"\r\n" + dice.choice(HEADERS) + b"\r\n\r\n" + body
    if what == 3:
        head = b"\r\n".join(line for line in head.split(b"\r\n") if b"content-length" not in line)
        return head + b"\r\ntransfer-encoding: chunked\r\n\r\n" + dice.choice(CHUNKS)
    if what == 4:  # some bytes are others
        changed = bytearray(text)
        for _ in range(dice.randint(1, 5)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return bytes(changed)
    if what == 5:  # several at once
        return b"".join([text, *(request(dice) for _ in range(dice.randint(1, 6)))])
    if what == 6:  # another follows that is cut off
        return text + text[: dice.randint(1, len(text))]
    if what == 7:
        return text.replace(
            b"HTTP/1.1", dice.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"")), 1
        )
    return text


def send(dice: Random, sock: socket.socket, text: bytes) -> None:
    """In one piece, in several, or byte by byte."""
    how = dice.random()
    if how < 0.7:
        sock.sendall(text)
        return
    step = 1 if how > 0.9 and len(text) < 400 else max(1, len(text) // dice.randint(2, 6))
    for place in range(0, len(text), step):
        sock.sendall(text[place : place + step])
        time.sleep(0.001)


def leave(dice: Random, sock: socket.socket) -> tuple[str, bytes]:
    """How it went on, and what the server said if all of it was read."""
    how = dice.choice(
        (
            "read",
            "read",
            "read",
            "read",
            "read a little",
            "reset",
            "close",
            "half",
            "deaf",
            "silent",
        )
    )
    if how == "read":
        return how, everything(sock)
    if how == "half":
        sock.shutdown(socket.SHUT_WR)
        return how, everything(sock)
    sock.settimeout(5.0)
    if how == "read a little":
        sock.recv(dice.choice((1, 100, 5000)))
    elif how == "deaf":  # it will take no more
        sock.shutdown(socket.SHUT_RD)
        time.sleep(dice.random())
    elif how == "silent":
        time.sleep(dice.random() * 2)
    elif how == "reset":
        time.sleep(dice.random() * 0.05)
    if how in ("reset", "read a little"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return how, b""


def everything(sock: socket.socket) -> bytes:
    """All that comes, up to the first pause: good connections are kept open. Some never end."""
    parts = []
    sock.settimeout(2.0)
    end = time.monotonic() + 5.0
    try:
        while time.monotonic() < end and (part := sock.recv(65536)):
            parts.append(part)
    except (TimeoutError, ConnectionError):
        pass
    return b"".join(parts)


def check(said: bytes) -> str:
    """What is wrong with an answer, if anything is."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "localhost")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(said)
    status, kind, body = 0, b"", b""
    try:
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Response):
                status, kind = event.status_code, dict(event.headers).get(b"content-type", b"")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif event is h11.NEED_DATA or event is h11.PAUSED:
                return ""  # the rest did not come in time
    except h11.RemoteProtocolError as error:
        return f"no HTTP: {error}"
    if status == 500:
        return "status 500"
    if status < 400 or kind != b"application/json":
        return "" if status < 400 else f"an error as {kind!r}"
    told = json.loads(body)
    good = told["error"].get("message") if "error" in told else "status" in told
    return "" if good else f"an error of no shape: {body[:200]!r}"


def case(running: Served, seed: int, seen: Counter[str]) -> None:
    """One client."""
    dice = Random(seed)
    address = urlsplit(running.url)
    text = broken(dice, request(dice))
    how, said = "refused", b""
    try:
        with socket.create_connection((address.hostname, address.port), PATIENCE) as sock:
            send(dice, sock, text)
            how, said = leave(dice, sock)
    except OSError:
        pass  # the server had enough of it, or has nothing to say
    seen[how] += 1
    if said and (wrong := check(said)):
        running.fault(wrong, f"case {seed}: {text[:500]!r}: {said[:500]!r}")
    status = said[9:12].decode(errors="replace") if said.startswith(b"HTTP/") else "none"
    seen[f"status {status}"] += 1


def run(running: Served, seeds: list[int], seen: Counter[str]) -> None:
    """Some cases, and one good client beside them."""
    over = threading.Event()

    def beside() -> None:
        while not over.is_set():
            running.ask()
            seen["another's answer"] += 1

    other = threading.Thread(target=beside)
    other.start()
    try:
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(lambda seed: case(running, seed, seen), seeds))
    finally:
        over.set()
        other.join()


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="drawn if not given")
    options = parser.parse_args()
    seed = Random().getrandbits(32) if options.seed is None else options.seed
    dice = Random(seed)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), limits=LIMITS) as running:
        seeds = [dice.getrandbits(32) for _ in range(options.cases)]
        for begin in range(0, options.cases, BETWEEN):
            run(running, seeds[begin : begin + BETWEEN], seen)
            running.check_rest()
            print(f"  {min(begin + BETWEEN, options.cases)} cases", flush=True)
        running.ask()
    for name, count in sorted(seen.items()):
        print(f"  {name:<40} {count}")
    return running.report("wire", options.cases, seed)


if __name__ == "__main__":
    sys.exit(main())
