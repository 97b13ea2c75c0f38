"""What a model name means, and what was found on disk for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as it was asked for, with the options it is loaded with.

    Attributes:
        name: the name the caller used; results and events carry it.
        kind: where it comes from: a local folder, a Hugging Face repository, or
            one of the models this library can make by itself ("embedded").
        location: absolute folder, repository id, or embedded name.
        revision: branch, tag or commit of a repository.
        adapter_path: folder of LoRA adapters applied after the weights.
        kv_bits: quantise the KV cache to this many bits; None keeps it whole.
        kv_group_size: elements that share a scale in a quantised KV cache.
        context_window: overrides what the config says.
    """

    name: str
    kind: Literal["folder", "hub", "embedded"]
    location: str
    revision: str | None = None
    adapter_path: str | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    context_window: int | None = None

    def unnamed(self) -> ModelSpec:
        """What two names have in common when they mean one model."""
        return replace(self, name="")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A verified model folder; making one reads headers and JSON, never weights.

    Attributes:
        spec: what was asked for.
        path: the folder.
        config: its config.json.
        weight_files: its safetensors files, in name order.
        weight_bytes: bytes of all tensors, adapters included.
        fingerprint: changes whenever the weights, config or adapters change.
        context_window: tokens the model can attend to.
    """

    spec: ModelSpec
    path: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]
    weight_bytes: int
    fingerprint: str
    context_window: int


@dataclass(frozen=True)
class Progress:
    """How far a long operation has come.

    Attributes:
        stage: "download", "import", "verify", "load" or "prefill".
        done: bytes (tokens for "prefill") finished.
        total: bytes or tokens in all; None when unknown.
    """

    stage: str
    done: int
    total: int | None


OnProgress = Callable[[Progress], None]
