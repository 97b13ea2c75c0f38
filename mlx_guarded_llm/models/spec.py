"""What a model name means, and the files that were found for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from .chat import Chat
from .files import Stamp
from .hosts import Hosts

Kind = Literal["folder", "hub", "builtin"]
Task = Literal["generate", "embed"]

# Fields of `ModelSpec` that every call accepts that names a model.
LOAD_OPTIONS = (
    "revision",
    "adapter_path",
    "kv_bits",
    "kv_group_size",
    "context_window",
    "draft",
    "hosts",
)
MOST_DRAFTED = 16  # tokens that a draft proposes at once
PROMPT_LOOKUP = "prompt"  # the draft that looks up what the prompt and the answer repeat


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as it was requested, with the options for loading it.

    Attributes:
        name: as the catalog spells it, without options.
        kind: where it comes from: a local folder, a Hugging Face repository, or one of the models
            that this library makes itself ("builtin").
        location: absolute folder, repository id, or built-in name.
        revision: branch, tag or commit of a repository.
        adapter_path: folder of LoRA adapters applied after the weights.
        kv_bits: quantise the KV cache to this many bits; None for no quantisation.
        kv_group_size: how many elements share a scale in a quantised KV cache.
        context_window: overrides that of the config.
        draft: the model that drafts its answers, by name, or `PROMPT_LOOKUP`.
        hosts: the machines over which it is spread, as `hosts` has them; None for this process.
        task: "generate" answers, or "embed" texts.
        given: the options that were given with the name or in its brackets, except those that the
            catalog has for it anyway; None if only the name was given.
    """

    name: str
    kind: Kind
    location: str
    revision: str | None = None
    adapter_path: str | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    context_window: int | None = None
    draft: str | None = None
    hosts: str | None = None
    task: Task = "generate"
    given: tuple[tuple[str, object], ...] | None = field(default=None, compare=False)

    @property
    def full_name(self) -> str:
        """The name with its options, by which the catalog finds the model again."""
        from .naming import with_options

        return with_options(self.name, dict(self.given or ()))

    @cached_property
    def identity(self) -> str:
        """Equal for two names of one model: the same files, loaded with the same options.

        It is the same in every process, and tells nobody where the files are.
        """
        unnamed = replace(self, name="", given=None)
        return blake2b(repr(unnamed).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A verified model folder. Making one reads headers and JSON, but no weights.

    Attributes:
        spec: what was requested.
        path: the folder.
        config: its config.json, in the spelling that its architecture reads.
        generation: its generation_config.json; empty if there is none.
        chat: its chat template and end tokens.
        vocabulary: how many tokens have an embedding; 0 if unknown.
        activation_bytes: the size of one activation.
        weight_files: its safetensors files, in name order.
        stamps: show whether these and its adapter have changed since.
        weight_bytes: bytes of all tensors, including adapters.
        fingerprint: changes whenever the weights, config or adapters change.
        context_window: tokens the model can attend to.
        revision: commit of the repository it came from, or "".
        draft: of the model that drafts its answers; None without one.
        hosts: over which it is spread; None for this process alone.
    """

    spec: ModelSpec
    path: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]
    weight_bytes: int
    fingerprint: str
    context_window: int
    revision: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 0
    activation_bytes: int = 4
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    chat: Chat = field(default_factory=Chat)
    draft: ModelFiles | None = None
    hosts: Hosts | None = None

    @property
    def load_bytes(self) -> int:
        """The weights that a load reads: its own, and those of its draft."""
        return self.weight_bytes + (self.draft.weight_bytes if self.draft else 0)

    @property
    def load_fingerprint(self) -> str:
        """Changes whenever anything changes that a load reads."""
        if self.hosts is not None:
            split = self.hosts.sharding or "any"
            return f"{self.fingerprint}/{len(self.hosts)}-{self.hosts.counted}-{split}"
        return f"{self.fingerprint}+{self.draft.fingerprint}" if self.draft else self.fingerprint

    @cached_property
    def sampling(self) -> Mapping[str, float]:
        """The sampling defaults of the model; see `own_sampling`."""
        from .generation import own_sampling

        return own_sampling(self.generation, self.spec.name)


def draft_name(model: str) -> str:
    """What the draft of a model is called where models have names."""
    return f"{model} (draft)"


@dataclass(frozen=True)
class Progress:
    """The progress of a long operation.

    Attributes:
        stage: "download", "import", "verify", "load", "prefill" or "embed".
        done: bytes (tokens for "prefill", texts for "embed") finished.
        total: the number that `done` approaches; None if unknown.
        model: which model it is about; a backend fills it in.
        request_id: which request a prefill or texts belong to; "" for stages that all requests of a
            model share.
        over: set by a backend if the stage has ended, finished or not.
    """

    stage: str
    done: int
    total: int | None
    model: str = ""
    request_id: str = ""
    over: bool = False


OnProgress = Callable[[Progress], None]
