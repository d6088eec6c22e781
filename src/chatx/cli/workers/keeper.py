"""The broker's keeper: a program that runs a server which ends with the process that started this one.

It is run as a file of its own, without chatx, by `python -I -S keeper.py PID FD PROGRAM ARGUMENT...`: PID is the
process with which it ends, FD a descriptor whose other end that process holds.

On Linux the kernel ends the server, and nothing of this stays beside it. Elsewhere this waits for the other end of
the descriptor to be closed, which no process can fail to do.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

ENDS_WITHIN_S = 5.0
"""Seconds for the server to end by itself, where this has to end it."""

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the server, or keep it; it does not return."""
    parent, descriptor, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    if sys.platform == "linux" and _dies_with(parent):
        os.execv(command[0], command)  # noqa: S606 # there is nothing in it for a shell
    sys.exit(keep(descriptor, command))


def keep(descriptor: int, command: list[str]) -> int:
    """Run a server until it ends or the other end of the descriptor is closed, and return its exit status."""
    ended, told = os.pipe()
    # Who waits for two things at once needs the end of the process to be a third descriptor.
    with subprocess.Popen(command, pass_fds=(told,), process_group=0) as server:
        os.close(told)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda number, _: server.send_signal(number))
        waiting = select.poll()
        waiting.register(descriptor, 0)  # a hangup is told whatever is asked for
        waiting.register(ended, 0)
        waiting.poll()
        if server.poll() is None:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(ENDS_WITHIN_S)
            if server.poll() is None:
                server.kill()
        return server.wait()


def _dies_with(parent: int) -> bool:
    """Have the kernel send this process SIGTERM when its parent ends; return whether it will, also after `execv`."""
    try:
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            return False
    except (ImportError, OSError, AttributeError):
        return False
    if os.getppid() != parent:  # it has ended meanwhile, and the kernel tells no more
        sys.exit(1)
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
