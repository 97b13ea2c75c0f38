"""What names mean to a cluster: what they would mean to one backend.

Replicas get models by their full names, so none of them needs to know what a load with options has
said of a bare one. This process knows it, as a backend does. Two names of one model are one to it
and to the router, since they compare `ModelSpec.identity`. What replicas say of models is told
under the names that mean them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_guarded_llm.backend import ModelInfo
from mlx_guarded_llm.backend.names import Names
from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.models import LOAD_OPTIONS, Catalog, ModelSpec, Progress
from mlx_guarded_llm.models.spec import Task
from mlx_guarded_llm.results import Provenance

TASKS: Mapping[str, Task] = {"generate": "generate", "embed": "embed"}  # by call


@dataclass(frozen=True, kw_only=True)
class Meant:
    """The model that a call means.

    Attributes:
        requested: the name that the caller used, with all options in one bracket.
        options: what the call gives beside those of a load.
        declares: the bare name means it from its load on.
    """

    spec: ModelSpec
    requested: str
    options: Mapping[str, Any]
    declares: bool

    @property
    def fields(self) -> dict[str, Any]:
        """What replicas get in place of the name and the options that the caller gave."""
        return {"model": self.spec.full_name, "options": dict(self.options)}


class ClusterNames:
    """From any thread.

    Args:
        catalog: finds models by name; that of each replica finds the same.

    Attributes:
        catalog: that one.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._names = Names(catalog)

    def identity(self, model: str | Path, **options: Any) -> str:
        """Which model a call with this name gets; see `ServableBackend.identity`."""
        return self._names.resolve(model, **options).identity

    def meant(self, call: str, body: Mapping[str, Any]) -> Meant | None:
        """The model that a call means; None if it names none, or one that is not known here."""
        if not body.get("model"):
            return None
        given = {name: body["options"].get(name) for name in LOAD_OPTIONS}
        options = {name: value for name, value in given.items() if value is not None}
        try:
            spec = self._names.resolve(body["model"], task=TASKS.get(call), **options)
            return Meant(
                spec=spec,
                requested=self.catalog.full_name(body["model"], **options),
                options={k: v for k, v in body["options"].items() if k not in LOAD_OPTIONS},
                declares=call == "load" and bool(options),
            )
        except GuardedLLMError:  # a replica says what is wrong with it
            return None

    def loaded(self, meant: Meant) -> None:
        """A load has ended well: a bare name may mean something else from now on."""
        if meant.declares:
            self._names.declare(meant.spec)

    def unloads(self, meant: Meant) -> None:
        """A model is to be unloaded: its bare name means what the catalog says again."""
        self._names.retract(meant.spec)

    def shown(self, spec: ModelSpec) -> str:
        """The name of a model that means it in every call."""
        return self._names.shown(self._names.key(spec))

    def guard(self, guard: Provenance, meant: Meant) -> Provenance:
        """The provenance of an answer as the caller is told of it."""
        return replace(guard, requested_model=meant.requested, served_model=self.shown(meant.spec))

    def info(self, info: ModelInfo) -> ModelInfo:
        """A model of a replica, and what single replicas say of it, under its name here."""
        key = self._names.key_of(info.identity)
        if key is None:
            spec = self._spec(info.name)
            if spec is None or spec.identity != info.identity:
                return info
            key = self._names.key(spec)
        name = self._names.shown(key)
        replicas = {where: replace(one, name=name) for where, one in info.replicas.items()}
        return replace(info, name=name, replicas=replicas)

    def progress(self, progress: Progress) -> tuple[Progress, str]:
        """The progress of a replica's model under its key here, and the model's identity."""
        spec = self._spec(progress.model)
        if spec is None:
            return progress, ""
        return replace(progress, model=self._names.key(spec)), spec.identity

    def _spec(self, full_name: str) -> ModelSpec | None:
        """What the name that a replica has for a model means."""
        try:
            return self.catalog.resolve(full_name)
        except GuardedLLMError:
            return None
