"""Recall and search time over churn, as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

from bench.engine.churn import Point

mpl.use("Agg")

from matplotlib import pyplot as plt


def draw(points: Sequence[Point], directory: Path) -> list[Path]:
    """Write the two plots; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    return [
        _plot(points, directory / "churn-recall.png", "recall@10", lambda point: point.recall),
        _plot(
            points, directory / "churn-search.png", "search (labels and scores) p50, ms", lambda point: point.index.p50
        ),
    ]


def _plot(points: Sequence[Point], path: Path, label: str, value: Callable[[Point], float]) -> Path:
    figure, axes = plt.subplots(figsize=(7, 3.6), dpi=110)
    for name in dict.fromkeys(point.name for point in points):
        own = sorted((point for point in points if point.name == name), key=lambda point: point.churn)
        style = "--" if name == "fresh graph" else "-"
        axes.plot([p.churn for p in own], [value(p) for p in own], style, marker="o", markersize=4, label=name)
    axes.set_xlabel("times every document has changed")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return path
