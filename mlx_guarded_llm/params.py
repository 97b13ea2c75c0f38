"""What a caller may ask of one generation, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidRequest
from .json_values import (
    MAX_TOKEN_ID,
    json_object,
    plain_list,
    plain_number,
    plain_scalar,
    readable,
    shown,
)

MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 4096
MAX_TOKENS = 2**63 - 1  # sys.maxsize, which is often written for "as many as there are"

# The options for which a model may have its own defaults, and what is used otherwise: greedy.
NEUTRAL: Mapping[str, float] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and where the answer ends.

    The filters act on the model's own distribution and temperature after them, in
    mlx-lm's order (`mlx_lm.sample_utils.make_sampler`).

    Attributes:
        max_tokens: tokens to generate at most, thinking included.
        temperature: 0 takes the likeliest token; higher flattens the distribution. None,
            here and in the next three and `repetition_penalty`, is what the model's own
            files say, or else 0, 1, 0, 0 and 1; `guard.sampling` has what was used.
        top_p: keep the smallest set of tokens whose probability reaches this.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        min_p: drop tokens below this share of the likeliest one's probability.
        seed: the same request with the same seed gives the same tokens; None draws one,
            which the result's `guard.seed` has.
        stop: strings that end the answer; they are not part of it.
        repetition_penalty: divides the logits of recent tokens; 0.01 to 100, 1 is off.
        presence_penalty: subtracted once from the logits of recent tokens.
        frequency_penalty: subtracted from recent tokens once for each occurrence.
        penalty_window: how many of the latest tokens count as recent.
        logit_bias: token id to a number added to its logit.
        logprobs: report the log probability of each token (natural logarithm).
        top_logprobs: report this many alternatives for each token as well.
        thinking_budget: tokens of thinking at most; then the marker that ends the thinking is
            the only token that may come, and the answer follows. Its markers are not counted.
            No effect on a model that does not think, or whose thinking does not end with a
            token of its own, as that of gpt-oss.

        schema: JSON Schema that the answer follows; True is any JSON. A call takes a
            pydantic class as well. See
            `mlx_guarded_llm.grammar.schema` for the supported keywords.
        regex: regular expression that the whole answer matches.
        grammar: Lark grammar, in llguidance's dialect, of the answer. At most one of
            schema, regex and grammar may be given.

    Raises:
        InvalidRequest: a value is outside its range; the message says which.
    """

    max_tokens: int = 1024
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0
    thinking_budget: int | None = None
    schema: Mapping[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, getattr(SamplingParams, name))
            elif not (type(value) in (int, kind) and low <= value <= high):
                object.__setattr__(self, name, _in_range(name, plain_scalar(value, name)))
        if not isinstance(self.logprobs, bool):
            object.__setattr__(self, "logprobs", _switch("logprobs", self.logprobs))
        if type(self.stop) is not tuple or self.stop:
            object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        if self.has_form:
            self._check_form()

    @property
    def has_form(self) -> bool:
        """The answer's text is held to a schema, a regular expression or a grammar."""
        return not (self.schema is None and self.regex is None and self.grammar is None)

    @property
    def sampling(self) -> dict[str, float | None]:
        """The options for which a model may have values of its own."""
        return {name: getattr(self, name) for name in NEUTRAL}

    def with_defaults(self, own: Mapping[str, float]) -> SamplingParams:
        """A copy that has a value for each option of `sampling`.

        Args:
            own: the model's defaults, used where the caller gave no value.
        """
        missing = {
            name: own.get(name, neutral)
            for name, neutral in NEUTRAL.items()
            if getattr(self, name) is None
        }
        if not missing:
            return self
        filled = copy(self)  # both sides are checked already
        vars(filled).update(missing)
        return filled

    def _check_form(self) -> None:
        given = [n for n in ("schema", "regex", "grammar") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InvalidRequest(f"{' and '.join(given)} are given; an answer follows one of them.")
        value = getattr(self, given[0])
        if not isinstance(value, CheckedSchema):
            form = checked_schema(value) if given == ["schema"] else _expression(given[0], value)
            object.__setattr__(self, given[0], form)


class CheckedSchema(dict[str, Any]):
    """A copy of a caller's JSON Schema that is plain all through: it is not copied again."""


def checked_schema(schema: object) -> CheckedSchema | bool:
    """A JSON Schema of a caller's, copied once.

    Raises:
        InvalidRequest: it is neither a mapping of JSON values nor True or False.
    """
    schema = plain_scalar(schema, "schema")
    if isinstance(schema, (CheckedSchema, bool)):
        return schema
    return CheckedSchema(json_object(schema, "schema"))


# The numbers, from the least to the greatest.
_ABOVE_ZERO = math.ulp(0.0)
_RANGES: Mapping[str, tuple[type[int] | type[float], float, float]] = {
    "max_tokens": (int, 1, MAX_TOKENS),
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, _ABOVE_ZERO, 1.0),
    "top_k": (int, 0, MAX_TOKEN_ID),
    "min_p": (float, 0.0, 1.0),
    "seed": (int, 0, 2**64 - 1),
    "repetition_penalty": (float, 0.01, 100.0),  # less makes logits infinite
    "presence_penalty": (float, -100.0, 100.0),
    "frequency_penalty": (float, -100.0, 100.0),
    "penalty_window": (int, 1, MAX_TOKEN_ID),
    "top_logprobs": (int, 0, MAX_TOP_LOGPROBS),
    "thinking_budget": (int, 0, MAX_TOKENS),
}


def _in_range(name: str, value: object) -> float:
    kind, low, high = _RANGES[name]
    return (_integer if kind is int else _number)(name, value, low, high)


def _switch(name: str, value: object) -> bool:
    plain = False if value is None else plain_number(value)
    if not isinstance(plain, bool):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be True or False.")
    return plain


def _expression(name: str, value: object) -> str:
    text = plain_scalar(value, name)
    if not (isinstance(text, str) and text):
        raise InvalidRequest(f"{name} is {shown(text)}; it must be a non-empty string.")
    return text


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    given = (stop,) if isinstance(stop, str) else stop
    texts = [plain_scalar(text, "stop") for text in plain_list(given, "stop", "strings")]
    if len(texts) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop has {len(texts)} strings; at most {MAX_STOP_STRINGS} are allowed."
        )
    for text in texts:
        if not isinstance(text, str) or not text:
            raise InvalidRequest(f"stop holds {shown(text)}; each entry is a non-empty string.")
        if len(text) > MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"a stop string has {len(text)} characters; at most {MAX_STOP_LENGTH}."
            )
    return tuple(texts)


def _bias(bias: object) -> dict[int, float]:
    if bias is None or (type(bias) is dict and not bias):
        return {}
    if not isinstance(bias, Mapping):
        raise InvalidRequest(f"logit_bias is {shown(bias)}; it must map token ids to numbers.")
    plain: dict[int, float] = {}
    with readable("logit_bias"):
        for token, value in bias.items():
            if len(plain) == MAX_LOGIT_BIAS:
                raise InvalidRequest(f"logit_bias has more than {MAX_LOGIT_BIAS} entries.")
            id_ = _integer("a token id of logit_bias", plain_number(token), 0, MAX_TOKEN_ID)
            plain[id_] = _number("a value of logit_bias", plain_number(value), -1e4, 1e4)
    return plain


def _integer(name: str, value: object, low: float, high: float) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be an integer.")
    number = int(plain_number(value))
    if not low <= number <= high:
        raise InvalidRequest(f"{name} is {shown(number)}; it must be from {low} to {high}.")
    return number


def _number(name: str, value: object, low: float, high: float) -> float:
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = plain_number(value)
    if number != number or number in (math.inf, -math.inf):
        raise InvalidRequest(f"{name} is {shown(value)}; it must be a finite number.")
    if not low <= number <= high:
        start = "above 0" if low == _ABOVE_ZERO else f"from {low:g}"
        raise InvalidRequest(f"{name} is {shown(number)}; it must be {start} up to {high:g}.")
    return number
