"""What LangChain's cache may keep: answers of the model that was asked."""

from __future__ import annotations

from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache

from mlx_guarded_llm.guarded import provenance_of


class FullAnswersOnly(BaseCache):
    """Passes everything on to a cache but fallback and degraded answers.

    A cached answer is served as long as the cache lives. That of a fallback would be so
    after the model that was asked is back. One that was cut off at `max_tokens` is kept:
    it would be cut there again.

    Args:
        cache: the cache to write to and read from.
    """

    def __init__(self, cache: BaseCache) -> None:
        self._cache = cache

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return self._cache.lookup(prompt, llm_string)

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return await self._cache.alookup(prompt, llm_string)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if _worth_keeping(return_val):
            self._cache.update(prompt, llm_string, return_val)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if _worth_keeping(return_val):
            await self._cache.aupdate(prompt, llm_string, return_val)

    def clear(self, **kwargs: Any) -> None:
        self._cache.clear(**kwargs)

    async def aclear(self, **kwargs: Any) -> None:
        await self._cache.aclear(**kwargs)


def _worth_keeping(generations: RETURN_VAL_TYPE) -> bool:
    guards = [provenance_of(generation) for generation in generations]
    return all(
        guard is not None and not guard.fallback and set(guard.degraded) <= {"length"}
        for guard in guards
    )
