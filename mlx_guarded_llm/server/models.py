"""The models a server serves: those configured, and those below a configured root.

No others, unless the settings say `any_model`, or the user whose shared server it is asks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from ..backend import ModelInfo, ServableBackend
from ..errors import GuardedLLMError, InvalidRequest
from ..fallback import GuardedLLM, OpenAIModel, RetryPolicy
from ..models import ModelCard
from ..models.naming import split_options
from .errors import HTTPError, refused
from .opening import all_entries
from .security import Client
from .settings import ModelEntry, Settings
from .token_ids import check_setting

SHOWN = 50  # names in an error


def check_hosts(client: Client, options: Mapping[str, object]) -> None:
    """Refuse a client that would have this server log in to other machines.

    Raises:
        HTTPError: there are hosts among the options, and the server is not the client's own.
    """
    if options.get("hosts") is not None and not client.owner:
        raise refused("hosts is what only the server's settings may give.")


@dataclass(frozen=True)
class ServedModel:
    """A model under the name that clients use.

    Attributes:
        elsewhere: the models that other servers run, by their names here.
    """

    name: str
    entry: ModelEntry
    backend: ServableBackend
    elsewhere: Mapping[str, OpenAIModel] = field(default_factory=dict)

    @property
    def remote(self) -> OpenAIModel | None:
        """What asks the server that runs it; None for a model of this machine."""
        return self.elsewhere.get(self.name)

    @cached_property
    def llm(self) -> GuardedLLM:
        """Asks the model, and its fallbacks if it fails."""
        entry = self.entry
        said = "max_tokens" in entry.model_fields_set  # other servers have limits of their own
        return GuardedLLM(
            self.backend,
            self.remote or self.name,
            fallbacks=[self.elsewhere.get(name, name) for name in entry.fallbacks],
            retry=RetryPolicy(**entry.retry.model_dump()),
            on_fallback=entry.on_fallback,
            on_degraded=entry.on_degraded,
            max_tokens=entry.max_tokens if self.remote is None or said else None,
        )

    def state(self, info: ModelInfo | None, card: ModelCard | None) -> str:
        """Where it is, in a word.

        Args:
            info: what the backend knows of it.
            card: of `card`.
        """
        if self.remote is not None:
            return "remote"
        return info.state if info else "unloaded" if card else "not fetched"

    def check_local(self, what: str) -> None:
        """Refuse what only a model of this machine can do.

        Args:
            what: cannot be done with it.

        Raises:
            HTTPError: another server runs it.
        """
        if self.remote is not None:
            raise refused(
                f"{self.name} is run by another server, so it cannot be {what} here.",
                hint="Ask that server, or name a model of this one.",
                param="model",
                code="model_unsupported",
            )

    async def card(self) -> ModelCard | None:
        """What its files say; None while they are not on disk, or another server's."""
        if self.remote is not None:
            return None
        return await asyncio.to_thread(self.backend.card, self.name)


class ServedModels:
    """All served models.

    Attributes:
        any_model: every other name that the backend knows is served as well.

    Args:
        backend: runs them; its catalog has these names, see `opening.open_backend`.
        settings: of the server.

    Raises:
        InvalidRequest: there are none, a name is used twice, a fallback is not served,
            `token_ids` names no tokenizer, or the `url` or key of a model is wrong.
    """

    def __init__(self, backend: ServableBackend, settings: Settings) -> None:
        self._backend = backend
        self.any_model = settings.any_model
        entries = all_entries(settings)
        self._elsewhere = {n: _elsewhere(n, entry) for n, entry in entries.items() if entry.url}
        self._models = {name: self._served(name, entry) for name, entry in entries.items()}
        self._aliases: dict[str, str] = {}
        self._patterns: list[tuple[str, str]] = []
        for name, model in self._models.items():
            check_setting(name, model.entry.token_ids)
            for fallback in model.entry.fallbacks:
                if fallback not in self._models:
                    raise InvalidRequest(
                        f"models.{name}: its fallback {fallback!r} is no model of this server.",
                        hint=f"There are: {', '.join(sorted(self._models))}.",
                    )
            for alias in model.entry.aliases:
                if alias in self._models or alias in self._aliases:
                    raise InvalidRequest(f"models.{name}: {alias!r} is another model's name.")
                if "*" in alias or "?" in alias:
                    self._patterns.append((alias, name))
                else:
                    self._aliases[alias] = name
        if not (self._models or self.any_model or settings.share):
            raise InvalidRequest(
                "there is no model to serve.",
                hint="Name one: mlx-guarded serve --model smollm2-135m",
            )

    def find(self, name: str, client: Client) -> ServedModel:
        """The model with this name or alias.

        Raises:
            HTTPError: 404 that lists the models this client may use, or 400 for hosts that it
                may not give.
        """
        meant = self._models.get(self._meant(name))
        if meant is None and (self.any_model or client.owner):
            check_hosts(client, (split_options(name) or ("", {}))[1])
            meant = self._served(name, ModelEntry())
        if meant is None or not client.may_use(meant.name):
            names = [model.name for model in self.visible(client)]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise HTTPError(
                404,
                "model_not_found",
                f"there is no model {name[:200]!r} here.",
                hint=f"There are: {', '.join(names[:SHOWN])}{more}." if names else "There is none.",
                param="model",
            )
        return meant

    def is_named(self, name: str) -> bool:
        """Whether the settings have a model or an alias of this name."""
        return self._meant(name) in self._models

    def visible(self, client: Client) -> Sequence[ServedModel]:
        """The models a client may use, sorted by name."""
        models = (self._models[name] for name in sorted(self._models))
        return [model for model in models if client.may_use(model.name)]

    async def states(self) -> Mapping[str, ModelInfo]:
        """What the backend knows of resident and wanted models.

        They are by name, and by each name that is served: two names of one model share its state.
        """
        return await asyncio.to_thread(self._states)

    def _states(self) -> Mapping[str, ModelInfo]:
        found = {info.name: info for info in self._backend.models()}
        alike = {info.identity: info for info in found.values()}
        for name in self._models if alike else ():
            if name not in found and name not in self._elsewhere:
                with suppress(GuardedLLMError):  # it has no files any more
                    info = alike.get(self._backend.identity(name))
                    if info is not None:
                        found[name] = info
        return found

    def _served(self, name: str, entry: ModelEntry) -> ServedModel:
        return ServedModel(name, entry, self._backend, self._elsewhere)

    def _meant(self, name: str) -> str:
        if name in self._models:
            return name
        exact = self._aliases.get(name)
        if exact is not None:
            return exact
        return next((to for pattern, to in self._patterns if fnmatchcase(name, pattern)), name)


def _elsewhere(name: str, entry: ModelEntry) -> OpenAIModel:
    """What asks the server that runs a model."""
    key = os.environ.get(entry.key_env) if entry.key_env else None
    if entry.key_env and not key:
        raise InvalidRequest(
            f"models.{name}: there is no variable {entry.key_env} with a key.",
            hint="`key_env` names a variable of the environment that the server is started in.",
        )
    try:
        return OpenAIModel(
            url=entry.url,
            model=entry.model or name,
            key=key,
            name=name,
            connect_timeout=entry.connect_timeout,
            read_timeout=entry.read_timeout,
        )
    except InvalidRequest as error:
        raise InvalidRequest(f"models.{name}: {error.message}", hint=error.hint) from None
