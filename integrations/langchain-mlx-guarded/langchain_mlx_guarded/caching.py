"""LangChain's cache keeps only full answers of the model that was asked."""

from __future__ import annotations

from typing import Any, Self

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult, Generation

from mlx_guarded_llm.fallback import provenance_of
from mlx_guarded_llm.fallback.checks import Accept
from mlx_guarded_llm.results import Result

from .answers import result_of


class FullAnswersOnly(BaseCache):
    """Passes everything on to a cache except fallback and degraded answers.

    A cached answer is served as long as the cache lives: a fallback's would be served even
    when the model that was asked answers again. An answer that was cut off at the caller's
    own `max_tokens` is what was asked for, and is kept.

    Args:
        cache: the cache to write to and read from.
        accept: the caller's check. It sees cached answers too: one that it refuses counts
            as not there.
    """

    def __init__(self, cache: BaseCache, accept: Accept | None = None) -> None:
        self._cache = cache
        self._accept = accept

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return self._accepted(self._cache.lookup(prompt, llm_string))

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return self._accepted(await self._cache.alookup(prompt, llm_string))

    def _accepted(self, found: RETURN_VAL_TYPE | None) -> RETURN_VAL_TYPE | None:
        if found is None or self._accept is None:
            return found
        results = [_result(generation) for generation in found]
        refused = any(r is None or self._accept(r) not in (None, True, "") for r in results)
        return None if refused else found

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


def _result(generation: Generation) -> Result | None:
    """None when it is no longer an answer of a chat model of ours."""
    message = getattr(generation, "message", None)
    return result_of(message) if isinstance(message, AIMessage) else None


def _worth_keeping(generations: RETURN_VAL_TYPE) -> bool:
    guards = [provenance_of(generation) for generation in generations]
    return all(guard is not None and guard.as_asked for guard in guards)


class CachesFullAnswers(BaseChatModel):
    """A chat model whose cache, if it has one, takes no answer of another model."""

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        caching = self._caching_full_answers(kwargs.get("accept"))
        return super(CachesFullAnswers, caching)._generate_with_cache(
            messages, stop, run_manager, **kwargs
        )

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        caching = self._caching_full_answers(kwargs.get("accept"))
        return await super(CachesFullAnswers, caching)._agenerate_with_cache(
            messages, stop, run_manager, **kwargs
        )

    def _caching_full_answers(self, accept: Accept | None) -> Self:
        """This model, with a cache, if it has one, that takes no answer of another."""
        cache = self.cache if isinstance(self.cache, BaseCache) else get_llm_cache()
        if self.cache is False or cache is None:
            return self
        return self.model_copy(
            update={"cache": FullAnswersOnly(cache, accept or getattr(self, "accept", None))}
        )
