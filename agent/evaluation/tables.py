"""Results for people: a table on the terminal, JSON and CSV on disk, a plot."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FAR = 48
"""Frames that the window baseline can reach back over all its layers; what was in view before that needs memory."""
ENOUGH = 100
"""Tiles that a point of a plot stands for at least."""


def write(
    found: dict[str, Any], results: dict[str, Any], seeds: np.ndarray, output: Path
) -> None:
    """`evaluation.json` and `tasks.csv` (one row per arm and task)."""
    write_json(output / "evaluation.json", found)
    columns = (
        "success",
        "outcome",
        "steps",
        "total_reward",
        "goal_distance",
        "evidence_age",
        "goal",
    )
    with (output / "tasks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("arm", "task_seed", *columns))
        for arm, result in results.items():
            for i, seed in enumerate(seeds):
                rows.writerow(
                    (arm, seed, *(getattr(result, key)[i].item() for key in columns))
                )


def write_json(file: Path, found: dict[str, Any], indent: int | None = 1) -> None:
    """Write JSON, all at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    try:
        draft.write_text(json.dumps(found, indent=indent, default=str) + "\n")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@dataclass(frozen=True)
class Grid:
    """A table: its title, and rows of texts, the header first."""

    title: str
    rows: list[list[str]]

    def show(self) -> None:
        """Print it."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for i, name in enumerate(self.rows[0]):
            table.add_column(escape(name), justify="right" if i else "left")
        for row in self.rows[1:]:
            table.add_row(*map(escape, row))
        Console(width=None if Console().is_terminal else 160).print(table)

    def markdown(self) -> str:
        """The same for a README."""
        lines = [self.rows[0], ["---"] * len(self.rows[0]), *self.rows[1:]]
        return f"{self.title}:\n\n" + "".join(
            f"| {' | '.join(line)} |\n" for line in lines
        )


def publish(grids: list[Grid], path: Path) -> None:
    """Print tables, and write them as Markdown."""
    for grid in grids:
        grid.show()
    path.write_text("\n".join(grid.markdown() for grid in grids))


def evaluation_grids(found: dict[str, Any]) -> list[Grid]:
    """Every arm of an evaluation, with the paired lead of `retained`; then success, where it counts, by goal distance
    and by evidence age."""
    ranges = (
        ("by_goal_distance", "steps to the goal"),
        ("by_evidence_age", "age of the evidence"),
    )
    grids = (
        []
        if _several(found["arms"])
        else [_ranges(found, by, label) for by, label in ranges]
    )
    return [arms_grid(found), *(grid for grid in grids if grid.rows[1:])]


def arms_grid(found: dict[str, Any]) -> Grid:
    """Every arm of an evaluation (or of a case of a sweep) on the same tasks, with the paired lead of `retained`: in
    success, or in reward where a task gives several."""
    tasks, arms = found["tasks"], found["arms"]
    several, leads = (
        _several(arms),
        any("retained_minus_this" in row for row in arms.values()),
    )
    left_out = (
        f" ({tasks['solved_at_start']} solved at the start left out)"
        if tasks.get("solved_at_start")
        else ""
    )
    title = f"{'Reward' if several else 'Planning success'} on {tasks['count']} held-out tasks{left_out}"
    told = (
        ["reward (95 % interval)"]
        if several
        else ["success (95 % interval)", "wrong", "time-out", "steps"]
    )
    header = ["arm", *told, *(["retained - this"] if leads else [])]
    grid = Grid(f"{title}, seed {tasks['seed']}, list {tasks['hash']}", [header])
    for arm, row in arms.items():
        if several:
            cells, lead = (
                [_reward(row)],
                _gain(row.get("retained_minus_this_reward"), row["n"]),
            )
        else:
            cells = [
                _interval(row["success"], 3),
                *(f"{row[key]:.3f}" for key in ("wrong", "timeout")),
            ]
            cells, lead = (
                [*cells, f"{row['steps']:.1f}"],
                _gap(row.get("retained_minus_this")),
            )
        grid.rows.append([arm, *cells, *([lead] if leads else [])])
    return grid


def _several(arms: dict[str, Any]) -> bool:
    """Whether a task gives more than one reward."""
    return any(row["reward"] > 1.05 for row in arms.values())


def _ranges(found: dict[str, Any], by: str, label: str) -> Grid:
    """Success of the agent's arms in ranges of one quantity."""
    arms = [arm for arm in ("retained", "erased", "policy") if arm in found["arms"]]
    grid = Grid(f"Success (95 % interval) by {label}", [[label, "tasks", *arms]])
    for cells in zip(*(found["arms"][arm][by] for arm in arms)):
        span, shares = (
            f"{cells[0]['from']} - {cells[0]['to']}",
            (_interval(cell["success"], 2) for cell in cells),
        )
        grid.rows.append([span, str(cells[0]["n"]), *shares])
    return grid


def memory_grids(found: dict[str, Any]) -> list[Grid]:
    """What each model remembers of tiles that were last in view long ago, by test and context; what linear probes read
    off each memory, by age."""
    far = [row for row in found["rows"] if row["by"] == "age" and _far(row)]
    cases = _cases(far)
    title = f"Tiles last in view more than {FAR} frames ago: PSNR in dB (95 % interval over seeds), share recognised"
    header = [
        "model",
        "seeds",
        *(f"{test}, context {context}" for test, context in cases),
    ]
    recall = Grid(f"{title}; in brackets with the memory erased", [header])
    probes = [row for row in found["rows"] if row["test"] == "probe"]
    asked = list(dict.fromkeys((row["by"], row["from"], row["to"]) for row in probes))
    names = [
        f"{by}, {low} - {high}" if by in ("walls", "objects") else by
        for by, low, high in asked
    ]
    linear = Grid(
        "Read off the memory by linear probes, share right; in brackets without it",
        [["model", *names]],
    )
    for model in found["models"]:
        mine = {
            (row["test"], row["context"], row["arm"]): row
            for row in far
            if row["model"] == model
        }
        if mine:
            seeds = len(next(iter(mine.values()))["psnr"]["seeds"])
            recall.rows.append(
                [model, str(seeds), *(_remembered(mine, case) for case in cases)]
            )
        read = {
            (r["by"], r["from"], r["to"], r["arm"]): r["right"]["mean"]
            for r in probes
            if r["model"] == model
        }
        if read:
            pairs = (
                (read[(*case, "retained")], read[(*case, "erased")]) for case in asked
            )
            linear.rows.append([model, *(f"{a:.3f} [{b:.3f}]" for a, b in pairs)])
    return [recall, linear] if probes else [recall]


def _cases(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Tests and contexts, the contexts of a test together."""
    return sorted(
        {(row["test"], row["context"]) for row in rows},
        key=lambda case: (case[0] != "retrieval", case),
    )


def _remembered(mine: dict[tuple, dict[str, Any]], case: tuple) -> str:
    if (*case, "retained") not in mine:
        return "-"
    row, erased = mine[(*case, "retained")], mine[(*case, "erased")]
    return f"{_interval(row['psnr'])}, {row['tiles_right']['mean']:.3f} [{erased['psnr']['mean']:.1f}]"


def success_grid(found: dict[str, Any]) -> Grid:
    """Planning success of each contestant by what it was asked at."""
    rows = found["rows"]
    cases = list(dict.fromkeys((row["by"], row["at"]) for row in rows))
    tasks = f"{rows[0]['n']} held-out tasks each"
    title = f"Planning success on {tasks} (in the last columns with 95 % intervals over seeds)"
    last, first = cases[-1], rows[0]["name"]
    more = f"{last[0]} {last[1]}, minus {first}"
    grid = Grid(title, [["", "seeds", *(f"{by} {at}" for by, at in cases), more]])
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = {
            (row["by"], row["at"]): row["success"]
            for row in rows
            if row["name"] == name
        }
        cells = [f"{mine[case]['mean']:.2f}" for case in cases[:-1]]
        whole = mine[last] | {
            key: min(1.0, max(0.0, mine[last][key]))
            for key in ("low", "high")
            if key in mine[last]
        }
        gap = next(
            (
                row["more"]
                for row in rows
                if row["name"] == name and row["at"] == last[1] and "more" in row
            ),
            None,
        )
        seeds = str(len(next(iter(mine.values()))["seeds"]))
        beside = "-" if gap is None or name == first else _interval(gap, 2)
        grid.rows.append([name, seeds, *cells, _interval(whole, 2), beside])
    return grid


def planner_grid(found: dict[str, Any]) -> Grid:
    """Returns of each planner in each problem, and its time for a decision."""
    rows, s = found["rows"], found["settings"]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    title = f"Return in closed loop (95 % interval, {s['seeds']} seeds), {s['rounds']} x {s['candidates']} candidates"
    grid = Grid(
        f"{title} of {s['horizon']} steps a decision",
        [["planner", *problems, "ms a decision"]],
    )
    for name in dict.fromkeys(row["planner"] for row in rows):
        mine = {row["problem"]: row for row in rows if row["planner"] == name}
        took = sum(row["seconds_per_decision"] for row in mine.values()) / len(mine)
        grid.rows.append(
            [
                name,
                *(_interval(mine[p]["return"]) for p in problems),
                f"{1e3 * took:.1f}",
            ]
        )
    return grid


def decision_grid(found: dict[str, Any]) -> Grid:
    """Time and memory of a plan made in several ways."""
    title = f"Plans in the same world model, {found['threads']} threads"
    grid = Grid(
        title,
        [
            [
                "actions, planner",
                "candidates x steps x rounds",
                "seconds",
                "plans a second",
                "peak memory",
            ]
        ],
    )
    for row in found["rows"]:
        size = f"{row['candidates']} x {row['horizon']} x {row['iterations']}"
        memory = "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.0f} MB"
        name = f"{row['actions']}, {row['planner']}"
        grid.rows.append(
            [name, size, f"{row['seconds']:.2f}", f"{1 / row['seconds']:.2f}", memory]
        )
    return grid


def sweep_grids(found: dict[str, Any]) -> list[Grid]:
    """Success of every arm in every case, with paired differences; then by goal distance and evidence age, all cases of
    a model and planner together. Where a task gives several rewards, the rewards instead."""
    rows = found["cases"]
    keys, arms = (
        list(rows[0]["values"]),
        list(dict.fromkeys(arm for row in rows for arm in row["arms"])),
    )
    counts = [row["arms"][arms[0]]["n"] for row in rows]
    n = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else counts[0]
    minus = [arm for arm in ("erased", "policy") if "retained" in arms and arm in arms]
    beside = (
        len({row["tasks"]["hash"] for row in rows}) < len(rows) and "retained" in arms
    )
    header = [
        *keys,
        *arms,
        *(f"retained - {arm}" for arm in minus),
        *(["retained - first row's"] if beside else []),
    ]
    grid = Grid(
        f"Planning success (95 % intervals), {n} held-out tasks a row, differences paired",
        [header],
    )
    reward = Grid(
        f"Reward per task (95 % interval), {n} held-out tasks a row", [[*keys, *arms]]
    )
    for row in rows:
        values, mine = [str(value) for value in row["values"].values()], row["arms"]
        cells = [_success(arm, mine[arm]) if arm in mine else "-" for arm in arms]
        gaps = [_gap(mine.get(arm, {}).get("retained_minus_this")) for arm in minus]
        grid.rows.append(
            [
                *values,
                *cells,
                *gaps,
                *([_gap(row.get("retained_minus_first"))] if beside else []),
            ]
        )
        reward.rows.append(
            [*values, *(_reward(mine[arm]) if arm in mine else "-" for arm in arms)]
        )
    several = any(_several(row["arms"]) for row in rows)
    whole = (reward if several else grid) if keys else arms_grid(rows[0])
    return [whole] if several else [whole, *_crossings(found["together"])]


def _success(arm: str, row: dict[str, Any]) -> str:
    return (
        _interval(row["success"], 2)
        if arm == "retained"
        else f"{row['success']['mean']:.2f}"
    )


def _gap(gap: dict[str, float] | None) -> str:
    if gap is None:
        return "-"
    p = "p < .001" if gap["p"] < 0.001 else f"p = {gap['p']:.3f}"
    return f"{gap['mean']:+.2f} ({gap['low']:+.2f} - {gap['high']:+.2f}), {p}"


def _gain(gain: dict[str, float] | None, n: int) -> str:
    if gain is None:
        return "-"
    more = f"more in {round(gain['more'] * n)} of {n}"
    return f"{gain['mean']:+.1f} ({gain['low']:+.1f} - {gain['high']:+.1f}), {more}"


def _reward(row: dict[str, Any]) -> str:
    half = 1.96 * row["reward_error"]
    return _interval(
        {
            "mean": row["reward"],
            "low": row["reward"] - half,
            "high": row["reward"] + half,
        }
    )


def _crossings(together: list[dict[str, Any]]) -> list[Grid]:
    """Success by goal distance (rows) and evidence age (columns); in brackets with the memory erased."""
    grids = []
    for pool in together:
        cells = {
            arm: {
                ((c["distance"], c["to_distance"]), (c["age"], c["to_age"])): c
                for c in row["by_both"]
            }
            for arm, row in pool["arms"].items()
        }
        mine, erased = cells.get("retained", {}), cells.get("erased", {})
        far, old = (sorted({key[i] for key in mine}) for i in (0, 1))
        if not mine:
            continue
        names = _names(pool["values"])
        title = "Success by steps to the goal (rows) and age of the evidence (columns), in brackets with memory erased"
        grid = Grid(
            f"{title}{': ' if names else ''}{names}",
            [["steps to the goal", *(f"age {a} - {b}" for a, b in old)]],
        )
        for span in far:
            pairs = ((mine.get((span, age)), erased.get((span, age))) for age in old)
            grid.rows.append(
                [f"{span[0]} - {span[1]}", *(_cell(*pair) for pair in pairs)]
            )
        grids.append(grid)
    return grids


def _cell(mine: dict[str, Any] | None, erased: dict[str, Any] | None) -> str:
    if mine is None:
        return "-"
    without = "" if erased is None else f" [{erased['success']['mean']:.2f}]"
    return f"{_interval(mine['success'], 2)}{without}, {mine['n']}"


def plot_sweep(found: dict[str, Any], path: Path) -> None:
    """Success over evidence age and over goal distance, of every arm; one row per model and planner."""
    from matplotlib.figure import Figure

    pools = found["together"]
    figure = Figure(figsize=(9, 3.2 * len(pools)), layout="constrained")
    for pool, axes in zip(
        pools, figure.subplots(len(pools), 2, squeeze=False, sharey=True)
    ):
        for axis, (by, label) in zip(
            axes,
            (
                ("by_evidence_age", "evidence age"),
                ("by_goal_distance", "goal distance"),
            ),
        ):
            for arm, told in pool["arms"].items():
                style = {"lw": 2.2} if arm == "retained" else {"lw": 1, "alpha": 0.8}
                _line(axis, told[by], label=arm, ms=3, **style)
            axis.set(
                ylim=(-0.02, 1.02),
                xlabel=f"{label} (steps)",
                title=_names(pool["values"]),
            )
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("success")
        _legend(axes[0], 6)
    figure.savefig(path, dpi=110)


def _line(axis: Any, rows: list[dict[str, Any]], **style: Any) -> None:
    """Success in ranges of one quantity, with its interval; nothing without any."""
    x, y = (
        [(row["from"] + row["to"]) / 2 for row in rows],
        [row["success"]["mean"] for row in rows],
    )
    gap = [
        [abs(row["success"][side] - row["success"]["mean"]) for row in rows]
        for side in ("low", "high")
    ]
    if rows:
        axis.errorbar(x, y, gap, marker="o", capsize=2, **style)


def _legend(axis: Any, size: int, columns: int = 1) -> None:
    if axis.get_legend_handles_labels()[0]:  # there is something to tell
        axis.legend(fontsize=size, ncols=columns)


def _names(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _far(row: dict[str, Any]) -> bool:
    return row["from"] == FAR + 1 and row["to"] > 1 << 20


def _interval(value: dict[str, Any], digits: int = 1) -> str:
    bounds = (
        f" ({value['low']:.{digits}f} - {value['high']:.{digits}f})"
        if "low" in value
        else ""
    )
    return f"{value['mean']:.{digits}f}{bounds}"


def plot_memory(found: dict[str, Any], path: Path) -> None:
    """Share of tiles recognised against their age, for every test and context."""
    from matplotlib.figure import Figure

    rows = [
        row
        for row in found["rows"]
        if row["by"] == "age" and row["from"] > 0 and row["arm"] == "retained"
    ]
    rows = [row for row in rows if row["n"] >= ENOUGH]
    cases = _cases(rows)
    figure = Figure(figsize=(4 * max(1, len(cases)), 3.6), layout="constrained")
    for axis, case in zip(
        figure.subplots(1, max(1, len(cases)), squeeze=False)[0], cases
    ):
        for model in found["models"]:
            mine = [
                r
                for r in rows
                if (r["test"], r["context"]) == case
                and r["model"] == model
                and not _far(r)
            ]
            x = [
                f"{r['from']} - {r['to']}" if r["to"] < 1 << 20 else f"{r['from']} -"
                for r in mine
            ]
            axis.plot(
                x, [r["tiles_right"]["mean"] for r in mine], marker="o", label=model
            )
        axis.set(
            title=f"{case[0]}, context {case[1]}",
            xlabel="frames since the tile was in view",
            ylim=(0.4, 1.01),
        )
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("tiles recognised")
    _legend(figure.axes[0], 7, 2)
    figure.savefig(path, dpi=110)


def plot(found: dict[str, Any], path: Path) -> None:
    """Success of every arm with its interval; beside it success over goal distance and evidence age."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    bars, *lines = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
    arms = found["arms"]
    mean = np.array([row["success"]["mean"] for row in arms.values()])
    low = np.array([row["success"]["low"] for row in arms.values()])
    high = np.array([row["success"]["high"] for row in arms.values()])
    colours = ["#1b7837" if arm == "retained" else "#8c96a0" for arm in arms]
    bars.barh(
        range(len(arms)),
        mean,
        color=colours,
        xerr=np.abs([mean - low, high - mean]),
        ecolor="#333333",
        capsize=2,
    )
    bars.set_yticks(range(len(arms)), list(arms))
    bars.invert_yaxis()
    bars.set(
        xlim=(0, 1.02),
        xlabel="success (95 % interval)",
        title=f"{found['tasks']['count']} held-out tasks",
    )
    for axis, (by, label) in zip(
        lines,
        (("by_goal_distance", "goal distance"), ("by_evidence_age", "evidence age")),
    ):
        for arm, colour in (
            ("retained", "#1b7837"),
            ("erased", "#b2182b"),
            ("policy", "#2166ac"),
        ):
            _line(axis, arms.get(arm, {}).get(by, []), label=arm, color=colour)
        axis.set(ylim=(-0.02, 1.02), xlabel=f"{label} (steps)", ylabel="success")
        axis.grid(alpha=0.3)
    _legend(lines[0], 8)
    figure.savefig(path, dpi=110)


def curves(folder: Path) -> None:
    """`curves.png` of a run: how well frames (PSNR) and rewards and ends (accuracy) are foreseen, step by step; below
    it, with adversarial lengths, how often each length is drawn."""
    from matplotlib.figure import Figure

    rows = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    odds = sorted(
        {key for row in rows for key in row if key.startswith("odds/")},
        key=lambda key: int(key[5:]),
    )
    figure = Figure(figsize=(6, 5 if odds else 3), layout="constrained")
    left, *below = figure.subplots(2 if odds else 1, 1, sharex=True, squeeze=False)[
        :, 0
    ]
    right = left.twinx()
    shown = (
        (left, "psnr", "frames (PSNR, dB)", "#2166ac"),
        (right, "event_accuracy", "rewards and ends", "#1b7837"),
    )
    for axis, key, label, colour in shown:
        found = [(row["step"], row[key]) for row in rows if key in row]
        axis.plot(*np.array(found).reshape(-1, 2).T, color=colour)
        axis.set_ylabel(label, color=colour)
    right.set_ylim(0, 1.02)
    left.set_title("foreseen from memory, on training sequences")
    for axis in below:
        drawn = [row for row in rows if odds[0] in row]
        steps, shares = (
            [row["step"] for row in drawn],
            [[row[key] for row in drawn] for key in odds],
        )
        axis.stackplot(steps, shares, labels=[f"{key[5:]} frames" for key in odds])
        axis.set(ylim=(0, 1), ylabel="odds of each length")
        axis.legend(fontsize=7, loc="lower right")
    (left, *below)[-1].set_xlabel("step")
    left.grid(alpha=0.3)
    figure.savefig(folder / "curves.png", dpi=110)
