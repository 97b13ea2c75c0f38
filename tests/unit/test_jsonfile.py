from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.jsonfile import read_json, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "it.json"
    write_json(file, {"a": [1, None, "ü"]})
    assert read_json(file) == {"a": [1, None, "ü"]}
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_file_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "it.json").write_bytes(content)
    assert read_json(tmp_path / "it.json") is None
    assert read_json(tmp_path) is None, "a folder neither"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "it.json"
    write_json(file, 1)

    def full(value: Any, stream: Any, **_: Any) -> None:
        stream.write("[1, 2")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("json.dump", full)
    write_json(file, 2)
    assert read_json(file) == 1
    assert list(tmp_path.iterdir()) == [file]
