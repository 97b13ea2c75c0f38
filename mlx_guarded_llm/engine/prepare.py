"""Making requests ready beside the MLX thread: tokenizers, templates, encoding."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import EngineDied, GuardedLLMError, InvalidRequest, ModelInvalid, RequestCancelled
from .decoder import Job
from .embedding import PreparedTexts, encode_texts
from .grammars import Grammars, logits_width
from .microbatch import EmbedJob
from .protocol import (
    Broken,
    Ended,
    Prepare,
    Prepared,
    PrepareTexts,
    Preparing,
    ReadTokenizer,
    Report,
    Tokenize,
)
from .thread import MLXThread
from .tokenizer import Tokenizers

logger = logging.getLogger("mlx_guarded_llm.engine")


@dataclass
class PreparedRequest:
    """A request that can go into a batch at once.

    Attributes:
        job: what the batch needs.
        text: turns its tokens into text.
        spell: a token id as the vocabulary spells it.
    """

    model: str
    job: Job
    text: Any
    spell: Callable[[int], str]

    @property
    def wants_logprobs(self) -> bool:
        return self.job.params.logprobs or self.job.params.top_logprobs > 0


class Preparer:
    """One thread that prepares requests, one after the other.

    It waits for `open`: mlx_lm must first be imported by the MLX thread.

    Attributes:
        tokenizers: those it has read.
    """

    def __init__(self, thread: MLXThread, emit: Callable[[Report], None]) -> None:
        self._mlx_thread = thread
        self._emit = emit
        self._commands: queue.SimpleQueue[Preparing | ReadTokenizer | None] = queue.SimpleQueue()
        self._prepared: dict[str, PreparedRequest | PreparedTexts] = {}
        self._encoding: dict[str, EmbedJob] = {}  # begun, and waiting for its next turn
        self.tokenizers = Tokenizers()
        self._grammars = Grammars()
        self._working = False
        self._opened = threading.Event()
        self._dead: GuardedLLMError | None = None
        self._thread = threading.Thread(target=self._run, name="mlx-guarded-prepare", daemon=True)
        self._thread.start()

    def put(self, command: Preparing | ReadTokenizer) -> None:
        """Prepare a request, or read a tokenizer, soon. From any thread."""
        self._commands.put(command)

    def open(self) -> None:
        """mlx_lm is imported; begin."""
        self._opened.set()

    def fail(self, error: GuardedLLMError, emit: Callable[[Report], None]) -> None:
        """mlx_lm cannot be imported; refuse everything."""
        self._dead = error
        self._opened.set()
        emit(Broken(error))

    def close(self) -> None:
        """Take nothing more."""
        self._opened.set()
        self._commands.put(None)

    def take(self, request_id: str) -> PreparedRequest | PreparedTexts | None:
        """A prepared request, once; None if it is unknown or was taken back.

        One whose texts are still being encoded ends by itself, soon.
        """
        encoding = self._encoding.get(request_id)
        if encoding is not None:
            encoding.cancelled = True
        return self._prepared.pop(request_id, None)

    @property
    def busy(self) -> bool:
        """Requests are being prepared, or are and have not been taken."""
        return self._working or not self._commands.empty() or bool(self._prepared)

    def release(self, model: str) -> None:
        """A model is out of memory: what was kept for its requests is not needed now."""
        self.tokenizers.release(model)
        self._grammars.forget(model)

    def _run(self) -> None:
        self._opened.wait()
        while (command := self._commands.get()) is not None:
            self._working = True
            if isinstance(command, ReadTokenizer):
                self._read_tokenizer(command)
            else:
                report = self._report(command)
                if report is not None:
                    self._emit(report)
            self._working = False

    def _read_tokenizer(self, command: ReadTokenizer) -> None:
        # What goes wrong here does so again in the load, which tells it.
        with contextlib.suppress(BaseException):
            if self._dead is None:
                self.tokenizers.get(command.model, command.files)

    def _report(self, command: Preparing) -> Report | None:
        """As `_carry_out`, which may raise."""
        try:
            return self._carry_out(command)
        except GuardedLLMError as error:
            self._encoding.pop(command.request_id, None)
            if isinstance(error, ModelInvalid):  # its files may be mended by the next time
                self.release(command.model)
            return Ended(request_id=command.request_id, error=error.with_traceback(None))
        except BaseException as error:  # a tokenizer's own code may even exit
            self._encoding.pop(command.request_id, None)
            logger.exception("a request could not be prepared")
            unknown = EngineDied(f"preparing failed ({type(error).__name__}: {error}).")
            return Ended(request_id=command.request_id, error=unknown)

    def _carry_out(self, command: Preparing) -> Report | None:
        """The answer to a command; None when it goes on behind what waits by now."""
        if self._dead is not None:
            raise self._dead
        if isinstance(command, Prepare):
            return self._prepare(command)
        if isinstance(command, PrepareTexts):
            return self._prepare_texts(command)
        return self._tokenize(command)

    def _prepare_texts(self, command: PrepareTexts) -> Report | None:
        job = self._encoding.setdefault(command.request_id, EmbedJob(command.request_id))
        if job.cancelled:
            raise RequestCancelled(f"request {command.request_id} was cancelled.")
        tokenizer = self.tokenizers.get(command.model, command.files)
        if not encode_texts(tokenizer, command, job):
            self._commands.put(command)
            return None
        del self._encoding[command.request_id]
        self._prepared[command.request_id] = PreparedTexts(command.model, job)
        return Prepared(command.request_id, job.longest, 0)

    def _tokenize(self, command: Tokenize) -> Report:
        # Late, because it imports mlx_lm, which the MLX thread has done by now.
        from .prompt import encode_prompt

        tokenizer = self.tokenizers.get(command.model, command.files)
        if isinstance(command.prompt, str):
            ids = tokenizer.encode(command.prompt, add_special_tokens=False)
        else:  # it is to be counted, whatever its length
            ids = encode_prompt(tokenizer, command.prompt, context_window=sys.maxsize).token_ids
        return Ended(request_id=command.request_id, value=list(ids))

    def _prepare(self, command: Prepare) -> Report:
        # Late, as in `_tokenize`.
        from .prompt import encode_prompt, fit_max_tokens
        from .text import TextPipeline

        tokenizer = self.tokenizers.get(command.model, command.files)
        _check_bias(command, len(tokenizer))
        window = command.files.context_window
        prompt = encode_prompt(tokenizer, command.prompt, context_window=window)
        max_tokens = fit_max_tokens(len(prompt), command.params.max_tokens, window)
        emitted = len(command.emitted)
        job = Job(
            request_id=command.request_id,
            prompt=[*prompt.token_ids, *command.emitted],
            params=command.params,
            seed=command.seed,
            max_tokens=max_tokens - emitted,
            emitted=emitted,
            boundaries={s.end: s.kind for s in prompt.segments if s.kind != "assistant"},
            constraint=self._grammars.constraint(command.files, tokenizer, prompt, command.params),
        )
        text = TextPipeline(tokenizer, prompt, command.params)
        for token in command.emitted:
            text.feed(token)  # what it says has been said
        self._prepared[command.request_id] = PreparedRequest(
            command.model, job, text, lambda token: str(tokenizer.convert_ids_to_tokens(token))
        )
        return Prepared(command.request_id, len(prompt), max_tokens)


def _check_bias(command: Prepare, vocabulary: int) -> None:
    size = logits_width(command.files.config) or vocabulary
    wrong = [token for token in command.params.logit_bias if token >= size]
    if wrong:
        raise InvalidRequest(
            f"logit_bias names the token {wrong[0]}; {command.model} has {size} tokens."
        )
