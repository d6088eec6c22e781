"""An error of one node, as it comes back to the one that asked."""

from __future__ import annotations

from chatx.cluster.rpc import Refused
from chatx.errors import ERRORS, ChatError


def refused(error: ChatError) -> Refused:
    """Return an error as it travels."""
    return Refused(error.code[:64], error.reason[:1000], error.retry_after)


def error_of(answer: Refused) -> ChatError:
    """Return the error that another node has answered with; a code that is not known here is kept nevertheless."""
    kind = ERRORS.get(answer.code, ChatError)
    error = kind(answer.reason, retry_after=answer.retry_after)
    if error.code != answer.code:
        vars(error)["code"] = answer.code  # of an application's own class
    return error
