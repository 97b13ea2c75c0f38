"""A backend that sends what is asked of it to where the models run."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...embed_request import EmbedRequest
from ...errors import InvalidRequest
from ...json_values import plain_text
from ...models import ModelCard, OnProgress
from ...models.aliases import check_options
from ...models.naming import model_name
from ...params import SamplingParams
from ...record import Event
from ...request import PromptRequest
from ..base import CLOSE_GRACE, HEALTH_PATIENCE, BaseBackend, GiveUp
from ..callbacks import Callbacks
from ..health import Health
from ..model_info import ModelInfo, Models
from ..options import (
    callback,
    checked_priority,
    label,
    sort_options,
    switch,
    tokens_prompt,
)
from ..request_status import RequestStatus
from ..streams import Promise, Put
from .calls import Calls

ASKING = 30.0  # seconds for what a server knows without asking a model
HELLO = 10.0  # seconds for its first word, of which one that hangs is known


class CallingBackend(BaseBackend):
    """Makes each method a call; see `frames`.

    Its methods, results and errors are those of `Backend`. Only `run` is refused: nobody else's
    functions are run where the models are. What a name means is decided there, too.

    Args:
        calls: send them.
        timeout: seconds a request may take in all, unless it says otherwise.
    """

    def __init__(self, calls: Calls, *, timeout: float) -> None:
        self.timeout = timeout
        self._calls = calls
        self._callbacks = Callbacks()
        self._owner = os.getpid()
        self._run_id = uuid.uuid4().hex[:12]
        self._count = 0
        self._closed = False

    def fingerprint(self, request_id: str) -> str:
        """See `BaseBackend.fingerprint`."""
        return self._calls.fingerprint(request_id)

    def cancel(self, request_id: str) -> None:
        """See `BaseBackend.cancel`."""
        name = label("request_id", request_id)
        if not self._closed:
            self._calls.forsake(name)
            self._calls.send("cancel", {"request_id": name}, _ignore)

    # ---- models -----------------------------------------------------------------

    def full_name(self, model: str | Path, **options: Any) -> str:
        """See `BaseBackend.full_name`."""
        return str(self._ask("full_name", self._model(model, options)))

    def card(self, model: str | Path, **options: Any) -> ModelCard | None:
        """See `BaseBackend.card`."""
        card: ModelCard | None = self._ask("card", self._model(model, options))
        return card

    def models(self) -> list[ModelInfo]:
        """See `BaseBackend.models`."""
        return Models(self._ask("models"))

    def memory(self) -> tuple[int, int]:
        """See `BaseBackend.memory`."""
        used, budget = self._ask("memory")
        return used, budget

    def unpin(self, model: str | Path, **options: Any) -> bool:
        """See `BaseBackend.unpin`."""
        return bool(self._ask("unpin", self._model(model, options)))

    def forgive(self, model: str | Path, **options: Any) -> bool:
        """See `BaseBackend.forgive`."""
        return bool(self._ask("forgive", self._model(model, options)))

    # ---- the record --------------------------------------------------------------

    def expected_wait(self, request_id: str) -> float | None:
        """See `BaseBackend.expected_wait`."""
        wait: float | None = self._ask("expected_wait", _about(request_id))
        return wait

    async def aexpected_wait(
        self, request_id: str, *, timeout: float = HEALTH_PATIENCE
    ) -> float | None:
        """See `BaseBackend.aexpected_wait`."""
        wait: float | None = await self._aask("expected_wait", _about(request_id), timeout)
        return wait

    def status(self, request_id: str) -> RequestStatus | None:
        """See `BaseBackend.status`."""
        status: RequestStatus | None = self._ask("status", _about(request_id))
        return status

    async def astatus(
        self, request_id: str, *, timeout: float = HEALTH_PATIENCE
    ) -> RequestStatus | None:
        """See `BaseBackend.astatus`."""
        status: RequestStatus | None = await self._aask("status", _about(request_id), timeout)
        return status

    def requests(self) -> list[RequestStatus]:
        """See `BaseBackend.requests`. It needs a key with `admin`, if there are keys."""
        found: list[RequestStatus] = self._ask("requests")
        return found

    def events(self) -> tuple[Event, ...]:
        """See `BaseBackend.events`."""
        return tuple(self._ask("events"))

    @property
    def worker_pid(self) -> int | None:
        """None: the server's own affair."""
        return None

    # ---- the end -----------------------------------------------------------------

    def close(self, *, timeout: float = CLOSE_GRACE) -> bool:
        """End every call that waits. The server and its models go on.

        Returns:
            True.
        """
        del timeout
        first, self._closed = not self._closed, True
        if first and self._owner == os.getpid():
            self._callbacks.close()
            self._calls.close(wait=True)
        return True

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._owner == os.getpid():
            self._closed = True
            self._calls.close(wait=False)

    # ---- what differs ------------------------------------------------------------

    def _submit(
        self,
        put: Put,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
        options: dict[str, Any],
        *,
        emitted: Sequence[int] = (),
        fingerprint: str = "",
    ) -> str:
        given = sort_options(options)
        params = SamplingParams(**given.sampling)
        request = PromptRequest(prompt, **given.prompting)
        sent = {
            "seed": int.from_bytes(os.urandom(6)),  # another server goes on with the same
            **{name: getattr(params, name) for name in given.sampling},
            **{name: getattr(request, name) for name in given.prompting},
            **given.scheduling,
        }
        body = {**self._model(model, given.loading, sent), "prompt": request.prompt}
        if emitted:
            body |= {"emitted": list(emitted), "fingerprint": fingerprint}
        return self._send("generate", body, put, timeout, request_id, on_progress)[0]

    def _embed(
        self,
        put: Put,
        model: str | Path,
        texts: Sequence[str | Sequence[int]],
        truncate: bool,
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
        options: dict[str, Any],
    ) -> str:
        first = checked_priority(options.pop("priority", None))
        checked = EmbedRequest(texts=texts, truncate=truncate)
        body = {
            **self._model(model, options, {"priority": first}),
            "texts": checked.texts,
            "truncate": checked.truncate,
        }
        return self._send("embed", body, put, timeout, request_id, on_progress)[0]

    def _tokens(
        self,
        put: Put,
        model: str | Path,
        prompt: str | Sequence[Mapping[str, Any] | int],
        special_tokens: bool,
        timeout: float | None,
        options: dict[str, Any],
    ) -> str:
        given, checked = tokens_prompt(prompt, special_tokens, options)
        asked = given.prompting
        if isinstance(checked, PromptRequest):
            asked = {name: getattr(checked, name) for name in asked}
        body = {
            **self._model(model, given.loading, asked),
            "prompt": checked if isinstance(checked, str) else checked.prompt,
            "special_tokens": special_tokens,
        }
        return self._send("tokens", body, put, timeout)[0]

    def _load(
        self,
        promise: Promise[ModelInfo],
        model: str | Path,
        pin: bool,
        on_progress: OnProgress | None,
        options: dict[str, Any],
    ) -> GiveUp:
        body = {**self._model(model, options), "pin": switch("pin", pin)}
        return self._send("load", body, promise.put, on_progress=on_progress)[1]

    def _unload(self, promise: Promise[bool], model: str | Path, options: dict[str, Any]) -> GiveUp:
        return self._send("unload", self._model(model, options), promise.put)[1]

    def _run(self, promise: Promise[Any], fn: Callable[[], Any], name: str) -> GiveUp:
        raise InvalidRequest(
            "a server runs nobody's functions, so run() is only for a backend of this process.",
            hint="Make a Backend() of your own for it.",
        )

    def _health(self) -> Promise[Health]:
        promise: Promise[Health] = Promise()
        self._send("health", {}, promise.put)
        return promise

    def _identity(self, request_id: str | None) -> str:
        if request_id is not None and label("request_id", request_id):
            return label("request_id", request_id)
        self._count += 1  # two threads may take the same number, but the rest is drawn
        return f"request-{self._run_id}-{self._count}-{uuid.uuid4().hex[:4]}"

    # ---- small things ------------------------------------------------------------

    def _model(
        self,
        model: str | Path,
        loading: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The fields of a call that name a model and its options."""
        name = plain_text(model_name(model), "model")
        if isinstance(model, os.PathLike) or name.startswith((".", "~")):
            name = str(Path(name).expanduser().absolute())  # the server has another folder
        given = check_options({k: v for k, v in loading.items() if v is not None})
        return {"model": name, "options": {**given, **(options or {})}}

    def _send(
        self,
        call: str,
        body: Mapping[str, Any],
        put: Put,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[str, GiveUp]:
        """Send a call, and return its request's id and what drops it."""
        self._check_open()
        name = self._identity(request_id)
        listener = callback("on_progress", on_progress)
        tell = None if listener is None else partial(self._callbacks.tell, listener)
        sent = {**body, "timeout": self._timeout(timeout), "request_id": name}
        return name, self._calls.send(call, sent, put, tell)

    def _ask(
        self,
        call: str,
        body: Mapping[str, Any] | None = None,
        *,
        patient: bool = True,
        within: float = ASKING,
    ) -> Any:
        self._check_open()
        promise: Promise[Any] = Promise()
        drop = self._calls.send(call, body or {}, promise.put, patient=patient)
        return promise.wait(within, give_up=drop)

    async def _aask(self, call: str, body: Mapping[str, Any], timeout: float) -> Any:
        self._check_open()
        promise: Promise[Any] = Promise()
        drop = self._calls.send(call, body, promise.put)
        return await promise.wait_async(timeout, give_up=drop)


def _ignore(item: Any) -> None:
    del item


def _about(request_id: str) -> dict[str, Any]:
    return {"request_id": label("request_id", request_id)}
