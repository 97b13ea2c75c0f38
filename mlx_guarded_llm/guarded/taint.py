"""Which steps of a chain rest on a degraded or a fallback answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequest
from ..results import Provenance

_PLACES = ("response_metadata", "raw", "additional_kwargs")  # where adapters keep "guard"


@dataclass(frozen=True)
class Taint:
    """What is wrong with one step, true when anything is.

    Attributes:
        index: of the step.
        own: why its own answer is not the one asked for: "fallback" and the words of
            `Provenance.degraded`.
        inherited: indexes of the tainted answers that it rests on.
    """

    index: int
    own: tuple[str, ...] = ()
    inherited: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.own or self.inherited)


def taint(
    items: Sequence[Any], *, rests_on: Mapping[int, Iterable[int]] | None = None
) -> list[Taint]:
    """Tell which messages or steps rest on an answer that was not the one asked for.

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
        InvalidRequest: `rests_on` names a step that is not an earlier one.
    """
    from ..display.tables import Taints

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
    """Where an answer came from, wherever it is kept; None when nothing tells.

    Args:
        item: a `Result`, `Chunk`, error, or a message or response of a framework.
    """
    if isinstance(item, Provenance):
        return item
    guard = _get(item, "guard")
    for holder in (item, _get(item, "message")):
        for place in _PLACES:
            guard = guard or _get(_get(holder, place), "guard")
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
    call = _get(item, "tool_call_id") or _get(_get(item, "additional_kwargs"), "tool_call_id")
    if call is None:
        return []
    return [i for i in range(index) if call in _call_ids(items[i])]


def _call_ids(item: Any) -> set[Any]:
    message = _get(item, "message") or item
    calls = _get(message, "tool_calls") or _get(_get(message, "additional_kwargs"), "tool_calls")
    blocks = [*(calls or ()), *(_get(message, "blocks") or ())]
    return {_get(block, "id") or _get(block, "tool_call_id") for block in blocks} - {None}


def _role(item: Any) -> str:
    message = _get(item, "message") or item
    role = _get(message, "role") or _get(message, "type") or ""
    return str(getattr(role, "value", role))


def _get(holder: Any, name: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(name)
    return getattr(holder, name, None)
