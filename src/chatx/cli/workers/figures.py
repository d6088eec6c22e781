"""The figures of several workers as one answer: each sample says by the label `node` whose it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

UP = "chatx_up"
"""The figure that is 0 where a worker does not answer."""


def merged(texts: Mapping[str, str | None]) -> bytes:
    """Return figures as one text.

    Args:
        texts: By a node's name its figures in Prometheus' text format, or None where it did not answer.
    """
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, str | None]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for node, text in self._texts.items():
            for one in [] if text is None else text_string_to_metric_families(text):
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    family.add_sample(sample.name, {**sample.labels, "node": node}, sample.value)
        up = families.setdefault(UP, Metric(UP, "1 where the chat takes work, else 0.", "gauge"))
        for node, text in self._texts.items():
            if text is None:
                up.add_sample(UP, {"node": node}, 0)
        yield from families.values()
