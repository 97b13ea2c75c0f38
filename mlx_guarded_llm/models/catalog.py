"""Model names to model folders: resolve a name, fetch what is missing, list, remove."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import platformdirs

from ..errors import (
    InvalidRequest,
    ModelError,
    ModelInvalid,
    ModelNotFound,
    ModelUnsupported,
    PullFailed,
)
from . import embedded, hub
from .aliases import BUILT_IN, Alias, absolute, check_options, read_aliases
from .card import ModelCard, make_card
from .locks import fetch_lock
from .spec import Kind, ModelFiles, ModelSpec, OnProgress, Task
from .verify import is_embedder, not_generating, verify

APP = "mlx-guarded-llm"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_MAX_NAME = 4096  # longer is no path and no repository


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """A model that can be loaded without a network.

    Attributes:
        name: the alias it goes by.
        kind: "embedded" or "hub".
        location: embedded name or repository id.
        path: its folder.
        size_bytes: what `remove` would free at most.
    """

    name: str
    kind: Literal["hub", "embedded"]
    location: str
    path: Path
    size_bytes: int


class Catalog:
    """Knows every model by name; holds no lock and no connection between calls.

    Args:
        aliases_file: TOML file of aliases; by default the environment variable
            MLX_GUARDED_MODELS_FILE, else `models.toml` in the user's config folder.
        cache_dir: where embedded models are made; by default the environment
            variable MLX_GUARDED_CACHE_DIR, else the user's cache folder.

    Raises:
        InvalidRequest: the aliases file was named and is missing, or it is wrong.
    """

    def __init__(self, *, aliases_file: Path | None = None, cache_dir: Path | None = None) -> None:
        named = aliases_file or os.environ.get("MLX_GUARDED_MODELS_FILE")
        file = absolute(named or platformdirs.user_config_path(APP) / "models.toml")
        self._cards: dict[tuple[ModelSpec, Path, tuple[int, ...]], ModelCard] = {}
        self._aliases = {**BUILT_IN, **read_aliases(file, required=bool(named))}
        self.cache_dir = absolute(
            cache_dir
            or os.environ.get("MLX_GUARDED_CACHE_DIR")
            or platformdirs.user_cache_path(APP)
        )

    def aliases(self) -> Mapping[str, Alias]:
        """Every alias by name; entries of the user's file replace built-in ones."""
        return MappingProxyType(self._aliases)

    def resolve(self, name: str, **options: object) -> ModelSpec:
        """Says what a name means: an alias, then a folder, then a repository.

        Args:
            name: alias, folder, or "org/repo".
            **options: revision, adapter_path, kv_bits, kv_group_size, context_window
                and task, which override those of the alias. Without a task it is
                "embed" for a model on disk that can do nothing else, and otherwise
                "generate".

        Raises:
            InvalidRequest: an option is unknown, out of range or without sense for the
                task.
            ModelNotFound: the name means nothing; the hint has close matches.
            ModelUnsupported: the name is a file that must be imported first, or a
                built-in model that is not for this task.
        """
        if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > _MAX_NAME:
            raise InvalidRequest(
                f"the model name is {str(name)[:80]!r}; it must be a non-empty string.",
                hint='Give an alias, a folder or "org/repo".',
            )
        given = check_options(options, where=name)
        alias = self._aliases.get(name)
        if alias is None:
            kind, location = self._locate(name, None)
            return self._spec(name, kind, location, given)
        kind, location = self._locate(alias.model, alias.source and alias.source.parent)
        stored = {
            "revision": alias.revision,
            "adapter_path": alias.adapter_path,
            "kv_bits": alias.kv_bits,
            "kv_group_size": alias.kv_group_size,
            "context_window": alias.context_window,
            "task": alias.task,
        }
        return self._spec(name, kind, location, {**stored, **given})

    def _spec(self, name: str, kind: Kind, location: str, options: dict[str, Any]) -> ModelSpec:
        task = options.pop("task", None)
        spec = ModelSpec(name=name, kind=kind, location=location, **options)
        if task is None:
            task = self._usual_task(spec)
        _check_spec(spec, task)
        return replace(spec, task=task)

    def _usual_task(self, spec: ModelSpec) -> Task:
        """What a model is for, when nobody says."""
        if spec.kind == "embedded":
            return embedded.NAMES[spec.location].task
        folder = self._folder(spec)
        return "embed" if folder is not None and is_embedder(folder) else "generate"

    def ensure(
        self, spec: ModelSpec, *, progress: OnProgress | None = None, offline: bool = False
    ) -> ModelFiles:
        """Makes sure a model is on disk and sound, fetching it when needed.

        Concurrent calls for one model, in threads or processes, fetch it once.

        Args:
            spec: what `resolve` gave.
            progress: called in this thread with stages "download", "import" and
                "verify"; what it raises ends the call.
            offline: never use the network.

        Raises:
            ModelNotFound: no such folder or repository.
            ModelInvalid: the files are broken or half there.
            ModelUnsupported: sound files that mlx-lm cannot run.
            PullFailed: the download or import did not end.
        """
        found = self.find(spec)
        if found is not None:
            return found
        if spec.kind == "folder":
            raise ModelNotFound(
                f"there is no folder {spec.location}.", hint="Check the path of the model."
            )
        if offline:
            broken = self._folder(spec)
            if broken is not None:
                return verify(spec, broken)  # raises what is wrong with it
            raise PullFailed(
                f"{spec.name} is not on disk and offline was asked for.",
                hint="Fetch it once with a network, then use it offline.",
            )
        with fetch_lock(self.cache_dir, f"{spec.kind}:{spec.location}@{spec.revision}", spec.name):
            # Another thread or process may have fetched it while this one waited.
            found = self.find(spec)
            if found is not None:
                return found
            if spec.kind == "embedded":
                folder = embedded.make(spec.location, self.cache_dir, progress=progress)
            else:
                folder = hub.fetch(spec.location, spec.revision, progress=progress)
        return verify(spec, folder, progress=progress)

    def find(self, spec: ModelSpec) -> ModelFiles | None:
        """The model as it is on disk, or None when it must be fetched first.

        Raises:
            ModelInvalid: a folder of the user's is broken.
            ModelUnsupported: sound files that mlx-lm cannot run.
        """
        folder = self._folder(spec)
        if folder is None:
            return None
        try:
            return verify(spec, folder)
        except ModelInvalid:
            if spec.kind == "folder":
                raise
            return None  # half-fetched: fetching again completes it

    def _folder(self, spec: ModelSpec) -> Path | None:
        """Where the model lies, sound or not."""
        if spec.kind == "hub":
            return hub.cached(spec.location, spec.revision)
        if spec.kind == "embedded":
            folder = embedded.folder(spec.location, self.cache_dir)
        else:
            folder = Path(spec.location)
        return folder if folder.is_dir() else None

    def card(self, name: str, *, task: Task | None = None) -> ModelCard | None:
        """What is known of a model from its files, or None if they are not (whole) on disk.

        Neither fetches nor loads; of a model whose files did not change it reads nothing
        again.

        Args:
            name: alias, folder, or "org/repo".
            task: what it is to do; None takes what `resolve` would.

        Raises:
            InvalidRequest: the name is no string, or the task is none.
        """
        try:
            spec = self.resolve(name, task=task)
            folder = self._folder(spec)
            if folder is None:
                return None
            key = (spec, folder, _changed(folder))
            card = self._cards.get(key)
            if card is None:
                files = verify(spec, folder)
                self._cards = {k: c for k, c in self._cards.items() if k[0] != spec}
                card = self._cards[key] = make_card(files)
        except (ModelError, OSError):
            return None
        return card

    def on_disk(self) -> list[OnDisk]:
        """Embedded models and aliased repositories that are on disk, by name."""
        names: dict[tuple[str, str], str] = {}
        for name in self._aliases:
            try:
                spec = self.resolve(name)
            except (ModelNotFound, ModelUnsupported):
                continue  # an alias of a folder that is gone
            names.setdefault((spec.kind, spec.location), name)
        found = [
            OnDisk(name=name, kind="embedded", location=name, path=path, size_bytes=size)
            for name, path, size in embedded.on_disk(self.cache_dir)
        ]
        for repository, path, size in hub.on_disk():
            alias_name = names.get(("hub", repository))
            if alias_name:
                found.append(
                    OnDisk(
                        name=alias_name,
                        kind="hub",
                        location=repository,
                        path=path,
                        size_bytes=size,
                    )
                )
        return sorted(found, key=lambda model: model.name)

    def remove(self, name: str) -> int:
        """Deletes a fetched model and returns the bytes freed, 0 if it was not there.

        Raises:
            InvalidRequest: the name is a folder of the user's.
            ModelNotFound: the name means nothing.
            PullFailed: somebody is fetching it, or a file could not be deleted.
        """
        spec = self.resolve(name)
        if spec.kind == "folder":
            raise InvalidRequest(
                f"{spec.location} is your own folder and is not removed.",
                hint="Delete it yourself if you no longer need it.",
            )
        with fetch_lock(self.cache_dir, f"{spec.kind}:{spec.location}@{spec.revision}", spec.name):
            if spec.kind == "embedded":
                return embedded.remove(spec.location, self.cache_dir)
            return hub.remove(spec.location, spec.revision)

    def _locate(self, name: str, base: Path | None) -> tuple[Kind, str]:
        if name in embedded.NAMES:
            return "embedded", name
        path = absolute(name, base)
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            return "folder", str(path)
        if stat.S_ISREG(mode):
            hint = (
                "Import it once: mlx_guarded_llm.models.import_gguf(file, folder)."
                if path.suffix == ".gguf"
                else "Give the folder that holds config.json and the safetensors."
            )
            raise ModelUnsupported(f"{path} is a file, not a model folder.", hint=hint)
        if _REPOSITORY.fullmatch(name) and ".." not in name and "--" not in name:
            return "hub", name
        raise ModelNotFound(f"there is no model named {name[:200]!r}.", hint=self._suggest(name))

    def _suggest(self, name: str) -> str:
        if name.startswith(("/", "./", "../", "~")):
            return "There is no such folder; check the path."
        plain = re.sub(r"[:_ ]", "-", name.lower())
        near = difflib.get_close_matches(plain, self._aliases, n=3, cutoff=0.5)
        if near:
            return f"Did you mean {' or '.join(near)}?"
        return 'Give an alias, a folder or "org/repo"; `aliases()` lists the aliases.'


def _changed(folder: Path) -> tuple[int, ...]:
    """When the files that a card tells of were last written, as far as they are there."""
    kinds = ("", ".json", ".jinja", ".safetensors")
    files = (path for path in sorted(folder.iterdir()) if path.suffix in kinds)
    return tuple(path.stat().st_mtime_ns for path in (folder, *files))


def _mode(path: Path) -> int:
    """The file mode of a path, 0 when it is none: too long, not encodable, forbidden."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _check_spec(spec: ModelSpec, task: Task) -> None:
    """Refuse options that have no sense together."""
    if spec.revision is not None and spec.kind != "hub":
        raise InvalidRequest(
            f"{spec.name}: revision is {spec.revision!r}, but only repositories have revisions.",
            hint="Leave it out.",
        )
    if task == "embed" and (spec.kv_bits is not None or spec.adapter_path is not None):
        raise InvalidRequest(
            f"{spec.name}: kv_bits and adapter_path are for models that generate.",
            hint="Leave them out.",
        )
    if spec.kind == "embedded" and embedded.NAMES[spec.location].task != task:
        if task == "generate":
            raise not_generating(spec.name)
        raise ModelUnsupported(
            f"{spec.name} is no embedding model.", hint="Take all-minilm-l6-v2, for example."
        )
