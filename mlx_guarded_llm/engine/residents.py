"""Models in memory. The first import of this module imports mlx and mlx_lm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import BackendClosed, GuardedLLMError
from ..memory.budget import limits
from ..models.spec import ModelFiles
from . import loading
from .batch import ContinuousBatch
from .batchable import batchable
from .decoder import Decoder, Update
from .encoder import Embedded, Encoder, EncoderBatch
from .prefix import PrefixCaches
from .protocol import EngineOptions
from .sequential import SequentialDecoder

logger = logging.getLogger("mlx_guarded_llm.engine")


@dataclass
class Resident:
    """A model in memory and its batch.

    Attributes:
        nbytes: what loading it took, as MLX counts it.
        peak_bytes: the most that one step took beyond what was in memory before it.
        told_bytes: of that, what the backend knows.
        build: makes a fresh decoder for it.
    """

    name: str
    nbytes: int
    build: Callable[[], Decoder | EncoderBatch]
    decoder: Decoder | EncoderBatch
    peak_bytes: int = 0
    told_bytes: int = 0

    def step(self, *, beside: bool) -> Sequence[Update | Embedded]:
        """Advance its requests, and measure what that takes.

        Args:
            beside: see `Decoder.step`.
        """
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        updates: Sequence[Update | Embedded] = self.decoder.step(beside=beside)
        self.peak_bytes = max(self.peak_bytes, mx.get_peak_memory() - before)
        return updates

    def rebuild(self) -> None:
        """Throw the batch away, caches included, and begin a new one."""
        self.decoder = self.build()

    def clear(self) -> None:
        """Let go of everything that holds an array."""
        del self.build, self.decoder


class Residency:
    """Loads and releases models, and owns what they share.

    Args:
        options: of the engine.
        device: what `device()` returned.
    """

    condemns_process = staticmethod(loading.condemns_process)
    out_of_memory = staticmethod(loading.out_of_memory)

    def __init__(self, options: EngineOptions, device: Mapping[str, Any]) -> None:
        self._options = options
        self.limits = limits(
            device,
            budget_bytes=options.memory_budget,
            prefix_cache_bytes=options.prefix_cache_bytes,
            prefill_step_size=options.prefill_step_size,
        )
        self.prefixes = PrefixCaches(self.limits.prefix_cache_bytes)

    def synchronize(self) -> None:
        """Wait until nothing is in flight."""
        mx.synchronize()

    def load(
        self,
        name: str,
        files: ModelFiles,
        *,
        tokenizer: Callable[[], Any],
        progress: Callable[[int, int], None],
        stop: Callable[[], bool],
    ) -> tuple[Resident | None, GuardedLLMError | None]:
        """Load a model. Returns it, or why it cannot be loaded; nothing is raised.

        Args:
            tokenizer: waits for its tokenizer, which may be read meanwhile.
        """
        before = mx.get_active_memory()
        try:
            model = loading.load(
                files,
                slice_bytes=self._options.load_slice_bytes,
                progress=progress,
                stop=stop,
            )
            build = self._builder(model, tokenizer(), name, files)
            resident = Resident(name, mx.get_active_memory() - before, build, build())
        except loading.GivenUp:
            error: GuardedLLMError = BackendClosed(f"the load of {name} was given up at exit.")
        except GuardedLLMError as known:
            error = known.with_traceback(None)
        except Exception as unknown:
            error = loading.load_error(unknown, files)
        else:
            return resident, None
        model = build = None  # type: ignore[assignment]  # the last references
        loading.release()
        self.prefixes.drop(name)
        return None, error

    def release(self, resident: Resident) -> int:
        """Drop a model and free its memory. Returns the bytes that came back."""
        before = mx.get_active_memory()
        resident.clear()
        self.prefixes.drop(resident.name)
        loading.release()
        freed = int(before - mx.get_active_memory())
        if freed <= 0:
            logger.warning(
                "unloading %s gave no memory back; something still holds it", resident.name
            )
        return freed

    def _builder(
        self, model: Any, tokenizer: Any, name: str, files: ModelFiles
    ) -> Callable[[], Decoder | EncoderBatch]:
        spec = files.spec
        if isinstance(model, Encoder):
            padding = tokenizer.pad_token_id or 0
            most = self.limits.embed_step_size
            return lambda: EncoderBatch(model, padding=padding, max_tokens=most)
        loading.check_kv_bits(model, spec)
        together = spec.kv_bits is None and batchable(model)

        def build() -> Decoder:
            prefix = self.prefixes.open(name)
            if together:
                return ContinuousBatch(
                    model,
                    tokenizer,
                    prefix,
                    max_active=self._options.max_active,
                    prefill_step_size=self.limits.prefill_step_size,
                )
            return SequentialDecoder(
                model,
                tokenizer,
                prefix,
                prefill_step_size=self.limits.prefill_step_size,
                kv_bits=spec.kv_bits,
                kv_group_size=spec.kv_group_size,
            )

        return build


def device() -> dict[str, Any]:
    """What MLX computes on: `mx.device_info()` and "device": "cpu" or "gpu"."""
    kind = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    return {**mx.device_info(), "device": kind}
