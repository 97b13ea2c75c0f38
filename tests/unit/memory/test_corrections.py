from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from mlx_guarded_llm.memory.corrections import Corrections
from mlx_guarded_llm.memory.footprint import Footprint

PREDICTED = Footprint(weight_bytes=1000, kv_bytes_per_token=2, activation_bytes=3)


def test_without_a_measurement_the_prediction_stays(tmp_path: Path) -> None:
    assert Corrections(tmp_path / "m.json").apply("a", PREDICTED) == PREDICTED


def test_measured_weights_replace_and_outlive_the_process(tmp_path: Path) -> None:
    Corrections(tmp_path / "deep" / "m.json").record("a", weight_bytes=900)
    again = Corrections(tmp_path / "deep" / "m.json")
    assert again.apply("a", PREDICTED).weight_bytes == 900
    assert again.apply("b", PREDICTED) == PREDICTED
    again.record("a", weight_bytes=950)
    assert again.apply("a", PREDICTED).weight_bytes == 950


def test_a_higher_peak_raises_the_prefill_and_a_lower_one_does_not(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path / "m.json")
    corrections.record("a", peak_bytes=5000)
    corrections.record("a", peak_bytes=400)
    corrected = corrections.apply("a", PREDICTED)
    assert corrected.prefill_bytes(100) == 5000
    assert corrected.prefill_bytes(10_000) == PREDICTED.prefill_bytes(10_000)
    assert corrected.weight_bytes == 1000


@pytest.mark.parametrize("value", [0, -1])
def test_senseless_measurements_are_ignored(tmp_path: Path, value: int) -> None:
    corrections = Corrections(tmp_path / "m.json")
    corrections.record("a", weight_bytes=value, peak_bytes=value)
    assert corrections.apply("a", PREDICTED) == PREDICTED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": 3}',
        b'{"a": {"weight_bytes": "many", "peak_bytes": -3}}',
        b'{"a": {"weight_bytes": true}}',
    ],
)
def test_a_broken_file_is_no_measurement_and_heals(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.json"
    file.write_bytes(content)
    corrections = Corrections(file)
    assert corrections.apply("a", PREDICTED) == PREDICTED
    corrections.record("a", weight_bytes=7)
    assert Corrections(file).apply("a", PREDICTED).weight_bytes == 7


def test_the_number_of_entries_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    corrections = Corrections(file)
    for i in range(300):
        corrections.record(str(i), weight_bytes=i + 1)
    assert len(json.loads(file.read_text())) == 256
    assert corrections.apply("299", PREDICTED).weight_bytes == 300
    assert corrections.apply("0", PREDICTED) == PREDICTED


def test_two_writers_keep_each_others_entries(tmp_path: Path) -> None:
    one, other = Corrections(tmp_path / "m.json"), Corrections(tmp_path / "m.json")
    one.record("a", weight_bytes=1)
    other.record("b", weight_bytes=2)
    fresh = Corrections(tmp_path / "m.json")
    assert fresh.apply("a", PREDICTED).weight_bytes == 1
    assert fresh.apply("b", PREDICTED).weight_bytes == 2


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    corrections = Corrections(tmp_path / "file" / "m.json")
    corrections.record("a", weight_bytes=7)
    assert corrections.apply("a", PREDICTED).weight_bytes == 7


def test_threads_may_record_at_once(tmp_path: Path) -> None:
    corrections = Corrections(tmp_path / "m.json")
    threads = [
        threading.Thread(target=corrections.record, args=(str(i),), kwargs={"weight_bytes": i + 1})
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(json.loads((tmp_path / "m.json").read_text())) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]
