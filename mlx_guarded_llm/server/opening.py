"""The backend of a server: its catalog has the served models under their served names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backend import Backend
from ..errors import InvalidRequest
from ..models import LOAD_OPTIONS, Catalog
from ..models.aliases import Alias, absolute, check_options
from .settings import ModelEntry, Settings

MOST = 10_000  # model folders below a root


def open_backend(settings: Settings, **options: Any) -> Backend:
    """A backend for these settings.

    Args:
        settings: of the server.
        **options: of `Backend`, which win over the settings.
    """
    chosen = settings.guard.model_dump() | options
    # Whoever asks a server need not know what else runs on its machine.
    return Backend(**{"catalog": make_catalog(settings), "name_others": False, **chosen})


def make_catalog(settings: Settings, **options: Any) -> Catalog:
    """A catalog in which the models of the settings are aliases.

    Args:
        settings: of the server.
        **options: of `Catalog`.
    """
    known = Catalog(**options).aliases()
    entries = all_entries(settings)
    local = {name: entry for name, entry in entries.items() if not entry.url}
    aliases = {name: _alias(name, entry, known) for name, entry in local.items()}
    return Catalog(**options, aliases=aliases)


def all_entries(settings: Settings) -> Mapping[str, ModelEntry]:
    """The configured models, and those below the roots that are not."""
    found = {
        name: ModelEntry(model=str(folder))
        for root in settings.models_roots
        for name, folder in _below(absolute(root))
    }
    return {**found, **settings.models}


def _alias(name: str, entry: ModelEntry, known: Mapping[str, Alias]) -> Alias:
    model = entry.model or name
    given = {option: getattr(entry, option) for option in LOAD_OPTIONS}
    said = check_options({k: v for k, v in given.items() if v is not None}, where=name)
    # An entry may name another alias; it then takes over that alias's model and options.
    return replace(known.get(model) or Alias(model=model), **said)


def _below(root: Path) -> Iterator[tuple[str, Path]]:
    """Each model folder under a root, with its relative path. Links that lead out are skipped."""
    if not root.is_dir():
        raise InvalidRequest(f"models_roots: there is no folder {root}.")
    real = root.resolve()
    for count, config in enumerate(sorted(root.rglob("config.json"))):
        if count == MOST:
            raise InvalidRequest(f"models_roots: more than {MOST} models are below {root}.")
        folder = config.parent
        if folder != root and folder.resolve().is_relative_to(real):
            yield folder.relative_to(root).as_posix(), folder
