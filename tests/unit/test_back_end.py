from __future__ import annotations

import importlib.metadata

import pytest

from mlx_guarded_llm.back_end import BACK_END_HINT, import_hint, misfits

REQUIRED = [
    "mlx<0.33,>=0.32.2",
    "mlx-lm<0.33,>=0.32.2",
    "mlx-embeddings<0.2,>=0.1; extra == 'embeddings'",
    "mlx[cpu]<0.33,>=0.32.2; sys_platform == 'linux' and extra == 'cpu'",
]


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRED)
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_is_installed_here_fits() -> None:
    assert misfits() == []


@pytest.mark.parametrize("lm", ["0.31.3", "0.33.0", "0.33.0.dev1"])
def test_an_old_or_too_new_mlx_lm_is_named(monkeypatch: pytest.MonkeyPatch, lm: str) -> None:
    install(monkeypatch, mlx="0.32.4", mlx_lm=lm)
    assert misfits() == [f"mlx-lm {lm} is installed, and >=0.32.2,<0.33 is needed"]
    assert "pip install --upgrade mlx-guarded-llm" in import_hint()


def test_otherwise_a_back_end_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mlx="0.32.4")
    assert import_hint() == BACK_END_HINT


def test_from_a_folder_nobody_knows_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert misfits() == []
