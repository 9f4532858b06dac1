"""Held-out metrics: the example-weighted mean over agents, and its words."""

from typing import Any

from fedpipe_wire.messages import Metrics


def combine_metrics(metrics: list[Metrics]) -> Metrics | None:
    """The example-weighted mean of the agents' metrics, or None where there is none."""
    total = sum(metric.examples for metric in metrics)
    if total == 0:
        return None
    accuracies = [metric.accuracy for metric in metrics]
    accuracy = None
    if None not in accuracies:
        accuracy = sum((m.accuracy or 0.0) * m.examples for m in metrics) / total
    return Metrics(loss=sum(m.loss * m.examples for m in metrics) / total, accuracy=accuracy, examples=total)


def metrics_data(metric: Metrics | None) -> dict[str, Any]:
    """A metric as plain data; empty where nobody evaluated."""
    return metric.model_dump(exclude_none=True) if metric is not None else {}


def metrics_text(who: str, metric: Metrics | None) -> str:
    """A metric in words."""
    if metric is None:
        return f"{who}: nobody evaluated"
    accuracy = "" if metric.accuracy is None else f", accuracy {metric.accuracy:.3f}"
    return f"{who}: held-out loss {metric.loss:.3f}{accuracy} on {metric.examples} examples"
