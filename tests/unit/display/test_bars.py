from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Catalog, Progress, ProgressBars
from mlx_guarded_llm.backend.default_backend import default_backend
from mlx_guarded_llm.display import bars, in_notebook
from mlx_guarded_llm.testing.tiny import make_tiny_model


class FakeBar:
    """A bar that remembers what was done to it."""

    made: list[FakeBar]

    def __init__(self, *, desc: str, total: int | None, initial: int, **look: Any) -> None:
        self.desc, self.total, self.n, self.look = desc, total, initial, look
        self.closed, self.leave = False, True
        self.format_dict = {"elapsed": 0.0}
        self.made.append(self)

    def update(self, more: int) -> None:
        assert not self.closed
        self.n += more

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeBar]:
    FakeBar.made = []
    monkeypatch.setattr(bars, "_tqdm", lambda: FakeBar)
    return FakeBar.made


def load(done: int, model: str = "phi3", **more: Any) -> Progress:
    return Progress("load", done, 100, model=model, **more)


class TestBars:
    def test_one_bar_follows_a_stage_to_its_end(self, made: list[FakeBar]) -> None:
        show = ProgressBars()
        for done in (20, 60, 100):
            show(load(done))
        (bar,) = made
        assert bar.desc == "load phi3"
        assert (bar.n, bar.total, bar.closed) == (100, 100, True)
        assert bar.look["unit"] == "B" and bar.look["unit_scale"]

    def test_what_is_done_at_once_has_no_bar(self, made: list[FakeBar]) -> None:
        show = ProgressBars()
        show(load(100))
        show(load(100))
        show(load(30, over=True))
        assert made == []

    def test_a_stage_that_ends_unfinished_is_closed(self, made: list[FakeBar]) -> None:
        show = ProgressBars()
        show(load(20))
        show(load(20, over=True))
        assert made[0].closed and made[0].n == 20
        show(load(10))  # tried again
        assert len(made) == 2

    def test_a_stage_of_unknown_length_is_closed(self, made: list[FakeBar]) -> None:
        show = ProgressBars()
        show(Progress("import", 5, None, model="phi3"))
        show(Progress("import", 9, None, model="phi3", over=True))
        assert made[0].closed and made[0].n == 9

    def test_a_prefill_counts_tokens_and_a_short_one_shows_nothing(
        self, made: list[FakeBar]
    ) -> None:
        show = ProgressBars()
        show(Progress("prefill", 64, 128, model="phi3", request_id="r1"))
        assert made == []
        show(Progress("prefill", 64, 4000, model="phi3", request_id="r1"))
        assert made[0].look["unit"] == " tokens" and not made[0].look["unit_scale"]

    def test_only_the_bars_of_long_pulls_and_loads_stay(self, made: list[FakeBar]) -> None:
        show = ProgressBars()
        steps: list[tuple[Callable[[int], Progress], float, bool]] = [
            (load, bars.LASTING + 1, True),
            (load, bars.LASTING - 1, False),
            (lambda n: Progress("prefill", 10 * n, 1000), bars.LASTING + 1, False),
        ]
        for step, elapsed, _ in steps:
            show(step(50))
            made[-1].format_dict["elapsed"] = elapsed
            show(step(100))
        assert [bar.leave for bar in made] == [stays for _, _, stays in steps]

    def test_a_long_name_is_cut_at_its_front(self, made: list[FakeBar]) -> None:
        ProgressBars()(load(1, model="/models/of/somebody/with/very/long/paths/phi3-mini-4bit"))
        assert made[0].desc.startswith("load …") and made[0].desc.endswith("phi3-mini-4bit")
        assert len(made[0].desc) == len("load ") + 32

    def test_several_threads_do_not_mix_their_bars(self, made: list[FakeBar]) -> None:
        show = ProgressBars()
        gate = threading.Barrier(8)

        def work(model: str) -> None:
            gate.wait()
            for done in range(1, 101):
                show(load(done, model=model))

        threads = [threading.Thread(target=work, args=(f"m{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(bar.desc for bar in made) == [f"load m{n}" for n in range(8)]
        assert all(bar.closed and bar.n == 100 for bar in made)

    def test_tqdm_draws_them(self) -> None:
        file = io.StringIO()
        show = ProgressBars(file=file, delay=0)
        show(load(40, model="phi3"))
        show(load(10, model="qwen3"))
        assert "load phi3:  40%" in file.getvalue()
        assert "load qwen3:  10%" in file.getvalue()
        show(load(100, model="phi3"))
        show(load(100, model="qwen3"))


class TestWithABackend:
    @pytest.fixture
    def model(self, tmp_path: Path) -> str:
        return str(make_tiny_model(tmp_path / "model"))

    def test_a_load_and_a_prefill_have_one_bar_each_and_close_it(
        self, model: str, tmp_path: Path, made: list[FakeBar]
    ) -> None:
        heard: list[Progress] = []
        catalog = Catalog(cache_dir=tmp_path / "cache")
        show = ProgressBars()

        def both(progress: Progress) -> None:
            heard.append(progress)
            show(progress)

        with Backend(on_progress=both, prefill_step_size=64, catalog=catalog) as backend:
            backend.generate(model, "Hello " * 100, max_tokens=2, request_id="r1")
        (bar,) = made  # the load of so small a model is one step
        assert bar.desc.startswith("prefill") and bar.closed and bar.n == bar.total
        stages = {(p.stage, p.model, p.request_id) for p in heard}
        assert stages == {("load", model, ""), ("prefill", model, "r1")}

    def test_the_bar_of_a_request_that_is_given_up_closes(
        self, model: str, tmp_path: Path, made: list[FakeBar]
    ) -> None:
        show = ProgressBars()
        catalog = Catalog(cache_dir=tmp_path / "cache")
        with Backend(prefill_step_size=64, catalog=catalog) as backend:

            def hear(progress: Progress) -> None:
                show(progress)
                if progress.stage == "prefill":
                    backend.cancel("r1")

            result = backend.generate(
                model, "Hello " * 250, max_tokens=500, request_id="r1", on_progress=hear
            )
        assert result.finish_reason == "cancelled"
        assert [bar.closed for bar in made] == [True]


class TestInNotebook:
    def test_a_plain_process_is_none(self) -> None:
        assert not in_notebook()

    def test_the_shared_backend_draws_bars_in_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ipython = ModuleType("IPython")
        monkeypatch.setattr(
            ipython, "get_ipython", lambda: SimpleNamespace(kernel=object()), raising=False
        )
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert in_notebook()
        with default_backend() as backend:
            assert isinstance(backend, Backend)
            (follower,) = backend._dispatcher.listeners._followers
            assert isinstance(follower, ProgressBars)
        with default_backend(on_progress=print) as backend:
            assert isinstance(backend, Backend)
            assert backend._dispatcher.listeners._followers == [print]
