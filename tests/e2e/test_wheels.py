"""What a user installs: the wheels, without the source tree they were built from."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    "mlx_guarded_llm": "mlx_guarded_llm",
    "langchain_mlx_guarded": "langchain_mlx_guarded",
    "llama_index_llms_mlx_guarded": "llama_index/llms/mlx_guarded",
    "llama_index_embeddings_mlx_guarded": "llama_index/embeddings/mlx_guarded",
    "mlx_guarded_ray": "mlx_guarded_ray",
}


def run(*command: str | Path, **environment: str) -> str:
    ended = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    run(
        *(uv, "build", "--all-packages", "--no-build-isolation", "--wheel", "--offline"),
        *("--python", sys.executable, "--out-dir", folder),
    )
    return {wheel.name.split("-")[0]: wheel for wheel in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels in it and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--disable-pip-version-check", "--target", folder, *wheels.values())
    return folder


def python(installed: Path, code: str) -> str:
    """Run code that sees the wheels and their dependencies, but no editable install.

    A folder on PYTHONPATH has its .pth files ignored, which are what such an install is.
    """
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    return run(base, "-P", "-c", code, PYTHONPATH=path, PYTHONNOUSERSITE="1")


def test_there_are_no_others(wheels: dict[str, Path]) -> None:
    assert wheels.keys() == MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_a_wheel_holds_its_package_and_no_more(wheels: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(wheels[name]) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        (metadata,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        text = wheel.read(metadata).decode()
    package = MODULES[name]
    assert all(n.startswith(f"{package}/") or ".dist-info/" in n for n in names)
    assert f"{package}/__init__.py" in names
    assert f"{package}/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not {"llama_index/__init__.py", "llama_index/llms/__init__.py"} & set(names)
    assert "Description-Content-Type: text/markdown" in text
    assert "holds the name only" not in text


def test_the_classes_come_from_the_wheels(installed: Path) -> None:
    out = python(
        installed,
        "import sys\n"
        "from mlx_guarded_llm import Backend, GuardedLLM\n"
        "from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings\n"
        "from llama_index.llms.mlx_guarded import MLXGuarded\n"
        "from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding\n"
        "assert 'mlx' not in sys.modules\n"
        "for cls in (GuardedLLM, ChatMLXGuarded, MLXGuardedEmbeddings, MLXGuarded,"
        " MLXGuardedEmbedding):\n"
        "    print(sys.modules[cls.__module__].__file__)",
    )
    assert all(line.startswith(str(installed)) for line in out.split())


def test_an_answer_comes_through_both_adapters(installed: Path, tmp_path: Path) -> None:
    out = python(
        installed,
        "from mlx_guarded_llm import Backend\n"
        "from mlx_guarded_llm.testing.tiny import make_scripted_model\n"
        "from langchain_mlx_guarded import ChatMLXGuarded\n"
        "from llama_index.llms.mlx_guarded import MLXGuarded\n"
        f"model = str(make_scripted_model({str(tmp_path / 'model')!r}, 'It is 42.'))\n"
        "with Backend() as backend:\n"
        "    print(ChatMLXGuarded(model=model, backend=backend).invoke('?').content)\n"
        "    print(MLXGuarded(model=model, backend=backend).complete('?').text)\n",
    )
    assert out.splitlines() == ["It is 42.", "It is 42."]
