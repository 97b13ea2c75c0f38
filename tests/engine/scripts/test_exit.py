"""However a script ends, its process ends with the code it should and says nothing more."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ISOLATIONS
from tests.engine._backend import TEXT
from tests.engine._scripts import Ended, run_script

pytestmark = pytest.mark.slow


SILENT = {
    "never used": "from mlx_guarded_llm import GuardedLLMError",
    "made and never used": "backend = Backend()",
    "made, used wrongly": """
        backend = Backend()
        with contextlib.suppress(ModelNotFound):
            backend.generate("no-such-model", "Hello")
        """,
    "asked at the last moment": """
        backend = Backend()
        unread = backend.stream(TINY, "Hello", max_tokens=5)
        """,
    "idle": """
        backend = Backend()
        assert backend.generate(SCRIPTED, "Hello").finish_reason == "stop"
        """,
    "a thread goes on generating": """
        backend = Backend()
        spawn(lambda: backend.generate(TINY, "Hello", max_tokens=60), daemon=False)
        until(lambda: happened(backend, "request.first_token"))
        """,
    "a daemon thread goes on reading": """
        backend = Backend()
        def read():
            with contextlib.suppress(BackendClosed):
                for chunk in backend.stream(TINY, "Hello", max_tokens=50_000):
                    pass
        spawn(read)
        until(lambda: happened(backend, "request.first_token"))
        """,
    "a stream half read": """
        backend = Backend()
        stream = backend.stream(TINY, "Hello", max_tokens=50_000)
        for _ in range(3):
            next(stream)
        """,
    "a load waits": """
        backend = Backend(load_wait=1000)
        stream = backend.stream(TINY, "Hello", max_tokens=50_000)
        next(stream)
        def load():
            with contextlib.suppress(BackendClosed):
                backend.load(OTHER)
        spawn(load)
        until(lambda: happened(backend, "load.deferred"))
        """,
    "tokenizers are being staged": """
        import itertools, tempfile
        from pathlib import Path
        tempfile.tempdir = os.environ["MLX_GUARDED_CACHE_DIR"]
        from mlx_guarded_llm.engine.residency.staging import staged_tokenizer
        from mlx_guarded_llm.models.catalog import Catalog
        from mlx_guarded_llm.models.verify import verify
        files = verify(Catalog().resolve(TINY), Path(TINY))
        begun = []
        def stage():
            with contextlib.suppress(FileNotFoundError), staged_tokenizer(files) as folder:
                begun.append(folder)
                for number in itertools.count():
                    (folder / f"{number}.json").touch()
        for _ in range(8):
            spawn(stage)
        until(lambda: len(begun) == 8)
        """,
    "foreign work sleeps": """
        backend = Backend()
        spawn(lambda: backend.run(functools.partial(time.sleep, 0.5)))
        until(lambda: happened(backend, "run.started"))
        """,
    "foreign work called sys.exit": """
        backend = Backend()
        try:
            backend.run(lambda: sys.exit(5))
        except SystemExit as error:
            assert error.code == 5
        assert backend.run(lambda: 1) == 1, "the MLX thread lives"
        """,
    "after errors": """
        backend = Backend()
        for prompt, options in (("", {}), ("Hello", {"logit_bias": {10**6: 1.0}})):
            with contextlib.suppress(InvalidRequest):
                backend.generate(TINY, prompt, **options)
        with contextlib.suppress(ZeroDivisionError):
            backend.run(lambda: 1 / 0)
        """,
    "several backends": """
        backends = [Backend() for _ in range(3)]
        for backend in backends:
            backend.generate(TINY, "Hello", max_tokens=2)
        streams = [backend.stream(TINY, "Hello", max_tokens=50_000) for backend in backends]
        for stream in streams:
            next(stream)
        """,
    "closed twice and by others": """
        backend = Backend()
        backend.generate(TINY, "Hello", max_tokens=2)
        closers = [spawn(backend.close) for _ in range(3)]
        for closer in closers:
            closer.join()
        until(backend.close)
        """,
    "closed inside an event loop": """
        async def main():
            backend = Backend()
            await backend.agenerate(TINY, "Hello", max_tokens=2)
            stream = backend.astream(TINY, "Hello", max_tokens=50_000)
            await anext(stream)
            assert backend.close()
            try:
                async for chunk in stream:
                    pass
            except BackendClosed:
                return
            raise AssertionError("the stream had no end")
        asyncio.run(main())
        """,
    "an event loop with unfinished streams": """
        backend = Backend()
        kept = []
        async def main():
            stream = backend.astream(TINY, "Hello", max_tokens=50_000)
            await anext(stream)
            kept.append(stream)
            kept.append(asyncio.create_task(backend.agenerate(TINY, "Hello", max_tokens=50_000)))
            await asyncio.sleep(0)
        asyncio.run(main())
        """,
    "a handler of atexit closes": """
        import atexit
        backend = Backend()
        atexit.register(lambda: print(backend.close()))  # after ours, for it came before
        backend.generate(TINY, "Hello", max_tokens=2)
        """,
    "leaving with its own code": """
        backend = Backend()
        next(backend.stream(TINY, "Hello", max_tokens=50_000))
        raise SystemExit(3)
        """,
}


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("state", SILENT)
def test_silent(state: str, isolation: str, models: tuple[str, str, str], tmp_path: Path) -> None:
    ended = run_script(tmp_path, SILENT[state], *models, isolation=isolation)
    assert ended.err == ""
    assert ended.code == (3 if "its own code" in state else 0)


def test_a_load_is_given_up_between_two_slices(
    models: tuple[str, str, str], tmp_path: Path
) -> None:
    body = """
    backend = Backend()
    slices = []
    def slowly():
        from mlx_guarded_llm.engine.residency import loading
        cut = loading._slices
        def slow(model, slice_bytes):
            parts = list(cut(model, 1))
            print("in all", len(parts), flush=True)
            for part in parts:
                print("slice", flush=True)
                slices.append(part)
                time.sleep(0.2)
                yield part
        loading._slices = slow
    backend.run(slowly)
    def load():
        with contextlib.suppress(BackendClosed):
            backend.load(TINY)
    spawn(load)
    until(lambda: slices)
    """
    ended = run_script(tmp_path, body, *models)
    assert (ended.code, ended.err) == (0, "")
    first, *slices = ended.out.splitlines()
    assert 0 < slices.count("slice") < int(first.split()[-1])


def test_asked_by_a_handler_of_atexit(models: tuple[str, str, str], tmp_path: Path) -> None:
    body = """
    import atexit
    backend = Backend()
    def late():
        try:
            backend.generate(TINY, "Hello", max_tokens=2)
        except GuardedLLMError:
            print("told")
    atexit.register(late)  # runs after ours
    backend.generate(TINY, "Hello", max_tokens=2)
    """
    ended = run_script(tmp_path, body, *models)
    assert (ended.code, ended.out, ended.err) == (0, "told\n", "")


# ---- errors --------------------------------------------------------------------------


def test_an_exception_of_the_script_is_its_last_word(
    models: tuple[str, str, str], tmp_path: Path
) -> None:
    body = """
    backend = Backend()
    stream = backend.stream(TINY, "Hello", max_tokens=50_000)
    next(stream)
    raise ValueError("of the script")
    """
    ended = run_script(tmp_path, body, *models)
    assert ended.code == 1
    assert ended.last_error == "ValueError: of the script"
    assert ended.is_clean, ended.err


def test_an_error_of_the_library_is_its_last_word(
    models: tuple[str, str, str], tmp_path: Path
) -> None:
    body = """
    backend = Backend()
    backend.generate(SCRIPTED, "word " * 1000)
    """
    ended = run_script(tmp_path, body, *models)
    assert ended.code == 1
    error, see = ended.err.strip().splitlines()[-2:]
    assert error.startswith("mlx_guarded_llm.errors.ContextOverflow")
    assert see.endswith("errors.md#contextoverflow")
    assert ended.is_clean, ended.err


# ---- other ways to run Python --------------------------------------------------------


def test_typed_at_a_prompt(models: tuple[str, str, str], tmp_path: Path) -> None:
    """As in a notebook: cells, a cell run twice, an interrupted cell, then the end."""
    body = """
    import code
    console = code.InteractiveConsole({"Backend": Backend, "os": os, "signal": signal})
    def cell(source):
        console.runsource(source, symbol="exec")
    open_ = "backend = Backend()"
    cell(open_)
    cell(f"print(backend.generate({SCRIPTED!r}, 'Hello').text)")
    cell(open_)
    cell(f"print(backend.generate({SCRIPTED!r}, 'Hello').text)")
    cell(f"stream = backend.stream({TINY!r}, 'Hello', max_tokens=50_000); next(stream)")
    cell("nobody")
    cell(f"stream = backend.stream({TINY!r}, 'Hello', max_tokens=50_000); next(stream)")
    """
    ended = run_script(tmp_path, body, *models)
    assert ended.code == 0
    assert ended.out.splitlines() == [TEXT, TEXT]
    assert ended.last_error == "NameError: name 'nobody' is not defined"
    assert ended.is_clean, ended.err


def test_python_i(models: tuple[str, str, str], tmp_path: Path) -> None:
    """`python -i` with its input at the end leaves as `exit()` does."""
    body = """
    backend = Backend()
    print(backend.generate(SCRIPTED, "Hello").text)
    """
    ended = run_script(tmp_path, body, *models, interpreter=("-i",))
    assert ended.code == 0
    assert ended.out.splitlines()[0] == TEXT
    assert ended.err.strip() in ("", ">>>")  # the prompt, of an input that has ended


def test_under_xdist(models: tuple[str, str, str], tmp_path: Path) -> None:
    """Two workers, a backend in each that nobody closes."""
    test = f"""
    import pytest
    from mlx_guarded_llm import Backend

    backend = Backend()

    @pytest.mark.parametrize("n", range(4))
    def test_answer(n):
        assert backend.generate({models[1]!r}, "Hello").text == {TEXT!r}
        next(backend.stream({models[0]!r}, "Hello", max_tokens=50_000))
    """
    (tmp_path / "test_nested.py").write_text(textwrap.dedent(test))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [
            *command,
            "-p",
            "no:langsmith_plugin",
            "-p",
            "no:asyncio",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        cwd=tmp_path,
        env=None,
    )
    ended = Ended(finished.returncode, finished.stdout, finished.stderr)
    assert ended.code == 0, ended.out
    assert "4 passed" in ended.out
    assert "crashed" not in ended.out
    assert ended.err == ""
