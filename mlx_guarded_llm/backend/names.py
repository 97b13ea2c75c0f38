"""What the names of models mean to one backend, and what its models are called.

In the engine, the guard and the record a model has one name for as long as the backend lives:
its key, which is its full name (`phi3-mini[kv_bits=8]`). A load with options defines what the
bare name means from then on. `models()` shows each model under a name that means it: the bare
name for the model that a bare call would get.
"""

from __future__ import annotations

import threading
from pathlib import Path

from ..json_values import plain_text
from ..models import Catalog, ModelSpec
from ..models.catalog import is_folder
from ..models.naming import model_name
from ..models.spec import Task


class Names:
    """From any thread.

    Args:
        catalog: says what a name means by itself.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._keys: dict[str, str] = {}  # by identity
        self._identities: dict[str, str] = {}  # by key
        self._numbered: dict[str, ModelSpec] = {}  # keys that the catalog would not find
        self._declared: dict[str, ModelSpec] = {}  # by bare name

    def resolve(
        self, model: str | Path, *, task: Task | None = None, **options: object
    ) -> ModelSpec:
        """The model that a call means by a name.

        Args:
            model: alias, folder or repository, perhaps with options in brackets, or a
                name that `models()` shows.
            task: what it is asked to do; None leaves it to the model.
            **options: some of `LOAD_OPTIONS`; None counts as not given.

        Raises:
            GuardedLLMError: as `Catalog.resolve`.
        """
        model = plain_text(model_name(model), "model")
        numbered = self._numbered.get(model)
        if numbered is not None and task in (None, numbered.task):
            return numbered
        spec = self._catalog.resolve(model, task=task, **options)
        if spec.given is None:
            declared = self._declared.get(spec.name, spec)
            if task in (None, declared.task):
                return declared
        return spec

    def declare(self, spec: ModelSpec) -> None:
        """From now on the bare name means this too."""
        with self._lock:
            self._declared[spec.name] = spec

    def retract(self, spec: ModelSpec) -> None:
        """If its bare name was declared to mean this, it no longer does."""
        with self._lock:
            if self._declared.get(spec.name) == spec:
                del self._declared[spec.name]

    def key(self, spec: ModelSpec) -> str:
        """The one key of this model, whatever it is called."""
        with self._lock:
            key = self._keys.get(spec.identity)
            if key is None:
                key, n = spec.full_name, 1
                # For another task, or a folder seen from elsewhere; or there is a folder
                # which is called what this one is called with its options.
                while key in self._identities or (n == 1 and spec.given and is_folder(key)):
                    n += 1
                    key = f"{spec.full_name}#{n}"
                if n > 1:
                    self._numbered[key] = spec
                self._keys[spec.identity] = key
                self._identities[key] = spec.identity
        return key

    def key_of(self, identity: str) -> str | None:
        """The key of the model with this identity; None if nobody has asked for it yet."""
        return self._keys.get(identity)

    def identity(self, key: str) -> str:
        """Of the model with this key, see `ModelSpec.identity`; "" if there is none."""
        return self._identities.get(key, "")

    def shown(self, key: str) -> str:
        """The name that callers see: one that means this model to `resolve`."""
        if not self._declared:
            return key
        with self._lock:
            for name, spec in self._declared.items():
                if self._keys.get(spec.identity) == key:
                    return name
            return f"{key}[]" if key in self._declared else key
