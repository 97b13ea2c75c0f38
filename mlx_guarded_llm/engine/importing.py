"""Importing mlx_lm without its side effects on the process, and despite what may break it."""

from __future__ import annotations

import importlib
import importlib.util
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from ..logs import get_logger
from .import_structure import import_structure_kept
from .lazy_import import OPTIONAL, lazily_imported

logger = get_logger("engine")

_NEEDED = ("mlx", "mlx_lm", "transformers", "tokenizers", "huggingface_hub", "numpy", "jinja2")


def import_residents() -> ModuleType:
    """Import the module that imports mlx and mlx_lm, even if an installed torch is broken.

    An optional package of transformers that cannot be imported is hidden from transformers.
    Everybody else can still import it, and sees what is wrong with it.

    Raises:
        BaseException: whatever the import raised.
    """
    hidden: set[str] = set()
    while True:
        before = set(sys.modules)
        try:
            with limits_kept(), _hide(hidden), lazily_imported(), import_structure_kept():
                module = importlib.import_module(".residency.residents", __package__)
        except BaseException as error:
            broken = _broken_in(error) - hidden
            if not broken:
                raise
            logger.warning("done without %s: %s", ", ".join(sorted(broken)), error)
            hidden |= broken
            for name in set(sys.modules) - before:
                if name.partition(".")[0] in {"mlx_lm", "transformers", *broken}:
                    del sys.modules[name]
        else:
            _tell_transformers(hidden)
            return module


def shadows() -> list[str]:
    """Files that shadow a package which the engine needs."""
    found: list[str] = []
    for name in _NEEDED:
        specs = [PathFinder.find_spec(name, [entry]) for entry in dict.fromkeys(sys.path)]
        # The last one is the installed package: entries that a program adds come first.
        found += [spec.origin for spec in [s for s in specs if s][:-1] if spec.origin]
    return found


def working_folder_gone() -> bool:
    """Whether the working folder was removed; transformers cannot be imported from there."""
    try:
        Path.cwd()
    except OSError:
        return True
    return False


def _broken_in(error: BaseException | None) -> set[str]:
    """The optional packages in which an import failed, by their top-level names."""
    names = set()
    while error is not None:
        names.add(getattr(error, "name", None) or "")
        trace = error.__traceback__
        while trace is not None:
            names.add(trace.tb_frame.f_globals.get("__name__", ""))
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return {str(name).partition(".")[0] for name in names} & OPTIONAL


class _Hiding:
    """Finds modules as the given finders do, but hides some of them from one thread."""

    def __init__(self, finders: Sequence[Any], names: set[str]) -> None:
        self._finders = finders
        self._names = names
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in self._names and threading.get_ident() == self._thread:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self._finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *context: Any) -> Iterator[Any]:
        """For `importlib.metadata`, which asks every finder."""
        finds = (getattr(finder, "find_distributions", None) for finder in self._finders)
        return chain.from_iterable(find(*context) for find in finds if find is not None)


@contextmanager
def _hide(names: set[str]) -> Iterator[None]:
    if not names:
        yield
        return
    finders = list(sys.meta_path)
    sys.meta_path[:] = [_Hiding(finders, names)]
    try:
        yield
    finally:
        sys.meta_path[:] = finders


def _tell_transformers(hidden: set[str]) -> None:
    """Transformers looks for some packages later, when it first reads a kind of tokenizer."""
    utils = sys.modules.get("transformers.utils.import_utils")
    real = getattr(utils, "_is_package_available", None)
    if not hidden or real is None:
        return

    def available(name: str, *arguments: Any, **options: Any) -> Any:
        return (False, "N/A") if name in hidden else real(name, *arguments, **options)

    utils._is_package_available = available  # type: ignore[union-attr]


@contextmanager
def limits_kept() -> Iterator[None]:
    """Keep imports from changing the limits of the process.

    mlx_lm sets the limit of open files when it is imported, to 2048 (soft) and 4096 (hard). That
    fails where 4096 is not allowed, and lowers a higher limit for good.
    """
    here, real = threading.get_ident(), resource.setrlimit

    def setrlimit(*arguments: Any) -> None:
        if threading.get_ident() != here:
            real(*arguments)

    resource.setrlimit = setrlimit
    try:
        yield
    finally:
        resource.setrlimit = real
