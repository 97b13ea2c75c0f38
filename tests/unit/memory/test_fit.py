from __future__ import annotations

from pathlib import Path

import pytest

from mlx_guarded_llm.memory.budget import MemoryLimits, limits_of_mac
from mlx_guarded_llm.memory.corrections import Corrections
from mlx_guarded_llm.memory.fit import Fit
from mlx_guarded_llm.memory.footprint import predict
from mlx_guarded_llm.memory.ledger import Ledger
from mlx_guarded_llm.models import ModelFiles, verify
from mlx_guarded_llm.testing.tiny import make_tiny_embedder, make_tiny_model
from tests.unit.models.folders import folder_spec

STEP = 64  # tokens of a prefill chunk


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFiles]:
    folder = tmp_path_factory.mktemp("models")
    small = make_tiny_model(folder / "small", context_window=1024)
    large = make_tiny_model(folder / "large", layers=4, hidden_size=128, context_window=8192)
    return {path.name: verify(folder_spec(path), path) for path in (small, large)}


def limits(budget: int, prefix_cache: int = 0) -> MemoryLimits:
    return MemoryLimits(budget, prefix_cache, STEP, STEP)


def test_the_sum_is_that_by_which_a_ledger_admits(models: dict[str, ModelFiles]) -> None:
    together = Fit(models, limits(1)).together(1000)

    def admits(budget: int) -> bool:
        ledger = Ledger(budget, prefill_tokens=STEP)
        for name, files in models.items():
            ledger.know_model(name, predict(files))
            ledger.know_request(name, name, 1000)
            if ledger.plan_load(name, (), name) is None:
                return False
            ledger.reserve_load(name)
            ledger.reserve_start(name, name)
        return True

    assert admits(together)
    assert not admits(together - 1)


def test_a_model_is_counted_with_its_own_window_at_most(models: dict[str, ModelFiles]) -> None:
    fit = Fit(models, limits(1))
    assert fit.need("small", 4000).context == 1024
    assert fit.need("small", 4000) == fit.need("small", 1024)
    assert fit.need("large", 4000).context == 4000
    assert fit.widest_window() == 8192


def test_only_one_head_room_is_counted(models: dict[str, ModelFiles]) -> None:
    fit = Fit(models, limits(1))
    small, large = (fit.need(name, 512) for name in models)
    both = small.needed_bytes + large.needed_bytes
    assert fit.together(512) == both - min(small.step_bytes, large.step_bytes)


@pytest.mark.parametrize("tokens", [256, 1024, 1025, 3072, 8192])
def test_the_longest_context_is_the_longest(models: dict[str, ModelFiles], tokens: int) -> None:
    fit = Fit(models, limits(Fit(models, limits(1)).together(tokens)))
    longest = fit.longest_context(8192)
    assert longest >= tokens
    assert fit.together(longest) <= fit.room
    assert longest == 8192 or fit.together(longest + 1) > fit.room


def test_no_context_is_short_enough_where_not_even_the_weights_fit(
    models: dict[str, ModelFiles],
) -> None:
    assert Fit(models, limits(1000)).longest_context(8192) == 0


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_cache_takes_less(models: dict[str, ModelFiles], bits: int) -> None:
    fit = Fit(models, limits(1))
    assert fit.with_kv_bits(bits).need("large", 4096).kv_bytes < fit.need("large", 4096).kv_bytes
    assert fit.with_kv_bits(bits).need("large", 0).weight_bytes > 0


def test_an_embedder_has_no_cache_to_quantise(tmp_path: Path) -> None:
    folder = make_tiny_embedder(tmp_path / "embedder")
    files = verify(folder_spec(folder, task="embed"), folder)
    fit = Fit({"it": files}, limits(1))
    assert fit.need("it", 100).kv_bytes == 0
    assert fit.with_kv_bits(8).together(100) == fit.together(100)


def test_measured_sizes_replace_predicted_ones(
    models: dict[str, ModelFiles], tmp_path: Path
) -> None:
    corrections = Corrections(tmp_path / "measured.json")
    corrections.record(models["small"].load_fingerprint, weight_bytes=123_456_789)
    need = Fit(models, limits(1), corrections).need("small", 100)
    assert need.weight_bytes == 123_456_789


def test_the_least_budget_is_the_least(models: dict[str, ModelFiles]) -> None:
    least = Fit(models, limits(1)).budget_for(2048)
    for budget, fits in ((least, True), (least - 2, False)):
        prefix = int(budget * 0.05)
        fit = Fit(models, limits(budget, prefix))
        assert (fit.together(2048) <= fit.room) is fits


def test_of_a_mac_that_is_not_at_hand() -> None:
    assert limits_of_mac(96 * 10**9).budget_bytes == 64 * 10**9
