"""Which steps of a chain rest on a degraded or a fallback answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..display.tables import Listing
from ..errors import InvalidRequest
from ..json_values import shown
from ..record import phrases
from ..results import Provenance
from .reading import member

_PLACES = ("response_metadata", "raw", "additional_kwargs")  # where adapters keep "guard"


@dataclass(frozen=True)
class Taint:
    """What is wrong with one step, true when anything is.

    Attributes:
        index: of the step.
        own: why its own answer is not the one asked for: "fallback" and the reasons in
            `Provenance.degraded`.
        inherited: indexes of the tainted answers that it rests on.
    """

    index: int
    own: tuple[str, ...] = ()
    inherited: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.own or self.inherited)


class Taints(Listing[Taint]):
    """The steps of a chain, and what is wrong with them."""

    head = ("step", "verdict", "own reasons", "rests on")
    numbers = (0,)
    nothing = "There are no steps."

    def cells(self, item: Taint) -> Sequence[str]:
        """See `Listing.cells`."""
        rests = phrases.listing(f"step {index}" for index in item.inherited)
        verdict = "tainted" if item else "clean"
        return (str(item.index), verdict, ", ".join(item.own), rests)


def taint(
    items: Sequence[Any], *, rests_on: Mapping[int, Iterable[int]] | None = None
) -> list[Taint]:
    """Find the messages or steps that rest on an answer that was not the one asked for.

        from mlx_guarded_llm import Backend, GuardedLLM, taint

        with Backend() as backend:
            llm = GuardedLLM(backend, "no-such-model", fallbacks=["smollm2-135m"],
                             on_fallback="mark")
            steps = [llm.generate("A city?", max_tokens=8)]
            steps.append(llm.generate(f"Its country? {steps[0].text}", max_tokens=8))
        for step in taint(steps):
            print(step.index, step.own, step.inherited)

    Args:
        items: results, errors that carry an answer, or messages of OpenAI's form, of
            LangChain or of LlamaIndex, oldest first.
        rests_on: for a step, the indexes of the earlier ones it was made from. Without
            it an answer rests on all that came before, a tool's result on the answer
            that called the tool, and what people wrote on nothing.

    Returns:
        One `Taint` for each item, in their order. The list shows itself as a table.

    Raises:
        InvalidRequest: `items` is no list, or `rests_on` names a step that is not an earlier one.
    """
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise InvalidRequest(
            f"items is {shown(items)}; it must be a list of results or messages.",
            hint="Put a single one into a list.",
        )
    found = Taints()
    for index, item in enumerate(items):
        guard = provenance_of(item)
        if rests_on is not None and index in rests_on:
            sources = sorted(set(rests_on[index]))
            if sources and not 0 <= sources[0] <= sources[-1] < index:
                raise InvalidRequest(f"rests_on[{index}] is {sources}; it must be earlier steps.")
        elif guard is not None or _role(item) in ("assistant", "ai"):
            sources = list(range(index))
        else:
            sources = _callers(items, index)
        origins = {o for s in sources for o in (s, *found[s].inherited) if found[o].own}
        found.append(Taint(index, _reasons(guard), tuple(sorted(origins))))
    return found


def provenance_of(item: Any) -> Provenance | None:
    """The provenance of an answer, wherever it is kept; None when there is none.

    Args:
        item: a `Result`, `Chunk`, error, or a message or response of a framework.
    """
    if isinstance(item, Provenance):
        return item
    guard = member(item, "guard")
    for holder in (item, member(item, "message")):
        for place in _PLACES:
            guard = guard or member(member(holder, place), "guard")
    if isinstance(guard, Mapping):
        return Provenance.from_dict(guard)
    return guard if isinstance(guard, Provenance) else None


def _reasons(guard: Provenance | None) -> tuple[str, ...]:
    if guard is None:
        return ()
    return (*(("fallback",) if guard.fallback else ()), *guard.degraded)


def _callers(items: Sequence[Any], index: int) -> list[int]:
    """The answers that called the tool whose result this is."""
    item = items[index]
    call = member(item, "tool_call_id") or member(member(item, "additional_kwargs"), "tool_call_id")
    if call is None:
        return []
    return [i for i in range(index) if call in _call_ids(items[i])]


def _call_ids(item: Any) -> set[Any]:
    message = member(item, "message") or item
    calls = member(message, "tool_calls") or member(
        member(message, "additional_kwargs"), "tool_calls"
    )
    blocks = [*(calls or ()), *(member(message, "blocks") or ())]
    return {member(block, "id") or member(block, "tool_call_id") for block in blocks} - {None}


def _role(item: Any) -> str:
    message = member(item, "message") or item
    role = member(message, "role") or member(message, "type") or ""
    return str(getattr(role, "value", role))
