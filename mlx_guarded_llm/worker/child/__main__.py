"""The worker's program. `spawn` runs it by its path, so that it is found wherever it lies.

With the argument "rank" it is the program of another rank on the same machine.
"""

import importlib.util
import os
import sys
import typing  # noqa: F401 - see `main`


def main() -> None:
    paths = os.environ.pop("MLX_GUARDED_WORKER_PATH", "")
    root, *others = paths.split("\n")
    if not root:
        sys.exit("mlx_guarded_llm starts this program by itself; it has no other use.")
    # Only the package itself is looked for in its folder first: nothing else there may
    # shadow a module. What the package's first lines need has been imported above.
    sys.path.insert(0, root)
    importlib.import_module("mlx_guarded_llm")
    del sys.path[0]
    if importlib.util.find_spec("mlx_lm") is None:  # it is found where the parent looks
        sys.path += [path for path in others if path not in sys.path]
    if sys.argv[1:] == ["rank"]:
        importlib.import_module("mlx_guarded_llm.worker.rank.main").main()
    child = importlib.import_module("mlx_guarded_llm.worker.child.main")
    child.main(*map(int, sys.argv[1:]))


if __name__ == "__main__":
    main()
