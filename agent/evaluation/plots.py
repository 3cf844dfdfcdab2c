"""Plots of results and of training, written as PNG.

Colours are those of Okabe and Ito, which colour-blind readers distinguish; markers differ too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lssvwm.agent.evaluation.interventions import label_arm
from lssvwm.agent.evaluation.statistics import Z95
from lssvwm.agent.evaluation.tables import (
    GROUPED,
    OPEN_END,
    SINGLE_REWARD,
    Row,
    gives_several_rewards,
    is_far,
    name_values,
    recall_cases,
    windows_of,
)
from lssvwm.agent.files import read_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8F98"
COLOURS = {
    "retained": BLUE,
    "erased": VERMILION,
    "policy": GREEN,
    "swapped": "#E69F00",
    "window": "#56B4E9",
    "always_window": "#56B4E9",
    "seek": "#CC79A7",
    "oracle": "#000000",
}
"""Colours of arms in every plot; all others are grey."""
MARKERS = "osD^vP*X<>"
TEXT = 11
"""Font size in points."""
DPI = 110
ENOUGH_TILES = 100
"""Tiles that each point of a plot must sum up."""
ENOUGH_GROUPS = 3
"""Groups below which success by distance or age is not plotted."""
GROUPINGS = {
    "by_goal_distance": "distance to the goal (steps)",
    "by_evidence_age": "age of the evidence (steps)",
}
"""Quantities at planning start by which results group tasks, in words."""
DODGE = 0.012
"""Horizontal distance between the intervals of two arms, as a share of the axis."""


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure, size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _finish(axis: Axes, **texts: Any) -> None:
    """Set texts and limits of an axis, and draw light grid lines."""
    title = texts.pop("title", None)
    axis.set(**texts)
    if title:
        axis.set_title(title, loc="left", fontsize=TEXT)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=TEXT - 1)
    axis.xaxis.label.set(size=TEXT)
    axis.yaxis.label.set(size=TEXT)
    axis.spines[["top", "right"]].set_visible(False)


# ---- evaluation


def plot_success(found: Row, path: Path) -> None:
    """Plot the success of every arm with its 95 % interval.

    Further panels show success by distance and age where these have at least three groups.
    Where a task gives several rewards, the only panel shows rewards.
    """
    several = gives_several_rewards(found["arms"])
    groupings = [] if several else [by for by in GROUPINGS if _is_grouped(found, by)]
    arms = len(found["arms"])
    height = max(3.6, 1.4 + 0.36 * arms)
    figure = _figure(8 + 3.6 * len(groupings), height)
    widths = [1.6, *[1.0] * len(groupings)]
    first, *others = figure.subplots(
        1, len(widths), width_ratios=widths, squeeze=False
    )[0]
    _plot_arms(first, found, several)
    for axis, by in zip(others, groupings):
        for place, arm in enumerate(GROUPED):
            rows = found["arms"].get(arm, {}).get(by, [])
            _plot_rates(axis, rows, arm, place)
        title = f"... by {GROUPINGS[by].split(' (')[0]} (same colours)"
        _finish(axis, ylim=(-0.03, 1.03), xlabel=GROUPINGS[by], title=title)
    figure.savefig(path, dpi=DPI)


def _is_grouped(found: Row, by: str) -> bool:
    """Decide whether the arm with memory has enough groups for a line."""
    arms = found["arms"]
    shown = [arms[arm][by] for arm in GROUPED if arm in arms]
    return bool(shown) and len(shown[0]) >= ENOUGH_GROUPS


def _plot_arms(axis: Axes, found: Row, several: bool) -> None:
    """Plot success, or reward, of every arm as a bar with its interval."""
    arms = found["arms"]
    values = [
        reward_interval(row) if several else row["success"] for row in arms.values()
    ]
    mean = np.array([value["mean"] for value in values])
    low = np.array([value["low"] for value in values])
    high = np.array([value["high"] for value in values])
    places = np.arange(len(arms))
    colours = [COLOURS[arm] if arm in GROUPED else GREY for arm in arms]
    axis.barh(places, mean, height=0.68, color=colours)
    gaps = np.abs([mean - low, high - mean])
    axis.errorbar(mean, places, xerr=gaps, fmt="none", ecolor="#222222", capsize=3)
    top = max(1.0, float(high.max()))
    for place, value in zip(places, values):
        text = f"{value['mean']:.1f}" if several else f"{value['mean']:.0%}"
        right = max(value["high"], value["mean"]) + 0.02 * top
        axis.text(right, float(place), text, va="center", fontsize=TEXT - 1)
    names = [label_arm(arm, windows_of(found)) for arm in arms]
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    count = next(iter(arms.values()))["n"] if arms else 0
    quantity = "reward per task" if several else "success rate"
    title = f"{quantity.capitalize()} on {count} held-out tasks"
    _finish(
        axis, xlim=(0, 1.13 * top), xlabel=f"{quantity} (95 % interval)", title=title
    )
    axis.grid(visible=False, axis="y")


def reward_interval(row: Row) -> dict[str, float]:
    """Return the mean reward of an arm with its 95 % interval."""
    mean = row["reward"]
    half = Z95 * row["reward_error"]
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _plot_rates(
    axis: Axes, rows: list[Row], arm: str, place: int, window: int | None = None
) -> None:
    """Plot success in ranges of one quantity; nothing without rows.

    Only arms of GROUPED have intervals. `place` counts the arms; it selects the marker.
    """
    if not rows:
        return
    centers = np.array([(row["from"] + row["to"]) / 2 for row in rows])
    shown = arm in GROUPED
    dodge = GROUPED.index(arm) * DODGE if shown else 0
    x = centers + dodge * (centers[-1] - centers[0])
    rates = [row["success"] for row in rows]
    mean = [rate["mean"] for rate in rates]
    below = [abs(rate["mean"] - rate["low"]) for rate in rates]
    above = [abs(rate["high"] - rate["mean"]) for rate in rates]
    axis.errorbar(
        x,
        mean,
        [below, above] if shown else None,
        color=COLOURS.get(arm, GREY),
        marker=MARKERS[place % len(MARKERS)],
        label=label_arm(arm, window),
        capsize=3,
        lw=2 if shown else 1,
        elinewidth=1,
    )


# ---- benchmarks


def plot_sweep(found: Row, path: Path) -> None:
    """Plot success by evidence age and by goal distance.

    Each model and planner has a row of panels.
    Panels of quantities with fewer than three groups are left out.
    Where a task gives several rewards, each case has one panel with rewards.
    """
    if any(gives_several_rewards(case["arms"]) for case in found["cases"]):
        _plot_reward_sweep(found, path)
        return
    pools = found["together"]
    every = list(reversed(GROUPINGS))
    groupings = [by for by in every if _pools_grouped(pools, by)] or every
    columns = len(groupings)
    figure = _figure(4 + 4.2 * columns, 3.4 * len(pools))
    panels = figure.subplots(len(pools), columns, squeeze=False, sharey=True)
    for pool, axes in zip(pools, panels):
        for axis, by in zip(axes, groupings):
            for place, (arm, row) in enumerate(pool["arms"].items()):
                _plot_rates(axis, row[by], arm, place, windows_of(found))
            title = name_values(pool["values"])
            _finish(axis, ylim=(-0.03, 1.03), xlabel=GROUPINGS[by], title=title)
        axes[0].set_ylabel("success rate", fontsize=TEXT)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, fontsize=TEXT - 1, loc="outside right upper")
    figure.savefig(path, dpi=DPI)


def _plot_reward_sweep(found: Row, path: Path) -> None:
    """Plot the reward of every arm in every case."""
    cases = found["cases"]
    arms = max(len(case["arms"]) for case in cases)
    figure = _figure(8, (1.4 + 0.36 * arms) * len(cases))
    axes = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for axis, case in zip(axes, cases):
        _plot_arms(axis, case | {"settings": found["settings"]}, several=True)
        if case["values"]:
            axis.set_title(name_values(case["values"]), loc="right", fontsize=TEXT)
    figure.savefig(path, dpi=DPI)


def _pools_grouped(pools: Sequence[Row], by: str) -> bool:
    groups = [len(row[by]) for pool in pools for row in pool["arms"].values()]
    return max(groups, default=0) >= ENOUGH_GROUPS


def _legend(axis: Axes, columns: int = 1) -> None:
    """Draw a legend unless nothing is labelled."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=TEXT - 3, ncols=columns)


def plot_memory(found: Row, path: Path) -> None:
    """Plot the share of tiles recognised by their age, for every test and context."""
    rows = [row for row in found["rows"] if _is_plotted(row)]
    cases = recall_cases(rows)
    lines = max(1, math.ceil(len(cases) / 2))
    figure = _figure(10, 3.8 * lines)
    axes = figure.subplots(lines, 2, squeeze=False)
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    for axis, (test, context) in zip(axes.flat, cases):
        shown = [r for r in rows if (r["test"], r["context"]) == (test, context)]
        for model, marker in zip(found["models"], MARKERS):
            mine = [row for row in shown if row["model"] == model]
            ages = [_age(row) for row in mine]
            right = [row["tiles_right"]["mean"] for row in mine]
            axis.plot(ages, right, marker=marker, label=model)
        _finish(
            axis,
            ylim=(0.4, 1.01),
            xlabel="frames since the tile was in view",
            title=f"{test}, {context} frames observed",
        )
    for axis in axes[:, 0]:
        axis.set_ylabel("share of tiles recognised", fontsize=TEXT)
    _legend(axes[0, 0], columns=2)
    figure.savefig(path, dpi=DPI)


def plot_agents(found: Row, path: Path) -> None:
    """Plot success of every agent against hours and frames.

    Thick lines are means over seeds, thin lines are single seeds.
    Where a task gives several rewards, the plot shows rewards.
    """
    several = any(row["reward"]["mean"] > SINGLE_REWARD for row in found["rows"])
    quantity = "reward" if several else "success"
    figure = _figure(9, 3.8)
    axes = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(row["agent"] for row in found["rows"]))
    for axis, by in zip(axes, ("hours", "frames")):
        for place, name in enumerate(names):
            rows = [row for row in found["rows"] if row["agent"] == name]
            _plot_agent(axis, rows, (by, quantity), place)
        limits = {} if several else {"ylim": (-0.03, 1.03)}
        _finish(axis, xlabel=f"{by} of training", **limits)
    axes[1].set_xscale("log")
    unit = "reward per task" if several else "success rate"
    axes[0].set_ylabel(f"{unit}, {found['rows'][0]['n']} tasks", fontsize=TEXT)
    _legend(axes[0])
    figure.savefig(path, dpi=DPI)


def _plot_agent(
    axis: Axes, rows: list[Row], quantities: tuple[str, str], place: int
) -> None:
    """Plot one agent; `quantities` are those of the axes, `place` selects its colour."""
    by, quantity = quantities
    colour = (BLUE, VERMILION, GREEN)[place % 3]
    x = [row[by] for row in rows]
    for seed in zip(*(row[quantity]["seeds"] for row in rows)):
        axis.plot(x, seed, color=colour, alpha=0.3, lw=1)
    mean = [row[quantity]["mean"] for row in rows]
    marker = MARKERS[place % len(MARKERS)]
    axis.plot(x, mean, color=colour, marker=marker, lw=2, label=rows[0]["agent"])


def _is_plotted(row: Row) -> bool:
    """Decide whether a row is a point of the recall plot."""
    if row["by"] != "age" or row["arm"] != "retained":
        return False
    return row["from"] > 0 and row["n"] >= ENOUGH_TILES and not is_far(row)


def _age(row: Row) -> str:
    end = row["to"] if row["to"] < OPEN_END else ""
    return f"{row['from']} - {end}"


# ---- training


@dataclass(frozen=True)
class Curve:
    """Describe one panel of the training curves: metric, title, label of the vertical axis, limits."""

    key: str
    title: str
    label: str
    limits: tuple[float, float] | None = None
    colour: str = BLUE


CURVES = (
    Curve("loss/total", "Loss on training sequences", "total loss"),
    Curve("psnr", "Predicted frames: similarity to the real ones", "PSNR (dB)"),
    Curve(
        "event_accuracy",
        "Predicted rewards in frames with a reward or an end",
        "share within 0.5",
        (0, 1.03),
    ),
    Curve("written", "Tokens written to memory", "share", (0, 1.03)),
    Curve(
        "evaluate/success",
        "Planning success on validation tasks",
        "success rate",
        (0, 1.03),
        GREEN,
    ),
)
"""Panels of `curves.png`, top to bottom; panels without data are left out."""
ODDS = "odds/"
"""Prefix of the metrics that hold the probability of each sequence length."""
SMOOTHING = 10
"""Smoothed curves average one in SMOOTHING of all points."""


def plot_curves(folder: Path) -> None:
    """Plot the metrics of a run as `curves.png`, one panel for each.

    With adversarial lengths, the last panel shows the probability of each sequence length.
    """
    rows = read_json_lines(folder / "metrics.jsonl")
    keys = {key for row in rows for key in row}
    curves = [curve for curve in CURVES if curve.key in keys]
    odds = sorted((key for key in keys if key.startswith(ODDS)), key=_length_of)
    count = max(1, len(curves) + bool(odds))
    figure = _figure(7, 0.6 + 2.1 * count)
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for axis, curve in zip(axes, curves):
        _plot_curve(axis, rows, curve)
    if odds:
        _plot_odds(axes[-1], rows, odds)
    axes[-1].set_xlabel("training step", fontsize=TEXT)
    figure.savefig(folder / "curves.png", dpi=DPI)


def _length_of(key: str) -> int:
    return int(key.removeprefix(ODDS))


def _plot_curve(axis: Axes, rows: list[Row], curve: Curve) -> None:
    """Plot one metric, faint, and its moving average; few points are plotted as they are."""
    found = [row for row in rows if curve.key in row]
    steps = np.array([row["step"] for row in found])
    values = np.array([row[curve.key] for row in found])
    smooth = moving_average(steps, values)
    if smooth is None:
        axis.plot(steps, values, color=curve.colour, marker="o", ms=4)
    else:
        axis.plot(steps, values, color=curve.colour, alpha=0.3, lw=1)
        axis.plot(*smooth, color=curve.colour, lw=2)
    _finish(axis, ylabel=curve.label, title=curve.title)
    if curve.limits:
        axis.set_ylim(*curve.limits)


def moving_average(
    steps: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Average a curve over one in SMOOTHING of its points; None for few points.

    Returns the centers of the averaged steps, and the averages.
    """
    width = len(values) // SMOOTHING
    if width < 2:
        return None
    window = np.full(width, 1 / width)
    return np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")


def _plot_odds(axis: Axes, rows: list[Row], odds: list[str]) -> None:
    """Plot the probability of each sequence length as stacked areas."""
    found = [row for row in rows if odds[0] in row]
    steps = [row["step"] for row in found]
    shares = [[row[key] for row in found] for key in odds]
    labels = [f"{_length_of(key)} frames" for key in odds]
    greys = [str(shade) for shade in np.linspace(0.85, 0.35, len(odds))]
    axis.stackplot(steps, shares, labels=labels, colors=greys)
    _finish(
        axis,
        ylim=(0, 1),
        ylabel="probability",
        title="Probability of each length of the training sequences",
    )
    axis.legend(fontsize=TEXT - 3, loc="lower right")
