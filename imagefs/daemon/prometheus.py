"""Prometheus's text format, made of the figures that ``imagefs.daemon.metrics`` gives.

The figures are plain numbers already, so nothing is registered and nothing observed: a collector hands them to ``prometheus_client`` when
somebody looks. That is imported then, since a daemon that nobody scrapes, and each start of a worker, would pay for it in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from imagefs.daemon.metrics import COUNTER, METRICS, Metric

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """A collector over figures. A key that they lack, because another version made them, is left out."""

    def __init__(self, figures: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        """``figures`` are what ``stats`` has returned; each sample gets ``labels`` too."""
        self._figures = figures
        self._labels = labels

    def collect(self) -> Iterator[Family]:
        """Yield a family of samples for each metric. Called by ``prometheus_client``."""
        # See the module.
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        for metric in METRICS:
            if metric.key not in self._figures:
                continue
            meaning = f"{metric.unit[:1].upper()}{metric.unit[1:]}: {metric.meaning.replace('`', '')}."
            kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            own = [metric.label] if metric.label else []
            family = kind(metric.name, meaning, labels=[*self._labels, *own])
            for values, number in _samples(metric, self._figures[metric.key]):
                family.add_metric([*self._labels.values(), *values], number)
            yield family


def _samples(metric: Metric, figure: Any) -> Iterator[tuple[list[str], float]]:
    if metric.label:
        for value, number in figure.items():
            yield [value], number
    else:
        yield [], len(figure) if isinstance(figure, list) else figure


def load_library() -> None:
    """Import what is needed: some 20 milliseconds, or 70 where nothing has loaded what it loads."""
    import_module("prometheus_client.exposition")


def exposition(figures: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> str:
    """Return what ``stats`` has returned in Prometheus's text format, version 0.0.4; each sample with ``labels`` too."""
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415 # see the module

    return generate_latest(Figures(figures, labels or {})).decode()
