"""What a caller may ask of one generation, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidRequest
from .plain import plain_mapping, plain_text

MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 4096


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and where the answer ends.

    The filters act on the model's own distribution and temperature after them, in
    mlx-lm's order (`mlx_lm.sample_utils.make_sampler`).

    Attributes:
        max_tokens: tokens to generate at most, thinking included.
        temperature: 0 takes the likeliest token; higher flattens the distribution.
        top_p: keep the smallest set of tokens whose probability reaches this.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        min_p: drop tokens below this share of the likeliest one's probability.
        seed: with the same request it gives the same tokens; None draws one, and
            the result's `guard.seed` tells which.
        stop: strings that end the answer; they are not part of it.
        repetition_penalty: divides the logits of recent tokens; None or 1 is off.
        presence_penalty: subtracted once from the logits of recent tokens.
        frequency_penalty: subtracted from recent tokens once for each occurrence.
        penalty_window: how many of the latest tokens count as recent.
        logit_bias: token id to a number added to its logit.
        logprobs: report the log probability of each token (natural logarithm).
        top_logprobs: report this many alternatives for each token as well.

        schema: JSON Schema that the answer follows; True is any JSON. See
            `mlx_guarded_llm.grammar.schema` for the supported keywords.
        regex: regular expression that the whole answer matches.
        grammar: Lark grammar, in llguidance's dialect, of the answer. At most one of
            schema, regex and grammar may be given.

    Raises:
        InvalidRequest: a value is outside its range; the message says which.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0
    schema: Mapping[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        self._normalise()
        _integer("max_tokens", self.max_tokens, 1, None)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, exclusive_low=True)
        _integer("top_k", self.top_k, 0, None)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.repetition_penalty is not None:
            _number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, exclusive_low=True)
        _number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _integer("penalty_window", self.penalty_window, 1, None)
        _integer("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        self._check_stop()
        self._check_bias()
        self._check_form()

    @property
    def has_form(self) -> bool:
        """The answer's text is held to a schema, a regular expression or a grammar."""
        return (self.schema, self.regex, self.grammar) != (None, None, None)

    def _normalise(self) -> None:
        stop: object = (self.stop,) if isinstance(self.stop, str) else self.stop
        if stop is not None and not isinstance(stop, (list, tuple)):
            raise InvalidRequest(f"stop is {stop!r}; it must be a string or a list of strings.")
        bias: object = self.logit_bias
        if bias is not None and not isinstance(bias, Mapping):
            raise InvalidRequest(f"logit_bias is {bias!r}; it must map token ids to numbers.")
        if not isinstance(self.logprobs, bool):
            raise InvalidRequest(f"logprobs is {self.logprobs!r}; it must be True or False.")
        object.__setattr__(self, "stop", tuple(stop or ()))
        object.__setattr__(self, "logit_bias", dict(bias or {}))

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(
                f"stop has {len(self.stop)} strings; at most {MAX_STOP_STRINGS} are allowed."
            )
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise InvalidRequest(f"stop holds {text!r}; each entry is a non-empty string.")
            if len(text) > MAX_STOP_LENGTH:
                raise InvalidRequest(
                    f"a stop string has {len(text)} characters; at most {MAX_STOP_LENGTH}."
                )

    def _check_form(self) -> None:
        given = [n for n in ("schema", "regex", "grammar") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InvalidRequest(f"{' and '.join(given)} are given; an answer follows one of them.")
        if self.schema is not None and not isinstance(self.schema, bool):
            object.__setattr__(self, "schema", plain_mapping(self.schema, "schema"))
        for name in ("regex", "grammar"):
            text: object = getattr(self, name)
            if text is None:
                continue
            if not isinstance(text, str) or not text:
                raise InvalidRequest(f"{name} is {text!r}; it must be a non-empty string.")
            object.__setattr__(self, name, plain_text(text, name))

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(
                f"logit_bias has {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS}."
            )
        for token, bias in self.logit_bias.items():
            _integer("a token id of logit_bias", token, 0, None)
            _number("a value of logit_bias", bias, -1e4, 1e4)


def _integer(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} is {value!r}; it must be an integer.")
    if value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidRequest(f"{name} is {value}; it must be {span}.")


def _number(
    name: str, value: object, low: float, high: float, *, exclusive_low: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidRequest(f"{name} is {value!r}; it must be a finite number.")
    if value > high or value < low or (exclusive_low and value == low):
        start = "above" if exclusive_low else "from"
        raise InvalidRequest(f"{name} is {value}; it must be {start} {low:g} up to {high:g}.")
