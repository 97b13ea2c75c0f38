"""Models of other libraries: what the adapters' candidates have in common.

A request is translated in one place: tools, form, stop strings, and the settings that the
model has. So is an answer: its finish reason in one vocabulary, and its text cut at the stop
strings. Whether the answer is degraded is judged later, as for a local model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, TypeGuard, cast

from ..errors import ModelUnsupported
from ..request import are_token_ids
from ..results import FinishReason, InvalidToolCall, Provenance, Result, ToolCall, Usage
from .candidate import Call, Candidate
from .checks import written_call
from .finish_reasons import finish_reason

_TRANSLATED = frozenset(
    {"raw", "tools", "tool_choice", "parallel_tool_calls", "schema", "regex", "grammar", "stop"}
)
# The names that other libraries' models have for a setting. Settings that are not here
# differ too much in their meaning, or are refused by some services.
_SETTINGS = {
    "max_tokens": (
        "max_tokens",
        "max_output_tokens",
        "max_completion_tokens",
        "max_new_tokens",
        "num_predict",
    ),
    "temperature": ("temperature",),
    "seed": ("seed", "random_seed"),
}
_NAME_LENGTH = 64  # characters; all services take names of this length, and of the letters below
_ODD = re.compile(r"[^a-zA-Z0-9_-]")
_PASSING = (408, 409, 425, 429)  # statuses below 500 after which a retry may succeed
_SEEDS = 2**31  # providers differ in how many they know
CUT_OFF = ("length", "other")
_WISH = "Answer with JSON that matches this JSON Schema, and with nothing else:\n"
_WISH_BESIDE_TOOLS = "When you call no tool, answer with JSON that matches this JSON Schema, " + (
    "and with nothing else:\n"
)
_ANY_JSON = "Answer with JSON, and with nothing else."
_FENCE = re.compile(
    r"\s*(`{3,}|~{3,})(?:[ \t]*[\w+-]*[ \t]*\r?\n|[ \t]*(?:json)?)(.*?)\s*\1\s*",
    re.DOTALL | re.IGNORECASE,
)


class ExternalModel(Candidate):
    """A model of another library; a subclass knows how to call it.

    Its owner's sampling settings stay. One that the owner left open is taken from the call,
    if the model has such a setting.

    Args:
        name: what provenance shows.
        model: a pydantic object, as the models of LangChain and LlamaIndex are.

    Attributes:
        dispensable: settings that are left out where the service refuses them.
    """

    dispensable: frozenset[str] = frozenset({"seed", "stop", "temperature"})

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.model = model
        self._refuses: frozenset[str] = frozenset()  # settings, learnt from its provider's errors

    def takes(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options of a call that reach the model."""
        translated = {name: value for name, value in options.items() if name in _TRANSLATED}
        return translated | {name: value for name, _, value in self._settings(options)}

    def set_up(self, options: Mapping[str, Any]) -> Any:
        """The model, or a copy of it with the settings that it takes from a call."""
        taken = self._settings(options)
        new = {f: value for _, f, value in taken if _own(self.model, f) != value}
        if not new:
            return self.model
        fields = type(self.model).model_fields
        copied = self.model.model_copy(update={f: v for f, v in new.items() if f in fields})
        _update_private(copied, {name: value for name, _, value in taken})
        return copied

    def understood(self, call: Call) -> Call:
        """The call as the provider takes it: tool names in plain letters, and without the
        settings that it is known to refuse. `result` restores the names.

        Raises:
            ModelUnsupported: the prompt is token ids, which are those of a local model.
        """
        if are_token_ids(call.prompt):
            raise self.unsupported("continue token ids")
        options = {k: v for k, v in call.options.items() if k not in self._refuses}
        names = plain_names(options)
        if names:
            options["tools"] = [renamed(tool, names) for tool in options["tools"]]
            if isinstance(options.get("tool_choice"), Mapping):
                options["tool_choice"] = renamed(options["tool_choice"], names)
            if not isinstance(call.prompt, str):
                messages = cast("Sequence[Mapping[str, Any]]", call.prompt)
                return replace(
                    call,
                    options=options,
                    prompt=[_with_renamed_calls(message, names) for message in messages],
                )
        return replace(call, options=options)

    def may_pass(self, error: Exception) -> bool:
        """As the function `may_pass` says, which knows errors of other libraries too."""
        return may_pass(error)

    def learns(self, call: Call, error: Exception) -> bool:
        """Whether the error names settings that the service refuses; they are left out then.

        Services differ by model in whether they take `stop`, `seed` and `temperature`. An
        answer is worth more than any of these, and texts are cut at stop strings here too.

        Args:
            call: as `understood` made it.
            error: what its library raised.
        """
        if not is_wrong_request(error):
            return False
        fields = {name: (name, field) for name, field, _ in self._settings(call.options)}
        if call.options.get("stop"):
            fields["stop"] = ("stop", "stop_sequences")
        named = {
            setting
            for setting in self.dispensable & fields.keys()
            if any(re.search(rf"\b{name}\b", str(error)) for name in fields[setting])
        }
        self._refuses |= named
        return bool(named)

    def _settings(self, options: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
        return [one for one in _settings(self.model, options) if one[0] not in self._refuses]

    def refuse_what_it_cannot(self, options: Mapping[str, Any]) -> None:
        """Refuse what only a local model can do: to be held to an expression or a grammar.

        Raises:
            ModelUnsupported: the call asks for one.
        """
        for name in ("regex", "grammar"):
            if options.get(name) is not None:
                raise self.unsupported(f"hold its answer to a {name}")

    def unsupported(self, what: str) -> ModelUnsupported:
        """The error for something that it cannot do."""
        return ModelUnsupported(f"{self.name} ({type(self.model).__name__}) cannot {what}.")

    def result(self, call: Call, said: ExternalAnswer) -> Result:
        """The answer as a `Result`, cut at the stop strings of the call."""
        text, reason = said.text, finish_reason(*said.sources)
        schema = call.options.get("schema")
        said = _with_own_names(said, plain_names(call.options))
        if reason in CUT_OFF and said.guard is None:
            said = _without_half_a_call(said)
        stopped = text if said.as_text else _stopped(text, call.options.get("stop") or ())
        if stopped != text:  # what came after it was never asked for
            text, reason = stopped, "stop" if reason == "length" else reason
        if schema is not None and not said.tool_calls:
            text = unfenced(text)
        guard = said.guard or Provenance(
            request_id=call.request_id, requested_model=self.name, served_model=self.name
        )
        return Result(
            text=text,
            reasoning=said.reasoning,
            tool_calls=said.tool_calls,
            invalid_tool_calls=said.invalid_tool_calls,
            finish_reason=_with_calls(reason, said),
            usage=said.usage or Usage(0, 0),
            guard=guard,
        )


@dataclass(frozen=True, kw_only=True)
class ExternalAnswer:
    """What a model of another library answered.

    Attributes:
        sources: where its provider may say why it ended; see `finish_reason`.
        as_text: its call became the text, since the tool was only there to give it a form.
        usage: None when it is not known.
        guard: the provenance, if the model is a guarded one itself.
    """

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    sources: tuple[Any, ...] = ()
    as_text: bool = False
    usage: Usage | None = None
    guard: Provenance | None = None


def is_object(schema: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a schema names the fields of an object, which all libraries can ask for."""
    if not isinstance(schema, Mapping):
        return False
    return schema.get("type") == "object" and bool(schema.get("properties"))


def instructed(
    messages: Iterable[Mapping[str, Any]], schema: object, *, beside_tools: bool = False
) -> list[dict[str, Any]]:
    """Messages in OpenAI's form with the instruction to answer in JSON.

    It is added to the last message if that is the user's: some services want roles to
    alternate.

    Args:
        messages: they are not changed.
        schema: a JSON Schema, or True for any JSON.
        beside_tools: tools are offered too; the instruction is for an answer without a call.
    """
    wish = _ANY_JSON
    if isinstance(schema, Mapping):
        wish = (_WISH_BESIDE_TOOLS if beside_tools else _WISH) + json.dumps(
            schema, ensure_ascii=False
        )
    *before, last = (dict(message) for message in messages)
    if last.get("role") != "user":
        return [*before, last, {"role": "user", "content": wish}]
    content = last.get("content") or ""
    if isinstance(content, str):
        return [*before, {**last, "content": f"{content}\n\n{wish}"}]
    return [*before, {**last, "content": [*content, {"type": "text", "text": f"\n\n{wish}"}]}]


def unfenced(text: str) -> str:
    """The JSON inside a Markdown fence around the whole text; else the text itself."""
    found = _FENCE.fullmatch(text)
    if found is None:
        return text
    try:
        json.loads(found[2])
    except ValueError:
        return text
    return found[2]


def plain_name(name: str) -> str:
    """A name that all services take for a tool or a schema."""
    return _ODD.sub("_", name)[:_NAME_LENGTH]


def plain_names(options: Mapping[str, Any]) -> dict[str, str]:
    """A distinct name that all services take, for each tool whose own not all of them take."""
    names = [tool["function"]["name"] for tool in options.get("tools") or ()]
    taken = {name for name in names if plain_name(name) == name}
    plain: dict[str, str] = {}
    for name in names:
        if name not in taken and name not in plain:
            spelled = plain_name(name)
            for number in range(2, len(names) + 2):
                if spelled not in taken:
                    break
                spelled = f"{plain_name(name)[: _NAME_LENGTH - 4]}_{number}"
            taken.add(spelled)
            plain[name] = spelled
    return plain


def renamed(holder: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tool, a choice of one or a call of one, by another name."""
    function = holder["function"]
    name = function["name"]
    return {**holder, "function": {**function, "name": names.get(name, name)}}


def _with_renamed_calls(message: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        name = str(message.get("name", ""))
        return {**message, "name": names[name]} if name in names else message
    return {**message, "tool_calls": [renamed(call, names) for call in calls]}


def _with_own_names(said: ExternalAnswer, names: Mapping[str, str]) -> ExternalAnswer:
    own = {plain: name for name, plain in names.items()}
    calls = tuple(replace(call, name=own.get(call.name, call.name)) for call in said.tool_calls)
    return replace(said, tool_calls=calls)


def _without_half_a_call(said: ExternalAnswer) -> ExternalAnswer:
    """The answer without its last call, which may be half of one: the answer was cut off.

    Libraries that join the pieces of a stream complete such a call without a mark.
    """
    if not said.tool_calls or said.invalid_tool_calls:
        return said
    *whole, last = said.tool_calls
    unread = InvalidToolCall(written_call(last), "the answer was cut off in this call.")
    return replace(said, tool_calls=tuple(whole), invalid_tool_calls=(unread,))


def is_wrong_request(error: Exception) -> bool:
    """Whether a service, or its client, refused the request as wrong."""
    return isinstance(error, TypeError) or _status(error) in (400, 422)


def may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed after an error of another library.

    The error itself may say so. If it does not, the answer is yes, unless the call is not
    implemented, or a service refused the request and would do so again.
    """
    for name in ("retryable", "is_retryable"):
        if hasattr(error, name):
            return bool(getattr(error, name))
    status = _status(error)
    refused = 400 <= status < 500 and status not in _PASSING
    return not (refused or isinstance(error, NotImplementedError))


def _status(error: Exception) -> int:
    """The HTTP status in an error of a client; 0 when it has none."""
    response = getattr(error, "response", None)
    for holder, name in ((error, "status_code"), (error, "code"), (response, "status_code")):
        status = getattr(holder, name, None)
        if isinstance(status, int):
            return status
    return 0


def _update_private(model: Any, settings: Mapping[str, Any]) -> None:
    for name, kept in _private(model).items():
        own = {field: v for s, v in settings.items() for field in _SETTINGS[s] if field in kept}
        if own:
            setattr(model, name, {**kept, **own})


def _private(model: Any) -> dict[str, dict[Any, Any]]:
    """The private mappings of a model: some put their settings there, and send those."""
    private = model.__pydantic_private__ or {}
    return {name: kept for name, kept in private.items() if isinstance(kept, dict)}


def _own(model: Any, field: str) -> Any:
    """A model's own value of a setting: a field, or in a mapping that it sends."""
    if field in type(model).model_fields:
        return getattr(model, field, None)
    return next((kept[field] for kept in _private(model).values() if field in kept), None)


def _settings(model: Any, options: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The settings of a call that a model takes: name, its field there, and value."""
    found = []
    kept = {field for mapping in _private(model).values() for field in mapping}
    for name, fields in _SETTINGS.items():
        known = (f for there in (type(model).model_fields, kept) for f in fields if f in there)
        field = next(known, None)
        value = options.get(name)
        if value is not None and field and _is_open(model, name, field, value):
            found.append((name, field, value % _SEEDS if name == "seed" else value))
    return found


def _is_open(model: Any, name: str, field: str, value: Any) -> bool:
    """Whether the owner left a setting open. Of two limits the smaller one holds."""
    own = _own(model, field)
    if name == "temperature":
        profile = getattr(model, "profile", None)  # LangChain's, of models that take none
        if isinstance(profile, Mapping) and profile.get("temperature") is False:
            return False
    public = field in type(model).model_fields
    chosen = field in model.model_fields_set and not _fills_in(model, field, own)
    if own is None or (public and not chosen):
        return True
    return name == "max_tokens" and isinstance(own, int) and value <= own


def _fills_in(model: Any, field: str, value: Any) -> bool:
    """Whether the constructor gives this value by itself, so that the owner may not have."""
    parameter = signature(type(model).__init__).parameters.get(field)
    default = type(model).model_fields[field].default
    return parameter is not None and value in (parameter.default, default)


def _stopped(text: str, stop: str | Sequence[str]) -> str:
    """The text up to a stop string: not every provider takes them, or as many."""
    for end in (stop,) if isinstance(stop, str) else stop:
        text = text.partition(end)[0]
    return text


def _with_calls(reason: FinishReason, said: ExternalAnswer) -> FinishReason:
    if said.tool_calls or said.invalid_tool_calls:
        return "tool_calls" if reason == "stop" else reason
    if reason == "tool_calls":  # the calls that it speaks of are nowhere
        return "stop" if said.as_text else "other"
    return reason
