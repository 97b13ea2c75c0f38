"""Requests as the dispatcher keeps them: for an answer, for vectors, for token ids."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..embed_request import EmbedRequest
from ..engine.protocol import Ended, Prepare, PrepareTexts, Preparing, Tokenize
from ..errors import (
    ContextOverflow,
    GuardedLLMError,
    InvalidRequest,
    PreparingFailed,
    RequestCancelled,
)
from ..guard import Priority, Timing
from ..json_values import characters
from ..logs import get_logger
from ..models import ModelFiles, ModelSpec
from ..models.spec import OnProgress
from ..params import SamplingParams
from ..request import PromptRequest
from ..results import Chunk, Embeddings, Provenance, Usage
from ..worker.parent.death import Death
from .streams import Put

LONGEST_TOKEN = 256  # characters; vocabularies have runs of 128 spaces
_CHANCES = 2  # deaths of engines while one request was being prepared
_CHANCES_DOUBTFUL = 4  # if something outside ended it, or MLX was at work as well
_engine_ids = itertools.count(1)

logger = get_logger("backend")


@dataclass(eq=False, kw_only=True)
class Request:
    """A request, from `Dispatcher.submit` until its caller has its end.

    The guard knows its status.

    Attributes:
        put: takes what its caller gets; None once that has its end.
        engine_id: its id in the engine. A caller may use an `id` again as soon as it has its
            end, when the engine may not have seen every command for it yet.
        priority: a batch request lets interactive ones pass, for a time.
        expires, started, first_token: seconds of `time.monotonic()`.
        key: the name under which the guard and the engine know its model.
        files: of its model, when they are known.
        in_engine: what the engine does with it, "" when it does not have it. Its id stays
            taken until the engine reports its end.
        counted: its prompt is prepared, and its tokens are counted.
        prompt_tokens: number of tokens of its prompt.
        max_tokens: that its answer may have; 0 for none.
        tokens: of its answer, as far as its caller has them; at first those that it got from
            another server.
        made_room: it ran out of memory, and idle models were evicted for it.
        resumed: it was running when an engine died, or ran out of memory, or at another server.
        deaths: of engines, while it was being prepared.
        shown: returns the name by which callers know the model of a key.
    """

    id: str
    name: str
    spec: ModelSpec
    put: Put | None
    expires: float
    priority: Priority = "interactive"
    on_progress: OnProgress | None = None
    engine_id: str = field(default_factory=lambda: f"ticket-{next(_engine_ids)}")
    key: str = ""
    files: ModelFiles | None = None
    started: float | None = None
    first_token: float | None = None
    in_engine: Literal["", "preparing", "prepared"] = ""
    counted: bool = False
    prompt_tokens: int = 0
    max_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    made_room: bool = False
    resumed: bool = False
    deaths: int = 0
    shown: Callable[[str], str] = str

    @property
    def characters(self) -> int:
        """Of the texts it holds while it is under way; see `embed_request.MAX_CHARACTERS`."""
        return 0

    def command(self, files: ModelFiles) -> Preparing:
        """How the engine is told of it."""
        raise NotImplementedError

    def answer(self, ended: Ended, timing: Timing) -> Any:
        """What its caller gets: an answer, or a `GuardedLLMError`."""
        raise NotImplementedError

    def cut(self) -> Ended:
        """What the engine says of one it stops, for an engine that did not live to say it."""
        return Ended(request_id=self.engine_id, error=self.cancelled())

    def check(self, files: ModelFiles) -> None:
        """Refuse unread what its model could never take.

        Raises:
            ContextOverflow: it is longer than the window in any spelling.
            InvalidRequest: another model has begun the answer.
        """

    def provenance(self, ended: Ended, timing: Timing) -> Provenance:
        """Where its answer came from and what it waited for."""
        prefill, decode = ended.prefill, ended.decode
        if self.resumed and self.started is not None:  # the last engine knows its part only
            first, now = self.first_token, time.monotonic()
            prefill = (first or now) - self.started
            decode = now - (first or now)
        return Provenance(
            request_id=self.id,
            requested_model=self.name,
            served_model=self.shown(self.key),
            fingerprint=self.files.fingerprint if self.files else "",
            revision=self.files.revision if self.files else "",
            resumed=self.resumed,
            queued=timing.queued,
            deferred=timing.deferred,
            loading=timing.loading,
            prefill=prefill,
            decode=decode,
            paused=timing.paused,
            recovering=timing.recovering,
        )

    def deliver(self, item: Any) -> None:
        """Give its caller its end, once."""
        put, self.put = self.put, None
        if put is None:
            return
        if isinstance(item, GuardedLLMError):
            item = copy.copy(item)  # raised by several callers, each adds its own traceback
        try:
            put(item)
        except BaseException:  # the caller's own code may run in there
            logger.exception("the caller of %s cannot be told", self.id)

    def preparing_killed(self, death: Death) -> PreparingFailed | None:
        """Count a death of the engine while it was preparing this request.

        Returns:
            Why it is not tried again, or None if it is.
        """
        self.deaths += 1
        doubtful = death.cause == "killed" or death.work not in ("", "prepare")
        chances = _CHANCES_DOUBTFUL if doubtful else _CHANCES
        if death.cause == "hung" and death.work == "prepare":
            chances = 1
        if self.deaths < chances:
            return None
        often = f"{self.deaths} engines" if self.deaths > 1 else "an engine"
        return PreparingFailed(
            f"{often} ended while request {self.id} ({self.characters} characters) was "
            f"being prepared for {self.key}: {death.text}.",
            hint="Shorten the prompt; look at the model's template and tokenizer.",
        )

    def cancelled(self) -> RequestCancelled:
        return RequestCancelled(f"request {self.id} was cancelled before it had an answer.")


@dataclass(eq=False, kw_only=True)
class AnswerRequest(Request):
    """For the answer to a prompt.

    Attributes:
        fingerprint: of the model that made the first `tokens`, if another server did.
    """

    prompt: PromptRequest
    params: SamplingParams
    seed: int
    fingerprint: str = ""

    @property
    def characters(self) -> int:
        """See `Request`."""
        form = (self.params.schema, self.params.regex, self.params.grammar)
        return self.prompt.characters + characters(form)

    def check(self, files: ModelFiles) -> None:
        """See `Request.check`."""
        if self.fingerprint not in ("", files.fingerprint):
            raise InvalidRequest(
                f"the answer was begun by other weights than those of {self.shown(self.key)}.",
                hint="Ask again from the beginning.",
            )
        count, window = self.prompt.characters, files.context_window
        if count > window * LONGEST_TOKEN:
            raise ContextOverflow(
                f"The prompt has {count} characters, which are more than the {window} tokens "
                f"of the context window can be ({LONGEST_TOKEN} characters each).",
                prompt_tokens=count // LONGEST_TOKEN,
                context_window=window,
                hint="Shorten the prompt or use a model with a longer context.",
            )

    def command(self, files: ModelFiles) -> Preparing:
        """See `Request.command`."""
        return Prepare(
            request_id=self.engine_id,
            model=self.key,
            files=files,
            prompt=self.prompt,
            params=self.params.with_defaults(files.sampling),
            seed=self.seed,
            emitted=tuple(self.tokens),
        )

    def answer(self, ended: Ended, timing: Timing) -> Any:
        """See `Request.answer`."""
        if ended.chunk is None and self.tokens and isinstance(ended.error, RequestCancelled):
            ended = self.cut()
        if ended.chunk is None:
            return ended.error or self.cancelled()
        return ended.chunk.with_guard(self.provenance(ended, timing))

    def provenance(self, ended: Ended, timing: Timing) -> Provenance:
        """See `Request.provenance`."""
        own = self.files.sampling if self.files else {}
        used = self.params.with_defaults(own).sampling
        return replace(super().provenance(ended, timing), seed=self.seed, sampling=used)

    def cut(self) -> Ended:
        """See `Request.cut`."""
        usage = Usage(self.prompt_tokens, len(self.tokens))
        return replace(
            super().cut(), error=None, chunk=Chunk(finish_reason="cancelled", usage=usage)
        )


@dataclass(eq=False, kw_only=True)
class VectorsRequest(Request):
    """For the vectors of texts."""

    texts: EmbedRequest

    @property
    def characters(self) -> int:
        """See `Request`."""
        return self.texts.characters

    def command(self, files: ModelFiles) -> Preparing:
        """See `Request.command`."""
        return PrepareTexts(
            request_id=self.engine_id, model=self.key, files=files, texts=self.texts
        )

    def answer(self, ended: Ended, timing: Timing) -> Any:
        """See `Request.answer`."""
        if ended.value is None or ended.usage is None:
            return ended.error or self.cancelled()
        return Embeddings(
            vectors=ended.value, usage=ended.usage, guard=self.provenance(ended, timing)
        )


@dataclass(eq=False, kw_only=True)
class TokensRequest(Request):
    """For the token ids of a prompt. They are there when it is prepared: it needs no turn."""

    prompt: PromptRequest | str

    @property
    def characters(self) -> int:
        """See `Request`."""
        prompt = self.prompt
        return len(prompt) if isinstance(prompt, str) else prompt.characters

    def command(self, files: ModelFiles) -> Preparing:
        """See `Request.command`."""
        return Tokenize(request_id=self.engine_id, model=self.key, files=files, prompt=self.prompt)
