"""Models that are loaded at the start, because the settings say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..backend import ServableBackend
from ..errors import GuardedLLMError
from ..logs import get_logger
from .models import ServedModel, ServedModels
from .security import Client

logger = get_logger("server")


@asynccontextmanager
async def warm(models: ServedModels, backend: ServableBackend) -> AsyncIterator[None]:
    """Load them beside what is asked for meanwhile."""
    wanted = [m for m in models.visible(Client()) if m.entry.preload or m.entry.pin]
    tasks = [asyncio.create_task(_load(backend, model)) for model in wanted]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _load(backend: ServableBackend, model: ServedModel) -> None:
    try:
        await backend.aload(model.name, pin=model.entry.pin)
    except GuardedLLMError as error:
        logger.error("%s was not loaded: %s", model.name, error)
