"""The draft of a model: whether it can be used, and loading it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import DraftMismatch
from ...models.spec import PROMPT_LOOKUP, ModelFiles, draft_name
from ..decode.drafts import Draft, DraftModel, PromptLookup
from ..decode.speculation import Speculation
from .keepable import trimmable_tokens
from .prefix import PrefixCaches


@dataclass
class Drafting:
    """What a model drafts with.

    Attributes:
        unusable: why its draft is not used; "" if it is.
        build: makes what drafts, for a fresh batch; None without one.
    """

    unusable: str = ""
    build: Callable[[], Speculation] | None = None


def drafting(
    model: Any,
    files: ModelFiles,
    name: str,
    *,
    together: bool,
    load: Callable[[ModelFiles], Any],
    prefixes: PrefixCaches,
    chunk: int,
) -> Drafting:
    """Load the draft of a model, if its answers can be drafted.

    Args:
        model: an mlx-lm model.
        files: of the model.
        name: of the model in the engine.
        together: whether its requests are decoded as one batch.
        load: loads the draft, given its files.
        prefixes: keep the draft's KV caches.
        chunk: tokens that a draft may compute before a step.

    Raises:
        GuardedLLMError: it cannot be loaded.
    """
    if files.spec.draft is None:
        return Drafting()
    if not together:
        return Drafting(unusable="the caches of this model cannot be merged")
    limit = trimmable_tokens(model)
    if not limit:
        return Drafting(unusable="the caches of this model cannot be cut back to an earlier token")
    if files.spec.draft == PROMPT_LOOKUP or files.draft is None:
        return Drafting(build=lambda: Speculation(PromptLookup(), limit=limit, chunk=chunk))
    draft = load(files.draft)
    shortest = trimmable_tokens(draft)
    if not shortest:
        return Drafting(unusable="the caches of the draft cannot be cut back to an earlier token")
    longest = min(limit, shortest, files.draft.context_window)
    sizes = files.vocabulary, files.draft.vocabulary

    def build() -> Speculation:
        prefix = prefixes.open(draft_name(name), max_tokens=shortest)
        proposes: Draft = DraftModel(draft, prefix, min(sizes))
        return Speculation(proposes, limit=longest, chunk=chunk)

    return Drafting(build=build)


def check_tokens(tokenizer: Any, drafts: Any, files: ModelFiles) -> None:
    """Check that each id means the same token to a model and to its draft.

    Raises:
        DraftMismatch: it does not.
    """
    own, other = tokenizer.get_vocab(), drafts.get_vocab()
    if own == other:
        return
    tokens = own.keys() | other.keys()
    differ = [token for token in tokens if own.get(token) != other.get(token)]
    token = min(differ)
    raise DraftMismatch(
        f"{files.spec.draft} cannot draft for {files.spec.name}: {len(differ)} of "
        f"{len(tokens)} tokens differ; {token!r} has the id {own.get(token)} "
        f"in the model and {other.get(token)} in the draft.",
        hint='Take a smaller model of the same family, or draft="prompt", which needs no model.',
    )
