"""Which exceptions are the process's own: what a signal's handler raised amid somebody else's code.

Whoever contains what foreign code raises asks here first: Ctrl+C ends the process, whatever code it meets.
"""

from __future__ import annotations

import functools
import opcode
import signal
from types import CodeType, TracebackType

# `raise` and the re-raise of a `finally` or a `with`: where code of its own raised the exception.
_RAISING = frozenset((opcode.opmap["RAISE_VARARGS"], opcode.opmap["RERAISE"]))


def from_signal(error: BaseException) -> bool:
    """Return whether a signal's handler raised the error: a real Ctrl+C, or `sys.exit` in an application's handler.

    A `KeyboardInterrupt` that other code raised is none of a handler's. Where that cannot be told, the answer is True.
    """
    if isinstance(error, Exception):
        return False
    handlers = _handlers()
    place: TracebackType | None = error.__traceback__
    last = place
    while place is not None:
        if place.tb_frame.f_code in handlers:
            return True
        last, place = place, place.tb_next
    if not isinstance(error, KeyboardInterrupt):
        return False
    # Python's own handler has no frame: it raises amid whatever instruction was running.
    return last is None or last.tb_frame.f_code.co_code[last.tb_lasti] not in _RAISING


def _handlers() -> set[CodeType]:
    """Return the code of every signal handler that is written in Python."""
    codes = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            codes.add(code)
    return codes
