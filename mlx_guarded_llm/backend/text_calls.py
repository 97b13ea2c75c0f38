"""The part of a backend that reads texts instead of answering them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidRequest
from ..models import ModelCard, OnProgress
from ..plain import plain_text
from ..request import PromptRequest
from ..results import Embeddings
from ..texts import TextsRequest
from .asking import Asking
from .calls import Put, Whole
from .options import sort_options
from .requests import Request, TokensRequest, VectorsRequest
from .waiting import await_, wait


class TextCalls(Asking):
    """What `Backend` offers for texts: vectors, token ids, and what a model can do."""

    def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Embeddings:
        """Make a vector of each text.

        The model is resident like any other: it waits its turn to be loaded, shares the
        memory budget and stands still while another model loads.

        Args:
            model: an embedding model: alias, folder or Hugging Face repository.
            texts: a list of strings, at most 10,000.
            truncate: cut texts that are longer than the model's window; otherwise they
                are an error.
            timeout: seconds for everything, waiting and loading included.
            request_id: a name of your own for the record.
            on_progress: told of this request's download, load and texts.

        Returns:
            The vectors, in the order of the texts and each of length 1.

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        answer: Whole[Embeddings] = Whole()
        request = self._embed(answer.put, model, texts, truncate, timeout, request_id, on_progress)
        return wait(answer.future, lambda: self.cancel(request.id))

    async def aembed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Embeddings:
        """As `embed`, without blocking the event loop. Cancelling the task cancels it."""
        answer: Whole[Embeddings] = Whole()
        request = self._embed(answer.put, model, texts, truncate, timeout, request_id, on_progress)
        return await await_(answer.future, lambda: self.cancel(request.id))

    def tokens(
        self,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        special_tokens: bool = True,
        timeout: float | None = None,
        **prompting: Any,
    ) -> list[int]:
        """The token ids of a prompt as the model would get it; no weights are loaded.

        Args:
            model: alias, folder or Hugging Face repository; fetched when needed.
            prompt: as for `generate`; it may be longer than the context window.
            special_tokens: with `raw=True`, include the tokens that the model's tokenizer
                puts around a text. False gives the ids of the text alone; it may be empty.
            timeout: seconds for everything, a download included.
            **prompting: fields of `PromptRequest` (raw, tools, thinking and so on).

        Raises:
            GuardedLLMError: see `mlx_guarded_llm.errors` for the kinds.
        """
        answer: Whole[list[int]] = Whole()
        request = self._tokens(answer.put, model, prompt, special_tokens, timeout, prompting)
        return wait(answer.future, lambda: self.cancel(request.id))

    async def atokens(
        self,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        special_tokens: bool = True,
        timeout: float | None = None,
        **prompting: Any,
    ) -> list[int]:
        """As `tokens`, without blocking the event loop."""
        answer: Whole[list[int]] = Whole()
        request = self._tokens(answer.put, model, prompt, special_tokens, timeout, prompting)
        return await await_(answer.future, lambda: self.cancel(request.id))

    def card(self, model: str) -> ModelCard | None:
        """What is known of a model from its files on disk, or None if they are not there.

        Never uses the network, never loads the model, and is cheap to call again.
        """
        return self._catalog.card(model)

    def _embed(
        self,
        put: Put,
        model: str,
        texts: Sequence[str],
        truncate: bool,
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
    ) -> Request:
        common = self._common(put, model, timeout, request_id, on_progress, task="embed")
        checked = TextsRequest(texts=texts, truncate=truncate)
        request = VectorsRequest(**common, texts=checked)
        self._post(request)
        return request

    def _tokens(
        self,
        put: Put,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        special_tokens: bool,
        timeout: float | None,
        options: dict[str, Any],
    ) -> Request:
        common = self._common(put, model, timeout)
        sampling, prompting = sort_options(options)
        if sampling:
            raise InvalidRequest(f"{min(sampling)} has nothing to do with the tokens of a prompt.")
        checked: PromptRequest | str
        if special_tokens:
            checked = PromptRequest(prompt, **prompting)
        elif prompting == {"raw": True} and isinstance(prompt, str):
            checked = plain_text(prompt, "prompt")
        else:
            raise InvalidRequest(
                "special_tokens=False is for plain text.", hint="Pass a string and raw=True."
            )
        request = TokensRequest(**common, prompt=checked)
        self._post(request)
        return request
