"""Describe the charts of a report as plain data, which `page.js` or matplotlib draws.

A chart has lines over a horizontal quantity, or rows of means with intervals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lssvwm.agent.evaluation.plots import (
    COLOURS,
    CURVES,
    DODGE,
    GREY,
    GROUPINGS,
    Curve,
    moving_average,
    reward_interval,
)
from lssvwm.agent.evaluation.tables import GROUPED, Row, gives_several_rewards
from lssvwm.agent.report.collect import RunData

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8A6FC9",
    "#8A8F98",
)
"""Colours of runs."""
DASHES = {"retained": "solid", "erased": "dashed", "policy": "dotted"}
"""Lines of arms."""
POINTS = 300
"""Points of a curve, at most; each is the mean of neighbouring rows."""
UNPLOTTED = ("step", "time")
"""Entries of a row of the log that are no metrics."""


@dataclass(frozen=True)
class Series:
    """Hold the points of one line, or the means of one column of rows.

    low, high: ends of the interval of each point; empty without intervals
    faint: raw values behind a smoothed line
    """

    name: str
    colour: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    dash: str = "solid"
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """Hold one chart.

    rows: names of the rows, top to bottom; empty for lines. `y` is then the place of a mean, and `x` its value
    limits: ends of the axis of values; None: those of the data
    """

    key: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    rows: list[str]
    limits: tuple[float, float] | None = None

    @property
    def named(self) -> list[Series]:
        """Return the series that a legend names."""
        return [series for series in self.series if not series.faint]


@dataclass(frozen=True)
class Column:
    """Hold an evaluation that is compared with others: its name and colour."""

    name: str
    colour: str
    found: Row


# ---- training


def curve_charts(runs: Sequence[RunData]) -> tuple[list[Chart], list[Chart]]:
    """Return the charts of the main metrics, and those of all others."""
    logs = [_joined(run.logs) for run in runs]
    keys = dict.fromkeys(key for rows in logs for row in rows for key in row)
    main = [curve for curve in CURVES if curve.key in keys]
    known = {*UNPLOTTED, *(curve.key for curve in CURVES)}
    others = [Curve(key, key, "") for key in keys if key not in known]
    return _curves(main, runs, logs), _curves(others, runs, logs)


def _joined(logs: Sequence[Sequence[Row]]) -> list[Row]:
    """Join the logs of stages, which all count steps from 0."""
    rows: list[Row] = []
    for log in logs:
        before = rows[-1]["step"] if rows else 0
        rows += [row | {"step": row["step"] + before} for row in log]
    return rows


def _curves(
    curves: Sequence[Curve], runs: Sequence[RunData], logs: Sequence[Sequence[Row]]
) -> list[Chart]:
    charts = []
    for curve in curves:
        series: list[Series] = []
        for run, rows, colour in zip(runs, logs, PALETTE):
            series += _lines(rows, curve.key, run.label, colour)
        if series:
            key = f"curve-{curve.key}"
            chart = Chart(
                key, curve.title, "training step", curve.label, series, [], curve.limits
            )
            charts.append(chart)
    return charts


def _lines(rows: Sequence[Row], key: str, name: str, colour: str) -> list[Series]:
    """Return a metric and its moving average; few points have no average."""
    shown = [row for row in rows if key in row]
    steps = _thinned([row["step"] for row in shown])
    values = _thinned([row[key] for row in shown])
    if len(steps) == 0:
        return []
    raw = Series(name, colour, steps.tolist(), values.tolist(), [], [])
    smooth = moving_average(steps, values)
    if smooth is None:
        return [raw]
    x, y = smooth
    faint = Series(name, colour, raw.x, raw.y, [], [], faint=True)
    return [faint, Series(name, colour, x.tolist(), y.tolist(), [], [])]


def _thinned(values: list[float]) -> np.ndarray:
    """Average neighbouring values so that at most POINTS remain."""
    parts = np.array_split(np.array(values, float), min(len(values), POINTS) or 1)
    return np.array([part.mean() for part in parts if len(part)])


# ---- evaluation


def arms_chart(columns: Sequence[Column]) -> Chart:
    """Return success, or reward, of every arm with its interval; one mean for each evaluation."""
    arms = list(
        dict.fromkeys(arm for column in columns for arm in column.found["arms"])
    )
    several = any(gives_several_rewards(column.found["arms"]) for column in columns)
    series = []
    for number, column in enumerate(columns):
        own = column.found["arms"]
        values = [
            reward_interval(own[arm]) if several else own[arm]["success"]
            for arm in arms
            if arm in own
        ]
        shift = _shift(number, len(columns))
        places = [place + shift for place, arm in enumerate(arms) if arm in own]
        series.append(_intervals(column.name, column.colour, values, places))
    title = "Reward per task" if several else "Success rate"
    label = f"{title.lower()}, 95 % interval"
    limits = None if several else (0.0, 1.0)
    return Chart("arms", f"{title} of every arm", label, "", series, arms, limits)


def _shift(number: int, count: int) -> float:
    """Return the distance of a mean from the middle of its row."""
    return 0.6 * ((number + 0.5) / count - 0.5)


def _intervals(
    name: str, colour: str, values: Sequence[Row], places: list[float]
) -> Series:
    means = [value["mean"] for value in values]
    low = [value["low"] for value in values]
    high = [value["high"] for value in values]
    return Series(name, colour, means, places, low, high)


def rate_charts(columns: Sequence[Column]) -> list[Chart]:
    """Return success by evidence age and by goal distance, for the arms of the agent."""
    charts = []
    for by, quantity in reversed(GROUPINGS.items()):
        series: list[Series] = []
        for column in columns:
            for arm in GROUPED:
                groups = column.found["arms"].get(arm, {}).get(by, [])
                if len(groups) > 1:
                    line = _rates(column, arm, groups, len(columns) > 1)
                    series.append(_moved(line, len(series)))
        if series:
            words = quantity.split(" (")[0]
            title = f"Success by {words}, 95 % interval"
            chart = Chart(by, title, quantity, "success rate", series, [], (0.0, 1.0))
            charts.append(chart)
    return charts


def _rates(column: Column, arm: str, groups: Sequence[Row], compared: bool) -> Series:
    """Return success in ranges of a quantity.

    Colours stand for evaluations, or for arms if there is only one.
    """
    rates = [group["success"] for group in groups]
    return Series(
        name=f"{column.name}, {arm}" if compared else arm,
        colour=column.colour if compared else COLOURS.get(arm, GREY),
        x=[(group["from"] + group["to"]) / 2 for group in groups],
        y=[rate["mean"] for rate in rates],
        low=[rate["low"] for rate in rates],
        high=[rate["high"] for rate in rates],
        dash=DASHES[arm],
    )


def _moved(line: Series, number: int) -> Series:
    """Move a line sideways a little, so that intervals do not overlap."""
    shift = number * DODGE * (line.x[-1] - line.x[0])
    return dataclasses.replace(line, x=[x + shift for x in line.x])
