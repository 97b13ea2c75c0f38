"""What transformers learns from its own source files, kept from one process to the next.

At each import transformers reads more than 3,000 of its files, to know which of them defines
which name and what that needs. That is half of what the engine imports, and always gives the
same for the same installation.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ..jsonfile import read_json, write_json
from ..logs import get_logger
from ..models.catalog import cache_folder

logger = get_logger("engine")

_UTILS = "transformers.utils.import_utils"
_READ = "create_import_structure_from_path"

# As transformers has it: names by module, by the packages that they need; and folders by name.
Structure = dict[Any, Any]


@contextlib.contextmanager
def import_structure_kept() -> Iterator[None]:
    """Have an import of transformers within the block use what an earlier process learned."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds the one module that reads the files, and gives it a reader that remembers."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _UTILS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            read = getattr(module, _READ, None)
            if read is not None:  # else it is another version, which may do without
                setattr(module, _READ, _remembering(read))

        with contextlib.suppress(AttributeError):  # a loader that takes no attributes
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _remembering(read: Callable[[Any], Structure]) -> Callable[[Any], Structure]:
    """The reader of a folder's structure, but for the folder of all models it asks the disk."""

    def remembered(path: Any) -> Structure:
        folder = Path(path).parent if Path(path).is_file() else Path(path)
        if (folder.parent.name, folder.name) != ("transformers", "models"):
            return read(path)
        try:
            return _kept(folder, lambda: read(path))
        except OSError as error:
            logger.debug("transformers reads its files: %s", error)
            return read(path)

    return remembered


def _kept(folder: Path, read: Callable[[], Structure]) -> Structure:
    state = _state(folder)
    # Each environment has a transformers of its own.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    file = cache_folder() / f"transformers-{digest}.json"
    kept = read_json(file)
    if isinstance(kept, dict) and kept.get("state") == state:
        try:
            return _decoded(kept["structure"])
        except (KeyError, TypeError, ValueError, AttributeError):
            logger.debug("%s is broken, and made anew", file)
    structure = read()
    write_json(file, {"state": state, "structure": _encoded(structure)})
    return structure


def _state(folder: Path) -> list[Any]:
    """Something that changes when the package does, or one of its folders."""
    with os.scandir(folder) as entries:
        times = sorted(
            [entry.name, entry.stat().st_mtime_ns]
            for entry in entries
            if entry.is_dir() and entry.name != "__pycache__"
        )
    own = Path(folder.parent, "__init__.py").stat()
    return [str(folder), own.st_mtime_ns, own.st_size, times]


def _encoded(structure: Structure) -> dict[str, Any]:
    files, folders = [], {}
    for key, value in structure.items():
        if isinstance(key, frozenset):
            names = {module: sorted(found) for module, found in value.items()}
            files.append([sorted(key), names])
        else:
            folders[key] = _encoded(value)
    return {"files": files, "folders": folders}


def _decoded(stored: dict[str, Any]) -> Structure:
    files = {
        frozenset(needs): {module: set(found) for module, found in names.items()}
        for needs, names in stored["files"]
    }
    return files | {name: _decoded(inner) for name, inner in stored["folders"].items()}
