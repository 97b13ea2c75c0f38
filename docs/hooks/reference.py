"""MkDocs hook: the tables of docs/reference/ are made from the code when the site is built.

A page has a line `<!-- generated: NAME -->` where the result of the function NAME goes. Names of
Python objects (`::: module.name`) are rendered by mkdocstrings afterwards.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import typer
from mkdocs.structure.files import File
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mlx_guarded_llm import errors as library_errors
from mlx_guarded_llm.cli.app import app
from mlx_guarded_llm.cli.overview import PANELS
from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.record import Kind, Record
from mlx_guarded_llm.record.events import KINDS
from mlx_guarded_llm.record.log import level_of
from mlx_guarded_llm.server.app import APIS
from mlx_guarded_llm.server.description import describe
from mlx_guarded_llm.server.errors import status_and_code
from mlx_guarded_llm.server.settings import PREFIX, Key, ModelEntry, Settings
from mlx_guarded_llm.server.tally import Tally

ROOT = Path(__file__).parents[2]
OPENAPI = "reference/openapi.json"
_GENERATED = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)

# A child of MkDocs' own logger, so that --strict counts the warnings.
logger = logging.getLogger("mkdocs.hooks.reference")


def on_files(files: Any, *, config: Any, **_: Any) -> Any:
    """Add the OpenAPI document as a file of the site."""
    text = json.dumps(openapi(), indent=2)
    files.append(File.generated(config, OPENAPI, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated in its places."""
    return _GENERATED.sub(lambda match: PARTS[match[1]](), markdown)


# ---- errors ----------------------------------------------------------------------------


def errors() -> str:
    """Every error: when it is raised, what to do, and the messages it comes with."""
    return "\n\n".join(_error(kind) for kind in error_classes())


def error_classes() -> list[type[GuardedLLMError]]:
    """The errors, each after the one that it derives from."""
    return [
        kind
        for kind in vars(library_errors).values()
        if isinstance(kind, type) and issubclass(kind, GuardedLLMError)
    ]


def _error(kind: type[GuardedLLMError]) -> str:
    status, code = status_and_code(kind)
    bases = [base for base in kind.__bases__ if base is not Exception]
    policy = {
        "derives from": ", ".join(map(_base, bases)),
        "can be retried": "yes" if kind.retryable else "no",
        "another model may answer": "yes" if kind.fallback else "no",
        "over HTTP": f"{status}, code `{code}`",
    }
    path = f"{kind.__module__}.{kind.__name__}"
    return "\n".join(
        [
            f"[](){{#{path}}}",  # where other pages' types of this error lead
            "",
            f"## {kind.__name__}",
            "",
            f"::: {path}",
            "    options:",
            "      show_root_heading: false",
            "      show_root_toc_entry: false",
            "      members: false",
            "      show_bases: false",
            "",
            table(policy, [policy.values()]),
            *_messages(kind.__name__),
        ]
    )


def _base(kind: type[BaseException]) -> str:
    if issubclass(kind, GuardedLLMError):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return f"`{kind.__name__}`"


def _messages(name: str) -> list[str]:
    found = raised().get(name, {})
    if not found:
        return []
    rows = table(("message", "hint"), sorted(found.items()))
    return ["", f'??? note "Its messages ({len(found)})"', "", *_indented(rows.splitlines())]


def http_errors() -> str:
    """Every status and code of the HTTP API, and the error or the message behind it."""
    rows = {
        (*status_and_code(kind), f"[{kind.__name__}](#{kind.__name__.lower()})")
        for kind in error_classes()
    }
    for call in _calls("mlx_guarded_llm/server"):
        match _called(call), call.args:
            case "HTTPError", [ast.Constant(int(status)), ast.Constant(str(code)), message, *_]:
                rows.add((status, code, _written(message)))
            case "too_large", _:
                for key in call.keywords:
                    if key.arg == "status" and isinstance(key.value, ast.Constant):
                        rows.add((int(str(key.value.value)), "too_large", ""))
            case "refused", [message, *_]:
                codes = [key.value for key in call.keywords if key.arg == "code"]
                rows |= {(400, code, _written(message)) for code in map(_written, codes) if code}
    shown = sorted(rows)
    return table(
        ("status", "code", "error, or message"),
        [(str(status), f"`{code}`", words) for status, code, words in shown],
    )


def _calls(folder: str) -> Iterator[ast.Call]:
    """Every call in the sources of a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield node


@cache
def raised() -> Mapping[str, Mapping[str, str]]:
    """The hint of each message, by class of error, as the source has them.

    What is filled in at run time is shown as "…". A message that is made elsewhere is left out.
    """
    names = {kind.__name__ for kind in error_classes()}
    found: dict[str, dict[str, str]] = {}
    for call in _calls("mlx_guarded_llm"):
        if call.args and (name := _called(call)) in names:
            message = _written(call.args[0])
            hints = [key.value for key in call.keywords if key.arg == "hint"]
            if message:
                found.setdefault(name, {})[message] = _written(hints[0]) if hints else ""
    return found


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _written(text: ast.expr) -> str:
    """The words of a string in the source; "" if it has none."""
    match text:
        case ast.Constant(str(value)):
            return value
        case ast.IfExp():
            return " / ".join(filter(None, map(_written, (text.body, text.orelse))))
        case ast.JoinedStr():
            shown = [part.value if isinstance(part, ast.Constant) else "…" for part in text.values]
            written = re.sub("…[… ]*…", "…", "".join(map(str, shown)))
            return written if re.search(r"\w{2}", written) else ""
    return ""


# ---- events ----------------------------------------------------------------------------


def events() -> str:
    """Every kind of event, by subject, with what it tells."""
    parts = []
    kinds: tuple[Kind, ...] = get_args(Kind)
    for subject in dict.fromkeys(kind.partition(".")[0] for kind in kinds):
        rows = [
            (f"`{kind}`", KINDS[kind], logging.getLevelName(level_of(kind)).lower())
            for kind in kinds
            if kind.startswith(f"{subject}.")
        ]
        parts.append(f"## {subject}\n\n{table(('kind', 'what happened', 'logged as'), rows)}")
    return "\n\n".join(parts)


# ---- metrics ---------------------------------------------------------------------------


def metrics() -> str:
    """Every metric of `/metrics`: its name, type, labels and meaning."""
    rows = []
    for metric in Tally(Record(), ()).registry.collect():
        labels = labels_of(metric.name)
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        rows.append((f"`{name}`", metric.type, code_list(labels), metric.documentation))
    return table(("metric", "type", "labels", "what it counts"), rows)


@cache
def _labels() -> Mapping[str, tuple[str, ...]]:
    registry = Tally(Record(), ()).registry
    # prometheus-client tells the labels of samples only, and a metric without a label's value
    # has no sample.
    return {
        metric._name: tuple(metric._labelnames)
        for metric in registry._collector_to_names
        if isinstance(metric, MetricWrapperBase)
    }


def labels_of(metric: str) -> tuple[str, ...]:
    """The names of a metric's labels."""
    return _labels()[metric]


# ---- settings --------------------------------------------------------------------------


def settings() -> str:
    """Every setting of the server: key, variable, flag, default and meaning."""
    plain, sections = [], []
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            sections.append((f"[{name}]", kind, f"{PREFIX}{name.upper()}__"))
        else:
            plain.append((name, field))
    sections.append(("[models.NAME]", ModelEntry, f"{PREFIX}MODELS__NAME__"))
    retry = ModelEntry.model_fields["retry"].annotation
    assert isinstance(retry, type)
    sections.append(("[models.NAME.retry]", retry, f"{PREFIX}MODELS__NAME__RETRY__"))
    sections.append(("[keys.NAME]", Key, f"{PREFIX}KEYS__NAME__"))
    columns = ("key, variable, flag", "default", "meaning")
    parts = ["## At the top", "", table(columns, (_setting(*one, PREFIX, flag) for one in plain))]
    for title, kind, prefix in sections:
        rows = [_setting(name, field, prefix) for name, field in kind.model_fields.items()]
        parts += ["", f"## `{title}`", "", _linked(inspect.getdoc(kind) or ""), ""]
        parts.append(table(columns, rows))
    return "\n".join(parts)


def _setting(
    name: str, field: FieldInfo, prefix: str, flag: Callable[[str], str] = lambda name: ""
) -> tuple[str, ...]:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, PydanticUndefined, (), {}) else _default(default)
    words = _linked(field.description or "")
    names = [f"**`{name}`**", f"`{prefix}{name.upper()}`", flag(name)]
    return ("<br>".join(filter(None, names)), shown, words)


def _linked(words: str) -> str:
    """The words, with links to the pages that they name."""
    return re.sub(
        r"docs/(?:[\w-]+/)*([\w-]+)\.md", lambda page: f"[{page[1]}](../{page[0][5:]})", words
    )


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value, default=str)}`"


def flag(setting: str) -> str:
    """The option of `mlx-guarded serve` for a setting, or ""."""
    for param in _command("serve").params:
        if param.name in (setting, setting.removesuffix("s")):
            return f"`{param.opts[0]}`"
    return ""


# ---- commands --------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options."""
    program = typer.main.get_command(app)
    parts = ["## mlx-guarded", "", "Options that stand before the command.", ""]
    parts.append(_options(program.params))
    for title, names in PANELS.items():
        for name in names:
            command = _command(name)
            words, examples = _help(command.help or "")
            pieces = command.collect_usage_pieces(typer.Context(command, info_name=name))
            usage = " ".join(["mlx-guarded", name, *pieces])
            parts += ["", f"## {name}", "", f"*{title}*", "", f"```text\n{usage}\n```", "", words]
            if examples:
                parts += ["", f"```text\n{examples}\n```"]
            parts += ["", _options(command.params)]
    return "\n".join(parts)


def _command(name: str) -> Any:
    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


def _help(text: str) -> tuple[str, str]:
    """The words of a command's help, and its examples, which are dim."""
    words, _, rest = re.sub(r"\[/?bold\]", "", text).partition("[dim]")
    return words.strip(), rest.replace("[/dim]", "").strip()


def _options(params: Iterable[Any]) -> str:
    shown = (param for param in params if not param.hidden)
    return table(("", "takes", "default", "meaning"), map(_option, shown))


# The types of options do not depend on it.
CONTEXT = typer.Context(typer.main.get_command(app))


def _option(param: Any) -> tuple[str, ...]:
    if param.param_type_name == "argument":
        names, takes = [param.metavar or param.name.upper()], "argument"
    else:
        names = [*param.opts, *param.secondary_opts]
        takes = "" if param.is_flag else (param.metavar or param.display_type(CONTEXT)).strip("<>")
    default: Any = param.show_default
    if default is True:
        default = param.default if param.default not in (None, False) else ""
    return code_list(names), takes, str(default or ""), param.help or ""


# ---- the HTTP API ----------------------------------------------------------------------


@cache
def openapi() -> dict[str, Any]:
    """The document that a server has at `/openapi.json`."""
    return describe(APIS)


def http_api() -> str:
    """Every path of the server, then the shapes of the bodies."""
    document = openapi()
    parts = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method != "head" and not path.startswith("/live/"):
                parts += [f"### {method.upper()} {path}", "", *_operation(operation)]
    parts += ["## Shapes", ""]
    for name, shape in sorted(document["components"]["schemas"].items()):
        words = shape.get("description", "").partition("\n")[0]
        parts += [f"### {name}", "", words, "", _fields(shape), ""]
    return "\n".join(parts)


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    yield operation["summary"]
    yield ""
    if body := operation.get("requestBody"):
        yield f"Body: {shape_of(body['content']['application/json']['schema'])}."
        yield ""
    if parameters := operation.get("parameters"):
        rows = [(f"`{p['name']}`", f"in the {p['in']}", shape_of(p["schema"])) for p in parameters]
        yield table(("parameter", "", "type"), rows)
        yield ""


def _fields(shape: Mapping[str, Any]) -> str:
    required = shape.get("required", ())
    rows = [
        (
            f"`{name}`",
            shape_of(field),
            "required" if name in required else _json_default(field),
            field.get("description", ""),
        )
        for name, field in shape.get("properties", {}).items()
    ]
    return table(("field", "type", "default", "meaning"), rows)


def _json_default(field: Mapping[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if field.get("default") is not None else ""


def shape_of(schema: Mapping[str, Any]) -> str:
    """The type of a value in words, with links to the shapes that it refers to."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if options := schema.get(key):
            return " or ".join(dict.fromkeys(map(shape_of, options)))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(v)}`" for v in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array":
            return f"list of {shape_of(schema.get('items', {}))}"
        case "object" if isinstance(schema.get("additionalProperties"), Mapping):
            return f"object of {shape_of(schema['additionalProperties'])}"
        case str(kind):
            return f"{kind}{_bounds(schema)}"
    return "any"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    told = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return f" ({', '.join(told)})" if told else ""


# ---- Markdown --------------------------------------------------------------------------


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown. Empty columns are left out."""
    lines = [[_cell(cell) for cell in row] for row in (head, *rows)]
    kept = [n for n in range(len(lines[0])) if any(line[n] for line in lines[1:])]
    first, *others = [[line[n] for n in kept] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, ["---"] * len(kept), *others))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code_list(values: Iterable[str]) -> str:
    """The values as code, with commas."""
    return ", ".join(f"`{value}`" for value in values)


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]


PARTS: Mapping[str, Callable[[], str]] = {
    part.__name__: part
    for part in (errors, http_errors, events, metrics, settings, commands, http_api)
}
