"""Decoding for models whose KV caches mlx-lm cannot merge into one batch.

Each request has its own `mlx_lm.generate.generate_step`, and they are advanced in turn.
Quantised KV caches and some architectures need it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from .arrays import lists
from .decoder import Job, Prefilled, Token, Update
from .prefix import PrefixCache
from .sampling import Picked, Row, Rows


@dataclass(eq=False)
class _Stream:
    """One request: its generator, and what was sampled and not yet handed out.

    Attributes:
        history: the prompt, and the tokens handed out.
        latest: the token sampled last.
    """

    job: Job
    rows: Rows
    cache: list[Any]
    picked: deque[Picked] = field(default_factory=deque)
    history: list[int] = field(init=False)
    steps: Iterator[tuple[Any, Any]] | None = None
    latest: mx.array | None = None

    def __post_init__(self) -> None:
        self.history = list(self.job.prompt)

    def sample(self, logprobs: mx.array) -> mx.array:
        """The sampler of `generate_step`, which runs one token ahead of its output."""
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

    def close(self) -> None:
        if isinstance(self.steps, Generator):
            self.steps.close()


class SequentialDecoder:
    """A `Decoder` that advances one request at a time, in turn.

    Args:
        model: any mlx-lm model.
        tokenizer: its tokenizer, for the tokens that end an answer.
        prefix: where KV caches are kept; not used when they are quantised.
        prefill_step_size: prompt tokens computed at once.
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
        self._prefill_step_size = prefill_step_size
        self._kv_bits = kv_bits
        self._kv_group_size = kv_group_size
        self._streams: deque[_Stream] = deque()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def begins(self) -> bool:
        """Never: with the last of the prompt comes the first token."""
        return False

    def insert(self, job: Job) -> int:
        """Let a request join. Returns its prompt tokens found in the prefix cache."""
        cache, rest = None, job.prompt
        if self._kv_bits is None:
            cache, rest = self._prefix.fetch(job.prompt)
        cache = cache if cache is not None else make_prompt_cache(self._model)
        rows = Rows([Row.of(job)])
        stream = _Stream(job, rows, cache)
        stream.steps = generate_step(
            mx.array(rest),
            self._model,
            mx.default_stream(mx.default_device()),
            max_tokens=job.max_tokens,
            sampler=stream.sample,
            prompt_cache=cache,
            prefill_step_size=self._prefill_step_size,
            kv_bits=self._kv_bits,
            kv_group_size=self._kv_group_size,
            quantized_kv_start=0,
        )
        job.cached = len(job.prompt) - len(rest)
        self._streams.append(stream)
        return job.cached

    def remove(self, request_id: str) -> None:
        """Let a request leave, finished or not. Unknown ones are ignored."""
        for stream in [s for s in self._streams if s.job.request_id == request_id]:
            self._streams.remove(stream)
            stream.close()

    def step(self, *, beside: bool = False) -> list[Update]:
        """One token of the request whose turn it is; its whole prompt, the first time."""
        stream = self._streams.popleft()
        assert stream.steps is not None
        job = stream.job
        first = len(stream.history) == len(job.prompt)
        token, _ = next(stream.steps)
        picked = stream.picked.popleft()
        logprob, top = picked.read(0, job.params.top_logprobs)
        stream.history.append(token)
        reason = None
        if token in self._ends:
            reason = "stop"
        elif len(stream.history) - len(job.prompt) >= job.max_tokens:
            reason = "length"
        if reason is None:
            self._streams.append(stream)
        else:
            stream.close()
            self._keep(stream)
        updates: list[Update] = []
        if first:
            updates.append(Prefilled(job.request_id, len(job.prompt), len(job.prompt)))
        updates.append(Token(job.request_id, token, logprob, top, reason))
        return updates

    def _keep(self, stream: _Stream) -> None:
        """Keep the cache if it is known which tokens are in it."""
        held = getattr(stream.cache[0], "offset", None)
        if self._kv_bits is None and isinstance(held, int) and held <= len(stream.history):
            self._prefix.insert(stream.history[:held], stream.cache, "assistant")
