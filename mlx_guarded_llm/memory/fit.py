"""Whether models fit into the memory of a machine together, and what would make them fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..models import ModelFiles
from .budget import PREFIX_LIMIT, PREFIX_SHARE, MemoryLimits
from .cache_plan import CACHE_STEP
from .corrections import Corrections
from .footprint import Footprint, predict
from .ledger import Ledger

_UNLIMITED = 1 << 62  # bytes


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one model takes with one request.

    Attributes:
        context: tokens of that request's prompt and answer.
        weight_bytes: all tensors.
        kv_bytes: the KV cache of the request.
        step_bytes: head room: the most that computing a part of the prompt takes besides.
    """

    context: int
    weight_bytes: int
    kv_bytes: int
    step_bytes: int

    @property
    def needed_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.kv_bytes + self.step_bytes


class Fit:
    """Models side by side, each with one request, as the ledger counts them.

    Args:
        models: their files, by name.
        limits: of the machine.
        corrections: the sizes measured here so far; None for another machine.
    """

    def __init__(
        self,
        models: Mapping[str, ModelFiles],
        limits: MemoryLimits,
        corrections: Corrections | None = None,
    ) -> None:
        self.limits = limits
        self._models = models
        self._corrections = corrections
        self._footprints = {name: self._footprint(files) for name, files in models.items()}

    @property
    def room(self) -> int:
        """The bytes of the budget that the prefix cache leaves."""
        return self.limits.budget_bytes - self.limits.prefix_cache_bytes

    def need(self, name: str, context: int) -> Need:
        """What one model takes; its context window may be less than `context` tokens."""
        footprint, tokens = self._footprints[name], self._tokens(name, context)
        kv = footprint.kv_bytes(tokens) + footprint.state_bytes
        needed = self._ledger([name], context).used_bytes
        return Need(
            context=tokens,
            weight_bytes=footprint.weight_bytes,
            kv_bytes=kv,
            step_bytes=needed - footprint.weight_bytes - kv,
        )

    def together(self, context: int) -> int:
        """The bytes that all of them take, of which only one computes at a time."""
        return self._ledger(self._models, context).used_bytes

    def budget_for(self, context: int) -> int:
        """The least budget in which all of them fit, with the prefix cache that comes with it."""
        needed = self.together(context)
        return min(int(needed / (1 - PREFIX_SHARE)) + 1, needed + PREFIX_LIMIT)

    def longest_context(self, most: int) -> int:
        """The longest context with which all of them fit, in whole steps of a KV cache.

        Args:
            most: tokens; the answer is no more than that, and 0 if not even the weights fit.
        """
        low, high = 0, max(1, -(-most // CACHE_STEP))
        while low < high:
            middle = (low + high + 1) // 2
            if self.together(middle * CACHE_STEP) <= self.room:
                low = middle
            else:
                high = middle - 1
        return min(low * CACHE_STEP, most)

    def widest_window(self) -> int:
        """The longest context that any of them takes, in tokens."""
        return max(files.context_window for files in self._models.values())

    def with_kv_bits(self, bits: int) -> Fit:
        """The same models with quantised KV caches."""
        models = {
            name: files
            if files.spec.task == "embed"
            else replace(files, spec=replace(files.spec, kv_bits=bits))
            for name, files in self._models.items()
        }
        return Fit(models, self.limits, self._corrections)

    def _tokens(self, name: str, context: int) -> int:
        return min(context, self._models[name].context_window)

    def _footprint(self, files: ModelFiles) -> Footprint:
        predicted = predict(files)
        if self._corrections is None:
            return predicted
        return self._corrections.apply(files.load_fingerprint, predicted)

    def _ledger(self, names: Iterable[str], context: int) -> Ledger:
        """One in which these models are loaded, and each runs a request."""
        ledger = Ledger(_UNLIMITED, prefill_tokens=self.limits.prefill_step_size)
        for name in names:
            ledger.know_model(name, self._footprints[name])
            ledger.know_request(name, name, self._tokens(name, context))
            ledger.reserve_load(name)
            ledger.reserve_start(name, name)
        return ledger
