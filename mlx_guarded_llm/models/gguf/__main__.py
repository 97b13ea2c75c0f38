"""python -m mlx_guarded_llm.models.gguf SRC DST [--dequantize]: convert, then exit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...errors import GuardedLLMError
from .convert import convert


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mlx_guarded_llm.models.gguf")
    parser.add_argument("source", type=Path, help="a GGUF file of the llama architecture")
    parser.add_argument("folder", type=Path, help="an empty or new folder for the MLX model")
    parser.add_argument("--dequantize", action="store_true", help="write bfloat16 weights")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if any(given.folder.iterdir()):
        parser.error(f"{given.folder} is not empty")
    try:
        convert(given.source, given.folder, dequantize=given.dequantize)
    except GuardedLLMError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
