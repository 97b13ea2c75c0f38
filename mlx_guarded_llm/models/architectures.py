"""Which model types the installed mlx-lm can run, found without importing it.

Importing mlx_lm imports MLX, which only the engine's thread may do. So its folder
is found, its tables of other names are read from its source, and a model type is known
when `mlx_lm/models/<type>.py` defines `Model`.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import re
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ModelUnsupported

_parsing = threading.Lock()
_ATTEMPTS = 4

# Their tensors look like weights but mean something mlx-lm does not decode.
_FOREIGN_QUANTISATION = frozenset(
    {"aqlm", "bitsandbytes", "eetq", "higgs", "hqq", "quanto", "spqr", "torchao", "vptq"}
)


def check_supported(config: Mapping[str, Any]) -> None:
    """Checks that mlx-lm has an architecture for a model's config.json.

    Args:
        config: the config; its "model_type" is a string.

    Raises:
        ModelUnsupported: it has none, or the model wants to run code of its own.
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
    if "quantization" not in config and method in _FOREIGN_QUANTISATION:
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


@cache
def mlx_lm_folder() -> Path:
    """Where the installed mlx-lm lies.

    Raises:
        ModelUnsupported: it is not installed.
    """
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnsupported(
            "mlx-lm is not installed, so no model can run.", hint="Run `pip install mlx-lm`."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def parse(file: str) -> ast.Module:
    """The syntax tree of a file of mlx-lm, by its name in the package's folder.

    CPython 3.11 counts the depth of trees for all threads together, and raises SystemError
    when two are built at once. So it is one thread of ours at a time, and another attempt
    where a thread of the program's own came between, as langchain-core's do.

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
    # Some modules of the folder are helpers; an architecture has a Model, its own
    # or another module's.
    pattern = re.compile(
        r"^(class Model\b|Model\s*=|from \S+ import (\([^)]*|[^\n]*)\bModel\b)", re.MULTILINE
    )
    return frozenset(
        file.stem
        for file in (mlx_lm_folder() / "models").glob("*.py")
        if pattern.search(file.read_text(encoding="utf-8"))
    )
