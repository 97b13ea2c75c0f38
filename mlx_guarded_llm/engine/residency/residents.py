"""Models in memory. The first import of this module imports mlx and mlx_lm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ...errors import BackendClosed, GuardedLLMError
from ...logs import get_logger
from ...memory.budget import limits
from ...models.hosts import Hosts
from ...models.spec import ModelFiles, draft_name
from ..decode.batch import ContinuousBatch
from ..decode.batchable import batchable
from ..decode.decoder import Decoder, Update
from ..decode.encoder import Embedded, Encoder, EncoderBatch
from ..decode.sequential import SequentialDecoder
from ..protocol import EngineOptions
from ..ranks.group import Group
from ..ranks.leader import Leader
from ..ranks.ranks import Ranks, no_ranks
from . import loading
from .device import leave_out_cudnn, on_cuda
from .device_memory import release, wire_memory
from .drafting import check_tokens, drafting
from .keepable import keepable_tokens, trimmable_tokens
from .prefix import UNBOUNDED, PrefixCaches

logger = get_logger("engine")


@dataclass
class Resident:
    """A model in memory and its batch.

    Attributes:
        nbytes: what loading it took, as MLX counts it.
        peak_bytes: the most that one step took in addition to what was in memory before it.
        reported_bytes: the `peak_bytes` that were reported to the backend last.
        build: makes a fresh decoder for it.
        prefix_tokens: length of the longest prompt whose KV cache is kept; None for any.
        undrafted: why its draft is not used; "" if it is, or there is none.
        counted: how many processes take of this machine's, or GPU's, memory for it.
        split: other ranks have a part of it.
    """

    name: str
    nbytes: int
    build: Callable[[], Decoder | EncoderBatch]
    decoder: Decoder | EncoderBatch
    prefix_tokens: int | None = None
    undrafted: str = ""
    counted: int = 1
    split: bool = False
    peak_bytes: int = 0
    reported_bytes: int = 0

    def step(self, *, beside: bool) -> Sequence[Update | Embedded]:
        """Advance its requests, and measure the memory that takes.

        Args:
            beside: see `Decoder.step`.
        """
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        updates: Sequence[Update | Embedded] = self.decoder.step(beside=beside)
        self.peak_bytes = max(self.peak_bytes, self.counted * (mx.get_peak_memory() - before))
        return updates

    def rebuild(self) -> None:
        """Discard the batch and its caches, and begin a new one."""
        self.decoder = self.build()

    def clear(self) -> None:
        """Drop everything that holds an array."""
        del self.build, self.decoder


class Residency:
    """Loads and releases models, and owns what they share.

    Args:
        options: of the engine.
        device: what `device()` returned.
        ranks: the processes with which it may share models, as rank 0; None if it has none.

    Attributes:
        wired_bytes: see `wire_memory`.

    Raises:
        InvalidRequest: an option does not suit the device.
    """

    condemns_process = staticmethod(loading.condemns_process)
    out_of_memory = staticmethod(loading.out_of_memory)

    def __init__(
        self, options: EngineOptions, device: Mapping[str, Any], ranks: Ranks | None = None
    ) -> None:
        self._options = options
        if on_cuda():
            leave_out_cudnn()
        self.wired_bytes = wire_memory(options.wired_memory, device)
        self.limits = limits(
            device,
            budget_bytes=options.memory_budget,
            prefix_cache_bytes=options.prefix_cache_bytes,
            prefill_step_size=options.prefill_step_size,
        )
        self.prefixes = PrefixCaches(self.limits.prefix_cache_bytes)
        self._leader = Leader(ranks, options, self.limits) if ranks is not None else None

    def synchronize(self) -> None:
        """Wait until nothing is in flight."""
        mx.synchronize()

    def load(
        self,
        name: str,
        files: ModelFiles,
        *,
        tokenizer: Callable[[str, ModelFiles], Any],
        progress: Callable[[int, int], None],
        stop: Callable[[], bool],
    ) -> tuple[Resident | None, GuardedLLMError | None]:
        """Load a model. Returns it, or the error; nothing is raised.

        Args:
            tokenizer: returns the tokenizer of a model, which may be the draft; it waits for it if
                another thread is reading it.
        """
        before = mx.get_active_memory()
        done = 0

        def load(part: ModelFiles, split: Callable[[Any], None] | None = None) -> Any:
            nonlocal done
            base = done
            done += part.weight_bytes
            return loading.load(
                part,
                slice_bytes=self._options.load_slice_bytes,
                progress=lambda n, _: progress(base + n, files.load_bytes),
                stop=stop,
                split=split,
            )

        try:
            own = tokenizer(name, files)
            if files.draft is not None:
                check_tokens(own, tokenizer(draft_name(name), files.draft), files)
            if files.hosts is None:
                model, group, others = load(files), None, 0
            else:
                leader, ends = self._led(files.hosts), frozenset(own.eos_token_ids)
                model = load(files, lambda whole: leader.split(name, files, ends, whole))
                others, group = leader.read(name), leader.group
            resident = self.adopt(name, model, own, files, load=load, group=group)
            resident.nbytes = mx.get_active_memory() - before + others
        except loading.GivenUp:
            error: GuardedLLMError = BackendClosed(f"the load of {name} was given up at exit.")
        except GuardedLLMError as known:
            error = known.with_traceback(None)
        except Exception as unknown:
            error = loading.load_error(unknown, files)
        else:
            if resident.undrafted:
                logger.warning("%s is loaded without its draft: %s", name, resident.undrafted)
            return resident, None
        model = resident = None  # type: ignore[assignment]  # these are the last references
        if self._leader is not None:
            self._leader.drop(name)
        release()
        self._forget(name)
        return None, error

    def adopt(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        files: ModelFiles,
        *,
        load: Callable[[ModelFiles], Any],
        group: Group | None,
    ) -> Resident:
        """A model that is in memory, with its first batch.

        Args:
            tokenizer: of the model, or what has its `eos_token_ids`.
            load: loads its draft.
            group: the ranks of which each has a part of the model; None for the whole model.

        Raises:
            GuardedLLMError: it cannot be used as it was asked for.
        """
        build, undrafted = self._builder(model, tokenizer, name, files, load, group)
        decoder = build()
        return Resident(
            name,
            0,
            build,
            decoder,
            prefix_tokens=self.prefixes.max_tokens(name),
            undrafted=undrafted,
            counted=files.hosts.counted if files.hosts is not None else 1,
            split=group is not None,
        )

    def _led(self, hosts: Hosts) -> Leader:
        if self._leader is None:
            no_ranks(hosts)
        assert self._leader is not None
        return self._leader

    def release(self, resident: Resident) -> int:
        """Drop a model and free its memory. Returns the bytes freed."""
        before = mx.get_active_memory()
        resident.clear()
        if self._leader is not None:
            self._leader.drop(resident.name)
        self._forget(resident.name)
        release()
        freed = int(before - mx.get_active_memory())
        if freed <= 0:
            logger.warning(
                "unloading %s gave no memory back; something still holds it", resident.name
            )
        return freed

    def _forget(self, name: str) -> None:
        self.prefixes.drop(name)
        self.prefixes.drop(draft_name(name))

    def _builder(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        files: ModelFiles,
        load: Callable[[ModelFiles], Any],
        group: Group | None,
    ) -> tuple[Callable[[], Decoder | EncoderBatch], str]:
        """What makes its decoders, and why its draft is not used."""
        spec = files.spec
        if isinstance(model, Encoder):
            padding = tokenizer.pad_token_id or 0
            if 0 < files.vocabulary <= padding:  # it has no embedding; the mask hides any other
                padding = 0
            most = self.limits.embed_step_size
            return lambda: EncoderBatch(model, padding=padding, max_tokens=most), ""
        loading.check_kv_bits(model, spec)
        whole = spec.kv_bits is None  # quantised caches can be neither merged nor kept
        together = whole and batchable(model)
        kept = keepable_tokens(model) if whole and self.prefixes.max_bytes else 0
        if group is not None:
            group.check_alike(files, together, trimmable_tokens(model) == UNBOUNDED)
            kept = kept if group.agree(min(kept, 2**30)) else 0
        drafts = drafting(
            model,
            files,
            name,
            together=together,
            load=load,
            prefixes=self.prefixes,
            chunk=self.limits.prefill_step_size,
        )

        def decoder() -> Decoder:
            agree = None if group is None else group.agree
            prefix = self.prefixes.open(name, max_tokens=kept, agree=agree)
            if together:
                return ContinuousBatch(
                    model,
                    tokenizer,
                    prefix,
                    max_active=self._options.max_active,
                    prefill_step_size=self.limits.prefill_step_size,
                    speculation=drafts.build() if drafts.build else None,
                )
            return SequentialDecoder(
                model,
                tokenizer,
                prefix,
                prefill_step_size=self.limits.prefill_step_size,
                kv_bits=spec.kv_bits,
                kv_group_size=spec.kv_group_size,
            )

        leader = self._leader
        if group is None or leader is None:
            return decoder, drafts.unusable
        return lambda: leader.decoder(name, decoder()), drafts.unusable


def device() -> dict[str, Any]:
    """What MLX computes on: `mx.device_info()` and "device": "cpu" or "gpu".

    Of several NVIDIA GPUs each has another "uuid".
    """
    kind = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    return {**mx.device_info(), "device": kind}
