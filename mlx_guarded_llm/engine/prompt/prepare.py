"""Preparing requests on threads beside the MLX thread: tokenizers, templates, encoding."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import (
    GuardedLLMError,
    InvalidRequest,
    ModelInvalid,
    PreparingFailed,
    RequestCancelled,
)
from ...logs import get_logger
from ...memory.rank_limit import RankLimit, tightest
from ...models.encoders import only_embeds
from ...models.hosts import Hosts
from ...models.spec import ModelFiles, draft_name
from ..decode.decoder import TokenSequence
from ..decode.grammars import Grammars, logits_width
from ..decode.microbatch import EncodedTexts
from ..observer import PREPARERS, Observer
from ..output.embedding import PreparedTexts, encode_texts
from ..protocol import (
    Broken,
    Ended,
    LoadPrepared,
    Prepare,
    Prepared,
    PrepareLoad,
    PrepareTexts,
    Preparing,
    Report,
    Tokenize,
)
from ..residency.embeddable import check_names, check_tokens
from .keyed_executor import KeyedExecutor, Task, TaskCancelled
from .tokenizer import Tokenizers

logger = get_logger("engine")

_LONG = 100_000  # characters; encoding that many takes about a tenth of a second


@dataclass
class PreparedRequest:
    """A request that is ready to join a batch.

    Attributes:
        entry: what the batch gets.
        pipeline: turns its tokens into text.
        spell: returns a token id as the vocabulary spells it.
    """

    model: str
    entry: TokenSequence
    pipeline: Any
    spell: Callable[[int], str]

    @property
    def wants_logprobs(self) -> bool:
        return self.entry.params.logprobs or self.entry.params.top_logprobs > 0


@dataclass
class _Resources:
    """What preparing needs. Long requests have their own, since one thread uses a tokenizer."""

    tokenizers: Tokenizers
    grammars: Grammars


class Preparer:
    """Prepares requests: those of one model in order, those of several models in parallel.

    Long requests do not delay the short ones of their model. The observer hears of each request
    before anything is done with it, so the watchdog knows what hangs. A request that takes longer
    than `timeout`, or is no longer wanted, is cancelled if Python can be interrupted there;
    otherwise the watchdog ends the process.

    Nothing starts before `open`, because the MLX thread must import mlx_lm first.

    Args:
        emit: takes each report.
        observer: hears of each request that is prepared.
        timeout: seconds that preparing one request may take.
        ready: waits for the machines over which a model is spread, which its load needs and which
            must not hold up other models; see `Ranks.ready`.

    Attributes:
        tokenizers: those that it has read, except for long requests.
    """

    def __init__(
        self,
        emit: Callable[[Report], None],
        observer: Observer,
        timeout: float,
        ready: Callable[[Hosts], Sequence[int]],
    ) -> None:
        self._ready = ready
        self._emit = emit
        self._observer = observer
        self._timeout = timeout
        self._prepared: dict[str, PreparedRequest | PreparedTexts] = {}
        self._encoding: dict[str, EncodedTexts] = {}  # started, and waiting for their next turn
        self._short, self._long = (_Resources(Tokenizers(), Grammars()) for _ in range(2))
        self.tokenizers = self._short.tokenizers
        self._opened = threading.Event()
        self._dead: GuardedLLMError | None = None
        self._executor: KeyedExecutor[Preparing | PrepareLoad] = KeyedExecutor(
            self._do, PREPARERS, timeout
        )

    def put(self, command: Preparing | PrepareLoad) -> None:
        """Prepare a request, or a load, soon. From any thread."""
        if isinstance(command, PrepareLoad):
            self._executor.put((command.model, False), "", command)
        else:
            self._executor.put((command.model, _is_long(command)), command.request_id, command)

    def open(self) -> None:
        """Start, since mlx_lm is imported now."""
        self._opened.set()

    def fail(self, error: GuardedLLMError, emit: Callable[[Report], None]) -> None:
        """Refuse everything, since mlx_lm cannot be imported."""
        self._dead = error
        self._opened.set()
        emit(Broken(error))

    def close(self) -> None:
        """Accept nothing more."""
        self._opened.set()
        self._executor.close()

    def take(self, request_id: str) -> PreparedRequest | PreparedTexts | None:
        """A prepared request, once. None if it is unknown or was taken already.

        A request whose texts are still being encoded is cancelled, and ends soon.
        """
        encoding = self._encoding.get(request_id)
        if encoding is not None:
            encoding.cancelled = True
        return self._prepared.pop(request_id, None)

    def cancel(self, request_id: str) -> None:
        """Stop preparing a request that nobody waits for any more. From any thread."""
        self._executor.cancel(request_id)

    @property
    def busy(self) -> bool:
        """Requests are being prepared, or are prepared and have not been taken."""
        return self._executor.busy or bool(self._prepared)

    def release(self, model: str) -> None:
        """Drop what was kept for the requests of a model that was unloaded."""
        for resources in (self._short, self._long):
            resources.tokenizers.release(model)
            resources.tokenizers.release(draft_name(model))
            resources.grammars.forget(model)

    # ---- on the executor's threads, from here on ---------------------------------------

    def _do(self, command: Preparing | PrepareLoad, place: int, task: Task) -> None:
        self._opened.wait()
        task.began = time.monotonic()
        self._observer.preparing(place, command.model, task.name)
        try:
            if isinstance(command, PrepareLoad):
                self._emit(self._prepare_load(command))
                return
            try:
                try:
                    report = self._report(command, task)
                finally:
                    self._executor.end_task(task)
            except TaskCancelled:
                report = self._given_up(command, task)
            if report is not None:
                self._emit(report)
        finally:
            self._observer.prepared(place)

    def _prepare_load(self, command: PrepareLoad) -> LoadPrepared:
        try:
            if self._dead is not None:
                raise self._dead
            rank_limit = self._ready_ranks(command.files)
        except GuardedLLMError as error:
            return LoadPrepared(command.job_id, command.model, error=error.with_traceback(None))
        # An error here occurs again in the load, which reports it.
        with contextlib.suppress(BaseException):
            self.tokenizers.get(command.model, command.files)
            if command.files.draft is not None:
                self.tokenizers.get(draft_name(command.model), command.files.draft)
        return LoadPrepared(command.job_id, command.model, rank_limit)

    def _ready_ranks(self, files: ModelFiles) -> RankLimit | None:
        """Wait for the machines over which a model is spread."""
        return tightest(files.hosts, self._ready(files.hosts)) if files.hosts is not None else None

    def _report(self, command: Preparing, task: Task) -> Report | None:
        """The report of `_carry_out`, or of what it raised."""
        try:
            return self._carry_out(command, task)
        except GuardedLLMError as error:
            self._encoding.pop(command.request_id, None)
            if isinstance(error, ModelInvalid):  # its files may be repaired by the next time
                self.release(command.model)
            return Ended(request_id=command.request_id, error=error.with_traceback(None))
        except TaskCancelled:
            raise
        except BaseException as error:  # the code of a tokenizer may panic, or even exit
            self._encoding.pop(command.request_id, None)
            logger.exception("a request could not be prepared")
            unknown = PreparingFailed(
                f"the request cannot be prepared for {command.model} "
                f"({type(error).__name__}: {error}).",
                hint="No memory is left for it: free some, or allow more (ulimit -v)."
                if isinstance(error, MemoryError)
                else "The model's tokenizer may not be able to read this text.",
            )
            return Ended(request_id=command.request_id, error=unknown)

    def _given_up(self, command: Preparing, task: Task) -> Report:
        self._encoding.pop(command.request_id, None)
        self._prepared.pop(command.request_id, None)
        error: GuardedLLMError = RequestCancelled(f"request {command.request_id} was cancelled.")
        if task.timed_out:
            error = PreparingFailed(
                f"preparing the request for {command.model} ({command.characters} characters) "
                f"took longer than {self._timeout:.0f} s.",
                hint="Look at the model's chat template, or send a shorter prompt.",
            )
        return Ended(request_id=command.request_id, error=error)

    def _tokenizer(self, command: Preparing, task: Task) -> Any:
        """The tokenizer for a request. From here on the task may be cancelled."""
        resources = self._resources(command)
        tokenizer = resources.tokenizers.get(command.model, command.files)
        task.cancellable = True
        return tokenizer

    def _resources(self, command: Preparing) -> _Resources:
        return self._long if _is_long(command) else self._short

    def _carry_out(self, command: Preparing, task: Task) -> Report | None:
        """The report for a command; None if it continues after what is waiting by now."""
        if self._dead is not None:
            raise self._dead
        if isinstance(command, Prepare):
            return self._prepare(command, task)
        if isinstance(command, PrepareTexts):
            return self._prepare_texts(command, task)
        return self._tokenize(command, task)

    def _prepare_texts(self, command: PrepareTexts, task: Task) -> Report | None:
        encoded = self._encoding.setdefault(command.request_id, EncodedTexts(command.request_id))
        if encoded.cancelled:
            raise RequestCancelled(f"request {command.request_id} was cancelled.")
        tokenizer = self._tokenizer(command, task)
        if not encode_texts(tokenizer, command, encoded):
            self.put(command)
            return None
        del self._encoding[command.request_id]
        self._prepared[command.request_id] = PreparedTexts(command.model, encoded)
        return Prepared(command.request_id, encoded.longest, 0)

    def _tokenize(self, command: Tokenize, task: Task) -> Report:
        # Imported here because it imports mlx_lm, which the MLX thread has done by now.
        from .counting import count_prompt

        tokenizer = self._tokenizer(command, task)
        if isinstance(command.prompt, str):
            ids = tokenizer.encode(command.prompt, add_special_tokens=False)
        else:
            embeds = command.files.spec.task == "embed" or only_embeds(command.files.config)
            ids = count_prompt(tokenizer, command.prompt, embeds=embeds)
        return Ended(request_id=command.request_id, value=list(ids))

    def _prepare(self, command: Prepare, task: Task) -> Report:
        # Imported here for the same reason as in `_tokenize`.
        from ..output.pipeline import TextPipeline
        from .prompt import encode_prompt, fit_max_tokens

        rank_limit = self._ready_ranks(command.files)
        tokenizer = self._tokenizer(command, task)
        _check_bias(command, len(tokenizer))
        window = command.files.context_window
        check_names(tokenizer, command.prompt, command.files)
        prompt = encode_prompt(tokenizer, command.prompt, context_window=window)
        for ids in (prompt.token_ids, command.emitted):
            check_tokens(ids, command.files)
        max_tokens = fit_max_tokens(len(prompt), command.params.max_tokens, window)
        emitted = len(command.emitted)
        if emitted >= max_tokens:  # only a client that is wrong sends so many
            raise InvalidRequest(
                f"the answer has {emitted} tokens already, of {max_tokens} that it may have."
            )
        grammars = self._resources(command).grammars
        sequence = TokenSequence(
            request_id=command.request_id,
            prompt=[*prompt.token_ids, *command.emitted],
            params=command.params,
            seed=command.seed,
            max_tokens=max_tokens - emitted,
            emitted=emitted,
            boundaries={s.end: s.kind for s in prompt.segments if s.kind != "assistant"},
            constraint=grammars.constraint(command.files, tokenizer, prompt, command.params),
        )
        pipeline = TextPipeline(tokenizer, prompt, command.params)
        for token in command.emitted:
            pipeline.feed(token)  # its text has been passed on already
        self._prepared[command.request_id] = PreparedRequest(
            command.model,
            sequence,
            pipeline,
            lambda token: str(tokenizer.convert_ids_to_tokens(token)),
        )
        return Prepared(command.request_id, len(prompt), max_tokens, rank_limit)


def _check_bias(command: Prepare, vocabulary: int) -> None:
    size = logits_width(command.files.config) or vocabulary
    wrong = [token for token in command.params.logit_bias if token >= size]
    if wrong:
        raise InvalidRequest(
            f"logit_bias names the token {wrong[0]}; {command.model} has {size} tokens."
        )


def _is_long(command: Preparing) -> bool:
    return command.characters > _LONG
