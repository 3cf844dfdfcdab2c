"""Draw charts as SVG with matplotlib, where the library of interactive charts is not installed."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from lssvwm.agent.report.charts import Chart, Series

SIZE = 6.4, 3.0
"""Inches of a chart with lines."""
ROW = 0.32
"""Inches of a row with an interval."""


def draw(chart: Chart) -> str:
    """Return a chart as the address of an image that holds its data."""
    from matplotlib.figure import Figure

    height = 1.2 + ROW * len(chart.rows) if chart.rows else SIZE[1]
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axis = figure.subplots()
    for series in chart.series:
        axis.errorbar(
            series.x,
            series.y,
            **_errors(chart, series),
            color=series.colour,
            alpha=0.3 if series.faint else 1.0,
            linestyle="none" if chart.rows else series.dash,
            marker="o" if series.low else None,
            capsize=3,
        )
    axis.set_xlabel(chart.x_label)
    axis.set_ylabel(chart.y_label)
    axis.grid(alpha=0.3)
    if chart.rows:
        names = [name.replace("$", r"\$") for name in chart.rows]  # no mathematics
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _errors(chart: Chart, series: Series) -> dict[str, Any]:
    """Return the lengths of the intervals on both sides of the means."""
    if not series.low:
        return {}
    means = np.array(series.x if chart.rows else series.y)
    low, high = np.array(series.low), np.array(series.high)
    return {"xerr" if chart.rows else "yerr": np.abs([means - low, high - means])}
