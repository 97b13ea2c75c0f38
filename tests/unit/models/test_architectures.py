from __future__ import annotations

import ast
import gc
import importlib.machinery
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import ModelUnsupported
from mlx_guarded_llm.models import architectures
from mlx_guarded_llm.models.architectures import check_supported, parse


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": "mistral"},  # another name of llama
        {"model_type": "solar_open"},  # takes its Model from another module
        {"model_type": "gemma3"},
        {"model_type": "llama", "architectures": None},
        {"model_type": "llama", "architectures": [["odd"]]},
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_supported(config: dict[str, Any]) -> None:
    check_supported(config)


@pytest.mark.parametrize("model_type", ["bert", "cache", "rope_utils", "base", "../utils", "", "."])
def test_unsupported(model_type: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        check_supported({"model_type": model_type})
    assert caught.value.hint


def test_a_close_type_is_suggested() -> None:
    with pytest.raises(ModelUnsupported, match="closest type is qwen3"):
        check_supported({"model_type": "qwen33"})


def test_own_code_is_mentioned_where_it_would_be_needed() -> None:
    with pytest.raises(ModelUnsupported, match="auto_map"):
        check_supported({"model_type": "nobody_has_this", "auto_map": {}})


def test_foreign_quantisation_is_refused_by_name() -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}
    with pytest.raises(ModelUnsupported, match="bitsandbytes"):
        check_supported(config)


@pytest.fixture
def stub_mlx_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    caches = (architectures.mlx_lm_folder, architectures._tables, architectures._known_types)
    spec = importlib.machinery.ModuleSpec("mlx_lm", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_another_mlx_lm_needs_no_tables(stub_mlx_lm: Path) -> None:
    (stub_mlx_lm / "utils.py").write_text("x = 1\n")
    (stub_mlx_lm / "models").mkdir()
    (stub_mlx_lm / "models" / "new.py").write_text("class Model:\n    pass\n")
    check_supported({"model_type": "new"})


def test_architecture_names_choose_a_module(stub_mlx_lm: Path) -> None:
    table = 'MODEL_ARCHITECTURE_REMAPPING = {("a", "AForCausalLM"): "b"}\n'
    (stub_mlx_lm / "utils.py").write_text(table)
    (stub_mlx_lm / "models").mkdir()
    (stub_mlx_lm / "models" / "b.py").write_text("from x import (\n    Args,\n    Model,\n)\n")
    check_supported({"model_type": "a", "architectures": ["AForCausalLM"]})
    with pytest.raises(ModelUnsupported):
        check_supported({"model_type": "a", "architectures": ["Other"]})


@pytest.fixture
def busy_collector() -> Iterator[None]:
    """Garbage is collected often, and runs code: other threads get their turn in there."""

    def callback(phase: str, info: dict[str, int]) -> None:
        sum(range(50))

    before = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(callback)


def test_files_are_parsed_by_several_threads_at_once(busy_collector: None) -> None:
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(parse, ["utils.py", "tokenizer_utils.py"] * 20))
    assert all(tree.body for tree in trees)


def test_a_tree_that_another_thread_spoilt_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, spoilt = ast.parse, iter([True, True, False])

    def fake(source: str) -> ast.Module:
        if next(spoilt):
            raise SystemError("AST constructor recursion depth mismatch (before=37, after=102)")
        return real(source)

    monkeypatch.setattr(ast, "parse", fake)
    assert parse("utils.py").body


def test_without_mlx_lm_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    architectures.mlx_lm_folder.cache_clear()
    architectures._known_types.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(ModelUnsupported, match="not installed"):
        check_supported({"model_type": "llama"})
