"""The thread that decides waits for no disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine._scripts import run_script

BODY = """
    touched, watching = [], False
    DISK = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove",
            "fcntl.flock"}

    def heard(event, arguments):
        if watching and event in DISK and threading.current_thread().name == "mlx-guarded-dispatch":
            touched.append((event, str(arguments[0])))

    sys.addaudithook(heard)
    with Backend(offline=True) as backend:
        backend.generate(TINY, "Hello", max_tokens=2)
        watching = True
        alone = backend.generate(TINY, "Hello", max_tokens=300).text
        backend.load(OTHER)
        backend.unload(OTHER)
        backend.run(int)
        if backend.worker_pid:
            stream = backend.stream(TINY, "Hello", max_tokens=300)
            text = next(stream).text
            os.kill(backend.worker_pid, signal.SIGKILL)
            assert text + "".join(chunk.text for chunk in stream) == alone
        watching = False
    print(touched)
    """


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_it_opens_no_file(tmp_path: Path, models: tuple[str, ...], isolation: str) -> None:
    """In a warm request, a load, an unload, a death and what follows it."""
    ended = run_script(tmp_path, BODY, *models, isolation=isolation)
    assert ended.out.splitlines() == ["[]"], ended.err
    assert (tmp_path / "measured.json").exists(), "a thread of its own wrote it"
    assert (tmp_path / "crashes.json").exists() == (isolation == "process")
