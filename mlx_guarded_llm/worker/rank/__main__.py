"""The program of a rank on another machine, where the library is installed."""

import sys

from ...version import __version__

if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"{__version__}\n")
    else:
        from .main import main

        main()
