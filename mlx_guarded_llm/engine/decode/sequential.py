"""Decoding for models whose KV caches mlx-lm cannot merge into one batch.

Each request has its own `mlx_lm.generate.generate_step`, and they advance in turn. Quantised KV
caches and some architectures need this.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, maybe_quantize_kv_cache
from mlx_lm.models.cache import make_prompt_cache

from ..residency.device_memory import clear_cache
from ..residency.keepable import kept_kinds
from ..residency.prefix import PrefixCache
from .conversion import lists
from .decoder import BESIDE, Prefilled, Token, TokenSequence, Update
from .sampling import Picked, Row, Rows


@dataclass(eq=False)
class _Stream:
    """One request: its generator, and the tokens that were sampled but not handed out.

    Attributes:
        left: what is not computed yet of the prompt.
        steps: its generator, once only the last token of the prompt is left.
        history: the prompt and the tokens handed out.
        latest: the token that was sampled last.
    """

    sequence: TokenSequence
    rows: Rows
    cache: list[Any]
    left: list[int]
    picked: deque[Picked] = field(default_factory=deque)
    history: list[int] = field(init=False)
    steps: Iterator[tuple[Any, Any]] | None = None
    latest: mx.array | None = None

    def __post_init__(self) -> None:
        self.history = list(self.sequence.prompt)

    def sample(self, logprobs: mx.array) -> mx.array:
        """The sampler of `generate_step`, which is one token ahead of its output."""
        history = self.history
        if self.latest is None:
            history, latest = history[:-1], history[-1:]
            self.latest = mx.array(latest)
        logprobs = self.rows.penalise(logprobs, [history], self.latest)
        if self.rows.constrained:
            mx.async_eval(logprobs)  # type: ignore[no-untyped-call]
            logprobs = self.rows.constrain(logprobs, lists(self.latest))
        picked = self.rows.pick(logprobs)
        self.latest = picked.tokens
        self.picked.append(picked)
        return picked.tokens

    @property
    def held(self) -> int:
        """How many tokens its cache holds. `generate_step` feeds a token before it returns it."""
        return len(self.history) - (len(self.left) if self.steps is None else 0)

    def close(self) -> None:
        if isinstance(self.steps, Generator):
            self.steps.close()


class SequentialDecoder:
    """A `Decoder` that advances one request at a time, in turn.

    Args:
        model: any mlx-lm model.
        tokenizer: of the model, for the tokens that end an answer.
        prefix: keeps KV caches.
        prefill_step_size: prompt tokens computed at once; a part of it while others wait.
        kv_bits: bits of a quantised KV cache, or None.
        kv_group_size: its group size.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prefix: PrefixCache,
        *,
        prefill_step_size: int,
        kv_bits: int | None,
        kv_group_size: int,
    ) -> None:
        self._model = model
        self._ends = set(tokenizer.eos_token_ids)
        self._prefix = prefix
        self._kept_kinds = kept_kinds(model) if prefix.keeps else frozenset()
        self._prefill_step_size = prefill_step_size
        self._kv_bits = kv_bits
        self._kv_group_size = kv_group_size
        self._streams: deque[_Stream] = deque()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def begins(self) -> bool:
        """Never: the step that computes the prompt's last token returns the first of the answer."""
        return False

    def insert(self, sequence: TokenSequence) -> int:
        """See `Decoder.insert`."""
        cache, rest = self._prefix.fetch(sequence.prompt)
        cache = cache if cache is not None else make_prompt_cache(self._model)
        rows = Rows([Row.of(sequence)])
        sequence.cached = len(sequence.prompt) - len(rest)
        self._streams.append(_Stream(sequence, rows, cache, list(rest)))
        return sequence.cached

    def remove(self, request_id: str) -> None:
        """See `Decoder.remove`."""
        for stream in [s for s in self._streams if s.sequence.request_id == request_id]:
            self._streams.remove(stream)
            stream.close()
            self._keep(stream)

    def step(self, *, beside: bool = False) -> list[Update]:
        """Compute a chunk of the next request's prompt, or its next token."""
        stream = self._streams.popleft()
        sequence = stream.sequence
        if len(stream.left) > 1:
            size = self._prefill_step_size
            self._read(stream, max(size // BESIDE, 1) if beside or self._streams else size)
            self._streams.append(stream)
            total = len(sequence.prompt)
            return [Prefilled(sequence.request_id, total - len(stream.left), total)]
        if stream.steps is None:
            stream.steps = self._steps(stream)
        first = len(stream.history) == len(sequence.prompt)
        token, _ = next(stream.steps)
        picked = stream.picked.popleft()
        logprob, top = picked.read(0, sequence.params.top_logprobs)
        stream.history.append(token)
        reason = None
        if token in self._ends:
            reason = "stop"
        elif len(stream.history) - len(sequence.prompt) >= sequence.max_tokens:
            reason = "length"
        if reason is None:
            self._streams.append(stream)
        else:
            stream.close()
            self._keep(stream)
        updates: list[Update] = []
        if first:
            updates.append(
                Prefilled(sequence.request_id, len(sequence.prompt), len(sequence.prompt))
            )
        updates.append(Token(sequence.request_id, token, logprob, top, reason))
        return updates

    def _read(self, stream: _Stream, size: int) -> None:
        """Compute the next tokens of the prompt, of which `generate_step` needs the last.

        That is what it does itself, but for the whole prompt at once.
        """
        boundaries = stream.sequence.boundaries
        done = stream.held
        most = min(size, len(stream.left) - 1)
        end = min((at for at in boundaries if at > done), default=done + most)
        chunk = stream.left[: min(most, end - done)]
        self._model(mx.array(chunk)[None], cache=stream.cache)
        maybe_quantize_kv_cache(stream.cache, 0, self._kv_group_size, self._kv_bits)
        mx.eval([cache.state for cache in stream.cache])
        clear_cache()
        del stream.left[: len(chunk)]
        kind = boundaries.get(stream.held)
        if kind in self._kept_kinds:
            prompt = stream.sequence.prompt
            self._prefix.insert(prompt[: stream.held], copy.deepcopy(stream.cache), kind)

    def _steps(self, stream: _Stream) -> Iterator[tuple[Any, Any]]:
        return generate_step(
            mx.array(stream.left),
            self._model,
            mx.default_stream(mx.default_device()),
            max_tokens=stream.sequence.max_tokens,
            sampler=stream.sample,
            prompt_cache=stream.cache,
            kv_bits=self._kv_bits,
            kv_group_size=self._kv_group_size,
            quantized_kv_start=0,
        )

    def _keep(self, stream: _Stream) -> None:
        """Keep the cache, if it has new tokens."""
        if stream.sequence.cached < stream.held:
            self._prefix.insert(stream.history[: stream.held], stream.cache, "assistant")
