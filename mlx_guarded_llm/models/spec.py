"""What a model name means, and what was found on disk for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["folder", "hub", "embedded"]
Task = Literal["generate", "embed"]


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
        task: what it is to do: "generate" answers, or "embed" texts.
    """

    name: str
    kind: Kind
    location: str
    revision: str | None = None
    adapter_path: str | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    context_window: int | None = None
    task: Task = "generate"

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
        revision: commit of the repository it came from, or "".
    """

    spec: ModelSpec
    path: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]
    weight_bytes: int
    fingerprint: str
    context_window: int
    revision: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a long operation has come.

    Attributes:
        stage: "download", "import", "verify", "load", "prefill" or "embed".
        done: bytes (tokens for "prefill", texts for "embed") finished.
        total: of them in all; None when unknown.
        model: whose it is; a backend fills it in.
        request_id: whose prefill or texts they are; "" for what a model's users share.
        over: a backend's word that the stage goes no further, finished or not.
    """

    stage: str
    done: int
    total: int | None
    model: str = ""
    request_id: str = ""
    over: bool = False


OnProgress = Callable[[Progress], None]
