"""The end of a process whose supervisor is gone, however that ended.

It is seen by a thread, by the end of a channel that the supervisor alone holds open: so it is seen also by a process
whose event loop hangs or does not run yet, and on every system.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time


def end_with(channel: socket.socket, patience_s: float) -> None:
    """Have this process told to drain when the other end of a channel is gone, and ended where that takes too long.

    Args:
        channel: A stream socket; what comes on it is left to others.
        patience_s: Seconds for the drain.
    """
    threading.Thread(target=_end, args=(channel.fileno(), patience_s), daemon=True).start()


def _end(channel: int, patience_s: float) -> None:
    waiting = select.poll()
    waiting.register(channel, 0)  # a hangup is told whatever is asked for
    waiting.poll()
    # Of this nothing is logged: whoever wrote the log is gone too.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience_s)
    os._exit(1)
