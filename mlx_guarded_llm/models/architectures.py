"""Which model types the installed mlx-lm can run, found without importing it.

Importing mlx_lm imports MLX, which only the engine's thread may do. So the tables of alternative
names are read from its source, and a model type is known if `mlx_lm/models/<type>.py` defines
`Model`.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from ..errors import ModelUnsupported
from .sources import Source, read_source

_parsing = threading.Lock()
_ATTEMPTS = 4

# Their tensors look like weights, but mlx-lm does not decode them.
_UNSUPPORTED_QUANTISATION = frozenset(
    {"aqlm", "bitsandbytes", "eetq", "higgs", "hqq", "quanto", "spqr", "torchao", "vptq"}
)


def check_supported(config: Mapping[str, Any]) -> None:
    """Check that mlx-lm has an architecture for a model's config.json.

    Args:
        config: its "model_type" must be a string.

    Raises:
        ModelUnsupported: it has none, or the model needs code of its own.
    """
    model_type = config["model_type"]
    if config.get("model_file") is not None:
        raise ModelUnsupported(
            f"the model runs its own code ({config['model_file']!r}), which is not allowed.",
            hint="Use a model whose architecture is part of mlx-lm.",
        )
    known = _known_types()
    module = module_name(model_type, config.get("architectures"))
    if module not in known:
        own_code = " Its own code (auto_map) is never run." if "auto_map" in config else ""
        near = difflib.get_close_matches(module, known, n=1)
        closest = f" The closest type is {near[0]}." if near else ""
        raise ModelUnsupported(
            f"mlx-lm has no model type {model_type!r}.{own_code}",
            hint=f"Update mlx-lm or use another model.{closest}",
        )
    method = _quantisation_method(config)
    if "quantization" not in config and method in _UNSUPPORTED_QUANTISATION:
        raise ModelUnsupported(
            f"the weights are quantised by {method}, which mlx-lm does not read.",
            hint="Use an MLX, AWQ or GPTQ version of the model.",
        )


def runs(config: Mapping[str, Any]) -> bool:
    """Whether mlx-lm has the architecture of a model."""
    return module_name(config["model_type"], config.get("architectures")) in _known_types()


def _quantisation_method(config: Mapping[str, Any]) -> str | None:
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method if isinstance(method, str) else None


def module_name(model_type: str, architectures: object) -> str:
    """The module that mlx_lm.utils._get_classes would import."""
    names, by_architecture = _tables()
    if isinstance(architectures, str):
        architectures = [architectures]
    for architecture in architectures if isinstance(architectures, list) else ():
        if isinstance(architecture, str) and (model_type, architecture) in by_architecture:
            return by_architecture[model_type, architecture]
    return names.get(model_type, model_type)


def source_of(config: Mapping[str, Any]) -> Source:
    """The source of the architecture of mlx-lm that reads a config, or a part of one."""
    module = module_name(config["model_type"], config.get("architectures"))
    return read_source(mlx_lm_folder() / "models", module)


def tokenizer_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """TOKENIZER_DEFAULTS of a model's module, which mlx-lm uses if the files say nothing."""
    module = module_name(config["model_type"], config.get("architectures"))
    return _defaults(module) if module in _known_types() else {}


@cache
def _defaults(module: str) -> dict[str, Any]:
    for node in parse(f"models/{module}.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TOKENIZER_DEFAULTS":
            return dict(ast.literal_eval(node.value))
    return {}


@cache
def mlx_lm_folder() -> Path:
    """The folder of the installed mlx-lm.

    The folder of a program comes first on its path, but not on the worker's. So something of that
    name next to a user's script is not what runs the models.

    Raises:
        ModelUnsupported: it is not installed.
    """
    others = []
    for spec in _specs("mlx_lm"):
        for folder in spec.submodule_search_locations or ():
            if Path(folder, "utils.py").is_file() and Path(folder, "models").is_dir():
                return Path(folder)
        others.append(spec.origin or str(spec.submodule_search_locations))
    beside = f" ({others[0]} is something else)" if others else ""
    raise ModelUnsupported(
        f"mlx-lm is not installed{beside}, so no model can run.",
        hint="Run `pip install mlx-lm`" + (f", and rename {others[0]}." if others else "."),
    )


def _specs(name: str) -> Iterator[ModuleSpec]:
    """Everything that an import of `name` could find, in order."""
    with contextlib.suppress(ValueError):  # a module of that name was created by hand
        if (spec := importlib.util.find_spec(name)) is not None:
            yield spec
    for entry in sys.path:
        if (spec := PathFinder.find_spec(name, [entry])) is not None:
            yield spec


def parse(file: str) -> ast.Module:
    """The syntax tree of a file of mlx-lm, by its name in the package's folder.

    CPython 3.11 counts the depth of syntax trees over all threads, and raises SystemError if two
    are built at once. So only one thread of ours does it at a time, and it tries again if a thread
    of the program interfered, as those of langchain-core do.

    Raises:
        ModelUnsupported: mlx-lm is not installed.
    """
    source = (mlx_lm_folder() / file).read_text(encoding="utf-8")
    with _parsing:
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(SystemError):
                return ast.parse(source)
        return ast.parse(source)


@cache
def _tables() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """MODEL_REMAPPING and MODEL_ARCHITECTURE_REMAPPING of mlx_lm/utils.py."""
    tables: dict[str, Any] = {"MODEL_REMAPPING": {}, "MODEL_ARCHITECTURE_REMAPPING": {}}
    for node in parse("utils.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in tables:
                tables[name] = ast.literal_eval(node.value)
    return tables["MODEL_REMAPPING"], tables["MODEL_ARCHITECTURE_REMAPPING"]


@cache
def _known_types() -> frozenset[str]:
    # Some modules of the folder are helpers. An architecture has a Model, its own or one that it
    # imports.
    pattern = re.compile(
        r"^(class Model\b|Model\s*=|from \S+ import (\([^)]*|[^\n]*)\bModel\b)", re.MULTILINE
    )
    return frozenset(
        file.stem
        for file in (mlx_lm_folder() / "models").glob("*.py")
        if pattern.search(file.read_text(encoding="utf-8"))
    )
