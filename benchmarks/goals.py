"""A goal that a figure has to reach, and the table that says which of them are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Figures = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        name: What is measured.
        needs: The figure of chatx.
        reference: The figure it is divided by, or None: then the goal is one of the figure itself.
        least: Whether the goal is a lower bound; otherwise it is an upper one.
        bound: The goal.
        unit: As a format of one number.
    """

    name: str
    needs: str
    reference: str | None
    bound: float
    unit: str
    least: bool = False
    scale: float = 1.0

    def has(self, figures: Figures) -> bool:
        """Return whether it was measured."""
        return self.needs in figures

    def value(self, figures: Figures) -> float:
        """Return what the bound is compared with."""
        value = figures[self.needs]
        return value * self.scale if self.reference is None else value / figures[self.reference]

    def met(self, figures: Figures) -> bool:
        """Return whether the goal is met."""
        value = self.value(figures)
        return value >= self.bound if self.least else value <= self.bound

    def row(self, figures: Figures) -> str:
        """Return the line of the table."""
        own = self.unit.format(figures[self.needs] * self.scale)
        other = ratio = "–"
        bound = self.unit.format(self.bound)
        if self.reference is not None:
            other = self.unit.format(figures[self.reference] * self.scale)
            ratio = f"{self.value(figures):.2f}×"
            bound = f"{self.bound:g}×"
        sign = "≥" if self.least else "≤"
        return f"| {self.name} | {own} | {other} | {ratio} | {sign} {bound} | {'yes' if self.met(figures) else 'no'} |"


def table(goals: Sequence[Goal], figures: Figures) -> str:
    """Return the table of the goals that were measured."""
    lines = ["| what | chatx | reference | ratio | goal | met |", "|---|---|---|---|---|---|"]
    lines += [goal.row(figures) for goal in goals if goal.has(figures)]
    return "\n".join(lines) + "\n"
