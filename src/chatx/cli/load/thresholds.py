"""What a measurement must keep, as `p99<50ms`."""

from __future__ import annotations

import argparse
import operator
import re
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq, "=": operator.eq,
}  # fmt: skip
TIME_UNITS: Final[Mapping[str, float]] = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
SIZE_UNITS: Final[Mapping[str, float]] = {"KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3}
_UNITS: Final[Mapping[str, float]] = {"": 1.0, **TIME_UNITS, **SIZE_UNITS}
_WRITTEN: Final = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(<=|>=|==|<|>|=)\s*([0-9]+(?:\.[0-9]+)?)\s*(\w*)\s*")


class Threshold(Struct, frozen=True):
    """A bound on one figure.

    Attributes:
        text: As it was written.
        name: The figure's.
        operator: How it is compared.
        bound: With what, in seconds, bytes, or as it is.
        unit: In which the bound was written.
    """

    text: str
    name: str
    operator: str
    bound: float
    unit: str = ""

    def holds(self, figures: Mapping[str, float | None]) -> bool:
        """Return whether it is kept; not where there is no such figure."""
        value = figures.get(self.name)
        return value is not None and _OPERATORS[self.operator](value, self.bound)


def threshold(text: str) -> Threshold:
    """Return what is written, as `argparse` has it.

    Raises:
        ArgumentTypeError: It is none.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None or found[4] not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no threshold; give one as 'p99<50ms', 'memory<200MiB' or 'rate>1000'"
        )
    return Threshold(text, found[1], found[2], float(found[3]) * _UNITS[found[4]], found[4])


def name_of(text: str) -> str:
    """Return the name of the figure of which a threshold is, as it was written."""
    return re.split(r"[<>=]", text)[0].strip()
