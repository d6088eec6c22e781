"""The sockets that a server listens on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager


class CannotListen(Exception):
    """A host and a port cannot be listened on; the message says why, and what to give instead."""


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Listen on every address of a host that this machine has, and close the sockets afterwards.

    Raises:
        CannotListen: The host has no such address, or the port is taken on one of them.
    """
    try:
        sockets = _sockets(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} is taken; stop what listens there, or give another, such as --port 4001"
        else:
            problem = f"{error.strerror}; give an address of this machine and a port that you may use"
        raise CannotListen(f"cannot listen on --host {host} --port {port}: {problem}.") from error
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def _sockets(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    error: OSError | None = None
    for family, address in dict.fromkeys((each[0], each[4]) for each in found):
        try:
            sockets.append(socket.create_server(address, family=family))
        except OSError as problem:
            error = OSError(problem.errno, os.strerror(problem.errno or 0))
            # A machine may know ::1 by name and not have it.
            if problem.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    else:
        if sockets:
            return sockets
    for each in sockets:
        each.close()
    raise error or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
