from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import InvalidRequest, ModelNotFound, ModelUnsupported, PullFailed
from mlx_guarded_llm.models import disk, import_gguf
from mlx_guarded_llm.models.gguf import importing
from mlx_guarded_llm.models.processes import Finished
from tests.unit.models.gguf_files import LLAMA, write_gguf


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Finished | Exception], None]:
    """The child writes one file, then ends as told; no MLX runs."""

    def install(end: Finished | Exception) -> None:
        def run(command: list[str], **_: Any) -> Finished:
            Path(command[-1]).joinpath("config.json").write_text("{}")
            if isinstance(end, Exception):
                raise end
            return end

        monkeypatch.setattr(importing, "run_watched", run)

    return install


def test_the_folder_appears_whole(source: Path, tmp_path: Path, converter: Any) -> None:
    converter(Finished(0, ""))
    folder = import_gguf(source, tmp_path / "out" / "model")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_empty_folder_may_be_there(source: Path, tmp_path: Path, converter: Any) -> None:
    converter(Finished(0, ""))
    (tmp_path / "model").mkdir()
    import_gguf(source, tmp_path / "model")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (Finished(1, "ValueError: odd"), "ValueError: odd"),
        (Finished(-9, ""), "killed by SIGKILL"),
        (Finished(-99, ""), "killed by signal 99"),
        (Finished(1, "ImportError: libmlx.so: no such file"), r"libmlx.so.*\[cpu\]"),
        (TimeoutError(), "took more than"),
        (OSError(8, "Exec format error"), "could not be imported"),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(
    source: Path, tmp_path: Path, converter: Any, end: Finished | Exception, message: str
) -> None:
    converter(end)
    with pytest.raises(PullFailed, match=message) as caught:
        import_gguf(source, tmp_path / "out" / "model")
    assert caught.value.hint
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_folder_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    for taken in (tmp_path / "model", source):
        with pytest.raises(InvalidRequest, match="exists already"):
            import_gguf(source, taken)
    assert (tmp_path / "model" / "mine").exists()


def test_nothing_starts_for_a_file_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "run_watched", None)
    with pytest.raises(ModelNotFound):
        import_gguf(tmp_path / "none.gguf", tmp_path / "out")
    write_gguf(tmp_path / "m.gguf", {**LLAMA, "tokenizer.ggml.pre": "odd"})
    with pytest.raises(ModelUnsupported):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_room_is_seen_to_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "run_watched", None)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1_500_000)
    with pytest.raises(PullFailed, match=r"needs 0\.02 GB .* has 0\.00 GB free"):
        import_gguf(source, tmp_path / "out")


def test_a_place_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullFailed, match="cannot be written"):
        import_gguf(source, tmp_path / "file" / "model")
