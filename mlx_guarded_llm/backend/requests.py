"""Requests as the dispatcher keeps them: for an answer, for vectors, for token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.protocol import Ended, Prepare, PrepareTexts, Preparing, Tokenize
from ..errors import RequestCancelled, RequestTimeout
from ..guard import Timing
from ..models import ModelFiles, ModelSpec
from ..models.spec import OnProgress
from ..params import SamplingParams
from ..request import PromptRequest
from ..results import Embeddings, Provenance
from ..texts import TextsRequest
from .calls import Put


@dataclass(eq=False, kw_only=True)
class Request:
    """A request from `submit` until its caller has its end.

    Attributes:
        submitted, expires, prepared: seconds of `time.monotonic()`.
        key: the name under which the guard and the engine know its model.
        guarded: the guard has it.
        in_engine: the engine was told of it and has not said that it ended; until
            then its name stays taken.
        told: its caller has its end.
        stage: what it is doing before that, for an error message.
    """

    id: str
    name: str
    spec: ModelSpec
    put: Put
    submitted: float
    expires: float
    on_progress: OnProgress | None = None
    key: str = ""
    fingerprint: str = ""
    revision: str = ""
    prepared: float = 0.0
    guarded: bool = False
    in_engine: bool = False
    told: bool = False
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

    def provenance(self, ended: Ended, timing: Timing, seed: int | None = None) -> Provenance:
        """Where its answer came from and what it waited for."""
        return Provenance(
            request_id=self.id,
            requested_model=self.name,
            served_model=self.key,
            fingerprint=self.fingerprint,
            revision=self.revision,
            seed=seed,
            queued=timing.queued + self.prepared - self.submitted,
            deferred=timing.deferred,
            loading=timing.loading,
            prefill=ended.prefill,
            decode=ended.decode,
            paused=timing.paused,
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
            request_id=self.id,
            model=self.key,
            files=files,
            prompt=self.prompt,
            params=self.params,
            seed=self.seed,
        )

    def answer(self, ended: Ended, timing: Timing) -> Any:
        """See `Request.answer`."""
        if ended.chunk is None:
            return ended.error or self.cancelled()
        return ended.chunk.with_guard(self.provenance(ended, timing, self.seed))


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
        return PrepareTexts(request_id=self.id, model=self.key, files=files, texts=self.texts)

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
        return Tokenize(request_id=self.id, model=self.key, files=files, prompt=self.prompt)
