from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mlx_guarded_llm.models.files import (
    UnreadableFile,
    read_bytes,
    read_head,
    read_object,
    read_optional,
    read_text,
)


def test_a_small_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"é": 1}', encoding="utf-8")
    assert read_object(file) == {"é": 1}
    assert read_text(file) == '{"é": 1}'
    assert read_head(file, 2) == b'{"'
    link = tmp_path / "b.json"
    link.symlink_to(file)
    assert read_object(link) == {"é": 1}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "[" * 10**5, '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_json_object(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UnreadableFile, match=r"a\.json is not"):
        read_object(file)


def test_text_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "a.jinja"
    file.write_bytes(b"\xff")
    with pytest.raises(UnreadableFile, match="UTF-8"):
        read_text(file)


def test_a_file_that_may_be_missing(tmp_path: Path) -> None:
    assert read_optional(tmp_path / "none.json") == {}
    (tmp_path / "none.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(UnreadableFile, match="missing"):
        read_optional(tmp_path / "none.json")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    fifo, device, folder = tmp_path / "fifo", tmp_path / "device", tmp_path / "folder"
    os.mkfifo(fifo)
    device.symlink_to("/dev/zero")
    folder.mkdir()
    for path in (fifo, device, folder):
        with pytest.raises(UnreadableFile, match="not a regular file"):
            read_bytes(path)


def test_a_pipe_that_takes_a_files_place_does_not_hold_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr("mlx_guarded_llm.models.files.check_regular", lambda path, limit: 0)
    caught: list[Exception] = []

    def read() -> None:
        try:
            read_bytes(fifo)
        except UnreadableFile as error:
            caught.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(30)
    assert len(caught) == 1


def test_a_file_of_no_sensible_size(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as content:
        content.truncate(2**40)
    with pytest.raises(UnreadableFile, match=f"has {2**40} bytes; at most"):
        read_object(file)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
def test_a_name_that_no_file_has(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableFile):
        read_bytes(tmp_path / name)
