"""What transformers learns from its source files is read once for all processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.engine import import_structure

COUNT = """
import sys

opened = 0

def count(event, arguments):
    global opened
    path = str(arguments[0]) if event == "open" else ""
    opened += "transformers" in path and path.endswith(".py")

sys.addaudithook(count)
from mlx_guarded_llm.engine.importing import import_residents
import_residents()
import transformers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
print(opened, len(dir(transformers)))
"""


def files_opened(cache: Path) -> list[int]:
    """Source files of transformers that a process opened, and the names that it has."""
    environment = {**os.environ, "MLX_GUARDED_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


def test_a_second_process_reads_none_of_the_files(tmp_path: Path) -> None:
    first, names = files_opened(tmp_path)
    assert first > 1000
    second, same = files_opened(tmp_path)
    assert second < 100
    assert same == names


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    opened, names = files_opened(tmp_path / "file")
    assert opened > 1000 and names > 1000


def test_it_comes_back_as_it_was() -> None:
    from transformers.utils import import_utils

    models = Path(import_utils.__file__).parents[1] / "models"
    read = import_utils.create_import_structure_from_path(str(models))
    stored = json.loads(json.dumps(import_structure._encoded(read)))
    assert import_structure._decoded(stored) == read


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_GUARDED_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "transformers" / "models"
    (folder / "llama").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder.parent / "__init__.py").touch()
    return folder


class Reader:
    """Counts how often it had to read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self, path: Any) -> dict[Any, Any]:
        self.reads += 1
        return {frozenset({"torch"}): {"a": {"A", "B"}}, "llama": {frozenset(): {"b": {"C"}}}}


def test_it_is_read_again_when_something_has_changed(models: Path, tmp_path: Path) -> None:
    reader = Reader()
    read = import_structure._remembering(reader)
    assert read(models / "__init__.py") == read(str(models)) == Reader()(models)
    assert reader.reads == 1
    (models / "mistral").mkdir()
    read(models)
    assert reader.reads == 2
    (models.parent / "__init__.py").write_text("# another version")
    read(models)
    assert reader.reads == 3
    read(models / "llama")  # a folder within is read as ever
    assert reader.reads == 4
    read(models)
    assert reader.reads == 4


@pytest.mark.parametrize("broken", ["", "[]", "{", '{"state": 1}', "no structure", "no sense"])
def test_a_broken_file_is_made_anew(models: Path, tmp_path: Path, broken: str) -> None:
    reader = Reader()
    read = import_structure._remembering(reader)
    read(models)
    (file,) = (tmp_path / "cache").iterdir()
    kept = json.loads(file.read_text())
    if broken == "no structure":
        del kept["structure"]
    elif broken == "no sense":
        kept["structure"]["files"] = [[5, 5]]
    file.write_text(json.dumps(kept) if broken.startswith("no ") else broken)
    assert read(models) == Reader()(models)
    assert reader.reads == 2
    assert read(models) == Reader()(models)
    assert reader.reads == 2
