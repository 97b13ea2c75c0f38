"""Large packages that transformers imports, imported when they are first used.

Where torch is installed, transformers imports it, for models that the engine does not run. That
takes longer than everything else at the start of an engine. Making torch look absent would be of
no help: transformers remembers that, and users' functions would see it as well. So transformers
gets a module that imports torch when something of it is used, which the engine never does.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

# Packages that transformers and what uses it import if they are installed.
OPTIONAL = frozenset(
    {"PIL", "accelerate", "cv2", "detectron2", "flax", "jax", "keras", "librosa", "pandas"}
    | {"scipy", "sklearn", "soundfile", "tensorflow", "tf_keras", "torch", "torchao"}
    | {"torchaudio", "torchvision"}
)

_used: set[str] = set()  # packages of which something was used; they are imported as ever


@contextmanager
def lazily_imported() -> Iterator[None]:
    """Have this thread's imports of `OPTIONAL` packages done when the packages are used.

    Afterwards nothing is left in `sys.modules` of those that were not used. So whoever imports one
    then gets the package itself, or sees what is wrong with it.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.meta_path.remove(finder)
        for package in finder.made:
            package._leave()


class _Finder(Loader):
    """Finds lazy packages, for the thread that made it."""

    def __init__(self) -> None:
        self.made: list[_LazyPackage] = []
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in OPTIONAL or name in _used or threading.get_ident() != self._thread:
            return None
        others = (finder for finder in tuple(sys.meta_path) if finder is not self)
        found = (other.find_spec(name, path, target) for other in others)
        spec = next((spec for spec in found if spec is not None), None)
        # Without the search path: whoever asks for it wants a part of the package.
        return spec and ModuleSpec(name, self, origin=spec.origin)

    def create_module(self, spec: ModuleSpec) -> None:
        """Any module will do at first: the import itself asks it for what it lacks."""

    def exec_module(self, module: ModuleType) -> None:
        """Leave the package for later."""
        spec = module.__spec__
        assert spec is not None
        module.__file__ = spec.origin  # `inspect` asks every module for it
        module.__class__ = _LazyPackage
        self.made.append(cast(_LazyPackage, module))


class _LazyPackage(ModuleType):
    """Imports the package of its name when it is asked for something."""

    def __getattr__(self, name: str) -> Any:
        _used.add(self.__name__)
        self._leave()
        return getattr(importlib.import_module(self.__name__), name)

    def _leave(self) -> None:
        """Make way for the package itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
