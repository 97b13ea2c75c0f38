"""What lies beside the user's program, or is broken beside us, does not end the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeModel

ASK = """
import sys
from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import GuardedLLMError

def import_torch():
    try:
        import torch
    except OSError as error:
        return str(error)

with Backend(isolation=sys.argv[1], offline=True) as backend:
    try:
        print("answer", repr(backend.generate(sys.argv[2], "Hello", max_tokens=4).text))
    except GuardedLLMError as error:
        print(type(error).__name__, error)
    if len(sys.argv) > 3:
        print(backend.run(import_torch))
"""
NEEDED = ("mlx_lm", "transformers", "tokenizers")


def ask(folder: Path, *words: str, path: Path | None = None) -> str:
    """What a program in that folder prints."""
    program = folder / "program.py"
    program.write_text(ASK)
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    command = [sys.executable, str(program), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=True
    ).stdout


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_packages_that_cannot_be_imported(tmp_path: Path, tiny: MakeModel, isolation: str) -> None:
    beside = tmp_path / "site"
    broken = {"torch": "torch", "sklearn": "scikit_learn", "flax": "flax", "PIL": "pillow"}
    for name, dist in broken.items():
        (beside / name).mkdir(parents=True)
        (beside / name / "__init__.py").write_text(f"raise OSError('lib{name}.so: broken')")
        info = beside / f"{dist}-2.9.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 2.9.0\n")
    said = ask(tmp_path, isolation, tiny(), "torch", path=beside)
    assert said.startswith("answer") and "libtorch.so: broken" in said, "functions still see it"


def test_files_of_the_names_of_packages(tmp_path: Path, tiny: MakeModel) -> None:
    for name in NEEDED:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise RuntimeError('nor this one')")
    assert ask(tmp_path, "process", tiny()).startswith("answer")


def test_in_this_process_the_file_is_named(tmp_path: Path, tiny: MakeModel) -> None:
    (tmp_path / "mlx_lm.py").write_text("")
    said = ask(tmp_path, "thread", tiny())
    assert said.startswith("EngineDied") and f"{tmp_path / 'mlx_lm.py'} is taken" in said
