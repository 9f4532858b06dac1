"""Held-out metrics: the example-weighted mean over agents, and its words."""

from typing import Any

from fedpipe_profiles.values import MAX_COUNT
from fedpipe_wire.message_values import Metrics


def combine_metrics(metrics: list[Metrics]) -> Metrics | None:
    """The example-weighted mean of the agents' metrics, or None where there is none."""
    if not metrics:
        return None
    weights = [metric.examples for metric in metrics]
    accuracies = [metric.accuracy for metric in metrics if metric.accuracy is not None]
    return Metrics(
        loss=_mean([metric.loss for metric in metrics], weights),
        accuracy=_mean(accuracies, weights) if len(accuracies) == len(metrics) else None,
        examples=min(sum(weights), MAX_COUNT),
    )


def _mean(numbers: list[float], weights: list[int]) -> float:
    """The weighted mean; rounding must not take it beyond the numbers themselves, and so beyond what may be sent."""
    mean = sum(number * weight for number, weight in zip(numbers, weights, strict=True)) / sum(weights)
    return min(max(mean, min(numbers)), max(numbers))


def metrics_data(metric: Metrics | None) -> dict[str, Any]:
    """A metric as plain data; empty where nobody evaluated."""
    return metric.model_dump(exclude_none=True) if metric is not None else {}


def metrics_text(who: str, metric: Metrics | None) -> str:
    """A metric in words."""
    if metric is None:
        return f"{who}: nobody evaluated"
    accuracy = "" if metric.accuracy is None else f", accuracy {metric.accuracy:.3f}"
    return f"{who}: held-out loss {metric.loss:.3f}{accuracy} on {metric.examples} examples"
