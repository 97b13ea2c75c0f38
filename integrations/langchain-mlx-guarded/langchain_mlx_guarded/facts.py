"""What LangChain asks about a model, read from its files. Nothing is loaded."""

from __future__ import annotations

from functools import cache

from langchain_core.language_models import ModelProfile

from mlx_guarded_llm import Catalog
from mlx_guarded_llm.models import ModelCard


@cache
def catalog() -> Catalog:
    """One for all chat models without a backend, so that cards are read once."""
    return Catalog()


def profile_of(card: ModelCard | None, name: str) -> ModelProfile | None:
    """What a model can do; None while its files are not here."""
    if card is None:
        return None
    return ModelProfile(
        name=name,
        open_weights=True,
        max_input_tokens=card.context_window,
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        reasoning_output=card.thinking,
        tool_calling=card.tools,
        tool_choice=card.tools,
        tool_call_streaming=card.tools,
        structured_output=True,
        temperature=True,
    )
