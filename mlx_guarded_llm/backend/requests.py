"""Requests as the dispatcher keeps them: for an answer, for vectors, for token ids."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.protocol import Ended, Prepare, PrepareTexts, Preparing, Tokenize
from ..errors import RequestCancelled, RequestTimeout
from ..guard import Timing
from ..models import ModelFiles, ModelSpec
from ..models.spec import OnProgress
from ..params import SamplingParams
from ..request import PromptRequest
from ..results import Chunk, Embeddings, Provenance, Usage
from ..texts import TextsRequest
from .calls import Put

_tickets = itertools.count(1)


@dataclass(eq=False, kw_only=True)
class Request:
    """A request from `submit` until its caller has its end.

    Attributes:
        ticket: its name in the engine. Callers may use an `id` again as soon as they have
            its end, when the engine may not have seen every command for it yet.
        submitted, expires, prepared, started, first_token: seconds of `time.monotonic()`.
        key: the name under which the guard and the engine know its model.
        files: of its model, when they are known.
        guarded: the guard has it.
        in_engine: the engine was told of it and has not said that it ended; until
            then its name stays taken.
        preparing: of that, it has not said that it is prepared.
        active: the guard said that it starts; it has not ended since.
        stopping: the guard said that it stops.
        told: its caller has its end.
        prompt_tokens: of its prompt, when they are counted.
        tokens: of its answer, as far as its caller has it.
        squeezed: idle models were unloaded for it, since it ran out of memory.
        resumed: it was active when an engine died, or ran out of memory.
        stage: what it is doing before the guard has it, for an error message.
    """

    id: str
    name: str
    spec: ModelSpec
    put: Put
    submitted: float
    expires: float
    on_progress: OnProgress | None = None
    ticket: str = field(default_factory=lambda: f"ticket-{next(_tickets)}")
    key: str = ""
    files: ModelFiles | None = None
    prepared: float = 0.0
    started: float | None = None
    first_token: float | None = None
    guarded: bool = False
    in_engine: bool = False
    preparing: bool = False
    active: bool = False
    stopping: bool = False
    told: bool = False
    prompt_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    squeezed: bool = False
    resumed: bool = False
    stage: str = "fetching its model"

    @property
    def characters(self) -> int:
        """Of the texts it holds while it is under way; see `texts.MAX_CHARACTERS`."""
        return 0

    def command(self, files: ModelFiles) -> Preparing:
        """How the engine is told of it."""
        raise NotImplementedError

    def answer(self, ended: Ended, timing: Timing) -> Any:
        """What its caller gets: an answer, or a `GuardedLLMError`."""
        raise NotImplementedError

    def cut(self) -> Ended:
        """What the engine says of one it stops, for an engine that did not live to say it."""
        return Ended(request_id=self.ticket, error=self.cancelled())

    def lose(self) -> None:
        """The engine has it no longer."""
        self.resumed = self.resumed or self.active
        self.in_engine = self.preparing = self.active = self.stopping = False

    def provenance(self, ended: Ended, timing: Timing, seed: int | None = None) -> Provenance:
        """Where its answer came from and what it waited for."""
        prefill, decode = ended.prefill, ended.decode
        if self.resumed and self.started is not None:  # the last engine knows its part only
            first, now = self.first_token, time.monotonic()
            prefill = (first or now) - self.started
            decode = now - (first or now)
        return Provenance(
            request_id=self.id,
            requested_model=self.name,
            served_model=self.key,
            fingerprint=self.files.fingerprint if self.files else "",
            revision=self.files.revision if self.files else "",
            seed=seed,
            resumed=self.resumed,
            queued=timing.queued + self.prepared - self.submitted,
            deferred=timing.deferred,
            loading=timing.loading,
            prefill=prefill,
            decode=decode,
            paused=timing.paused,
            recovering=timing.recovering,
        )

    def timeout(self, now: float) -> RequestTimeout:
        """The error when its deadline passes before the guard has it."""
        return RequestTimeout(
            f"request {self.id} to {self.name} timed out after {now - self.submitted:.1f} s, "
            f"{self.stage}.",
            hint="Pull the model first, or raise timeout.",
        )

    def expired_early(self, now: float) -> bool:
        """Its deadline has passed, and the guard, which keeps deadlines, has not seen it."""
        return self.expires <= now and not (self.guarded or self.told)

    def cancelled(self) -> RequestCancelled:
        return RequestCancelled(f"request {self.id} was cancelled before it had an answer.")


@dataclass(eq=False, kw_only=True)
class AnswerRequest(Request):
    """For the answer to a prompt."""

    prompt: PromptRequest
    params: SamplingParams
    seed: int

    def command(self, files: ModelFiles) -> Preparing:
        """See `Request.command`."""
        return Prepare(
            request_id=self.ticket,
            model=self.key,
            files=files,
            prompt=self.prompt,
            params=self.params,
            seed=self.seed,
            emitted=tuple(self.tokens),
        )

    def answer(self, ended: Ended, timing: Timing) -> Any:
        """See `Request.answer`."""
        if ended.chunk is None and self.tokens and isinstance(ended.error, RequestCancelled):
            ended = self.cut()
        if ended.chunk is None:
            return ended.error or self.cancelled()
        return ended.chunk.with_guard(self.provenance(ended, timing, self.seed))

    def cut(self) -> Ended:
        """See `Request.cut`."""
        usage = Usage(self.prompt_tokens, len(self.tokens))
        return replace(
            super().cut(), error=None, chunk=Chunk(finish_reason="cancelled", usage=usage)
        )


@dataclass(eq=False, kw_only=True)
class VectorsRequest(Request):
    """For the vectors of texts."""

    texts: TextsRequest

    @property
    def characters(self) -> int:
        """See `Request`."""
        return self.texts.characters

    def command(self, files: ModelFiles) -> Preparing:
        """See `Request.command`."""
        return PrepareTexts(request_id=self.ticket, model=self.key, files=files, texts=self.texts)

    def answer(self, ended: Ended, timing: Timing) -> Any:
        """See `Request.answer`."""
        if ended.value is None or ended.usage is None:
            return ended.error or self.cancelled()
        return Embeddings(
            vectors=ended.value, usage=ended.usage, guard=self.provenance(ended, timing)
        )


@dataclass(eq=False, kw_only=True)
class TokensRequest(Request):
    """For the token ids of a prompt. The guard never sees it: no model is needed."""

    prompt: PromptRequest | str

    def command(self, files: ModelFiles) -> Preparing:
        """See `Request.command`."""
        return Tokenize(request_id=self.ticket, model=self.key, files=files, prompt=self.prompt)
