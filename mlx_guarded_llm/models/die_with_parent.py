"""Run a command that does not outlive its parent. `processes` runs this file by its path.

python die_with_parent.py PARENT COMMAND [ARGUMENT...]
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_INTERVAL = 0.25  # seconds between checks


def main(parent: int, command: list[str]) -> None:
    """Become the command, or wait for it, until it or the parent ends."""
    if sys.platform == "linux":
        # The kernel does it, also after exec().
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            os.execvp(command[0], command)
        return
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            if os.getppid() != parent:
                child.kill()
            time.sleep(_INTERVAL)
    code = child.returncode
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
