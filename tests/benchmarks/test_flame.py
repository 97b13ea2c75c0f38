"""What is made of py-spy's samples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import flame

THREAD = f'thread (0x7F): "{flame.THREAD}"'


def raw(*lines: tuple[str, int]) -> str:
    """As py-spy writes it."""
    return "\n".join(f"{stack} {count}" for stack, count in lines)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of our package, whose lines call MLX."""
    file = tmp_path / "mlx_guarded_llm" / "engine" / "decode" / "batch.py"
    file.parent.mkdir(parents=True)
    file.write_text("mx.async_eval(logits)\nmx.eval(inputs)\ntokens = inputs.tolist()\n")
    return file


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flame, "ROOTS", [tmp_path, tmp_path / "site"])


def test_the_stacks_of_the_mlx_thread_alone() -> None:
    text = raw((f"{THREAD};run (a.py:1);step (b.py:2)", 3), ('thread (0x1): "other";x (c.py:1)', 9))
    assert dict(flame._stacks(text)) == {("run (a.py:1)", "step (b.py:2)"): 3}


def test_shares_go_to_the_innermost_place_and_to_waiting(source: Path) -> None:
    loop = "_run (/usr/lib/threading.py:5)"
    nn = f"__call__ ({source.parents[3]}/site/mlx/nn/layers/linear.py:7)"
    text = raw(
        (f"{THREAD};{loop};_step ({source}:1)", 1),
        (f"{THREAD};{loop};_step ({source}:2)", 4),
        (f"{THREAD};{loop};_step ({source}:3)", 2),
        (f"{THREAD};{loop};_step ({source}:3);{nn}", 2),
        (f"{THREAD};{loop}", 1),
    )
    assert flame.shares(dict(flame._stacks(text))) == {
        "waiting for MLX": 0.4,
        "reading values": 0.2,
        "the model's graph": 0.2,
        "handing work to MLX": 0.1,
        "the thread's loop": 0.1,
    }


def test_files_are_named_as_they_are_imported(source: Path) -> None:
    assert flame.short(f"a.b ({source}:3)") == "a.b (mlx_guarded_llm/engine/decode/batch.py)"
    assert flame.short("run (/somewhere/else/threading.py:3)") == "run (threading.py)"
    assert flame.short("<native>") == "<native>"
    assert flame.short("a.b (mlx_lm/generate.py)") == "a.b (mlx_lm/generate.py)"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    stacks: dict[flame.Stack, int] = {
        ("run (a.py:1)", "step (b.py:2)"): 3,
        ("run (a.py:1)", "wait (b.py:3)"): 1,
    }
    file = tmp_path / "flame.svg"
    flame.plot(file, stacks, title="the MLX thread")
    assert "<svg" in file.read_text()


@pytest.mark.parametrize("tool", ["", "#!/bin/sh\necho not allowed >&2\nexit 1\n"])
def test_without_samples_the_reason_is_told(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tool:
        (tmp_path / "py-spy").write_text(tool)
        (tmp_path / "py-spy").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(flame.CannotSample, match="not allowed" if tool else "No such file"):
        flame.sample(1, 1.0)


def test_a_process_without_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = "#!/bin/sh\nwhile [ $1 != --output ]; do shift; done; echo 'main (a.py:1) 3' > $2\n"
    (tmp_path / "py-spy").write_text(write)
    (tmp_path / "py-spy").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(flame.CannotSample, match=flame.THREAD):
        flame.sample(1, 1.0)
