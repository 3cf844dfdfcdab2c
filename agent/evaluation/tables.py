"""Tables of results: printed on the terminal and written as Markdown.

Functions named `..._grid` build a table from a result file, as `results.read` returns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lssvwm.agent.evaluation.interventions import label_arm
from lssvwm.agent.evaluation.statistics import Z95
from rich.console import Console
from rich.markup import escape
from rich.table import Table

FAR = 48
"""Frames that the window baseline reaches back over all its layers; older views need memory."""
OPEN_END = 1 << 20
"""Upper bounds above this one stand for ranges without upper bound."""
SINGLE_REWARD = 1.05
"""Mean reward above which tasks give several rewards, so that tables show the reward instead of success."""
COMPARED = ("erased", "policy")
"""Arms whose paired difference from `retained` is shown in sweeps."""
GROUPED = ("retained", "erased", "policy")
"""Arms shown by goal distance and evidence age."""
NONE = "-"
"""Cell of a table without a value."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """Hold a table: its title, and rows of texts, the header first."""

    title: str
    rows: list[list[str]]

    def show(self) -> None:
        """Print the table."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for i, name in enumerate(self.rows[0]):
            table.add_column(escape(name), justify="right" if i else "left")
        for row in self.rows[1:]:
            table.add_row(*map(escape, row))
        width = None if Console().is_terminal else 160
        Console(width=width).print(table)

    def markdown(self) -> str:
        """Return the table as Markdown, the title above it."""
        rule = ["---"] * len(self.rows[0])
        lines = [self.rows[0], rule, *self.rows[1:]]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return f"{self.title}:\n\n{table}"


def publish(grids: Sequence[Grid], path: Path) -> None:
    """Write tables as Markdown, and print them."""
    path.write_text("\n".join(grid.markdown() for grid in grids), encoding="utf-8")
    for grid in grids:
        grid.show()


# ---- evaluation


def evaluation_grids(found: Row) -> list[Grid]:
    """Build the tables of one evaluation.

    The first has every arm; the others show success by goal distance and evidence age.
    """
    grids = [arms_grid(found)]
    if not gives_several_rewards(found["arms"]):
        grids.append(_ranges_grid(found, "by_goal_distance", "steps to the goal"))
        grids.append(_ranges_grid(found, "by_evidence_age", "age of the evidence"))
    return [grid for grid in grids if grid.rows[1:]]


def arms_grid(found: Row) -> Grid:
    """Build the table of all arms on the same tasks.

    The last column is the paired difference `retained` minus each arm.
    It is in success, or in reward where a task gives several rewards.
    """
    arms = found["arms"]
    several = gives_several_rewards(arms)
    quantity = "Reward" if several else "Planning success"
    columns = ["reward (95 % interval)"]
    if not several:
        columns = ["success (95 % interval)", "wrong", "time-out", "steps"]
    paired = any("retained_minus_this" in row for row in arms.values())
    header = ["arm", *columns]
    if paired:
        header.append("retained - this")
    grid = Grid(f"{quantity} on {_tasks(found['tasks'])}", [header])
    for arm, row in arms.items():
        cells = _reward_cells(row) if several else _success_cells(row)
        shown = cells if paired else cells[:-1]
        grid.rows.append([label_arm(arm, windows_of(found)), *shown])
    return grid


def windows_of(found: Row) -> int | None:
    """Return the frames that windowed arms observed; None if the result does not say."""
    return found.get("settings", {}).get("tasks", {}).get("window")


def gives_several_rewards(arms: dict[str, Row]) -> bool:
    """Decide whether a task gives more than one reward."""
    return any(row["reward"] > SINGLE_REWARD for row in arms.values())


def _tasks(tasks: Row) -> str:
    solved = tasks.get("solved_at_start")
    left_out = f" ({solved} solved at the start left out)" if solved else ""
    source = f"seed {tasks['seed']}, list {tasks['hash']}"
    return f"{tasks['count']} held-out tasks{left_out}, {source}"


def _reward_cells(row: Row) -> list[str]:
    """Return reward and difference of an arm."""
    gain = _gain(row.get("retained_minus_this_reward"), row["n"])
    return [reward_cell(row), gain]


def _success_cells(row: Row) -> list[str]:
    """Return success, shares of wrong ends and time-outs, steps and difference of an arm."""
    return [
        interval_cell(row["success"], 3),
        f"{row['wrong']:.3f}",
        f"{row['timeout']:.3f}",
        f"{row['steps']:.1f}",
        difference_cell(row.get("retained_minus_this")),
    ]


def _ranges_grid(found: Row, by: str, label: str) -> Grid:
    """Build the table of success of the agent's arms in ranges of one quantity."""
    arms = [arm for arm in GROUPED if arm in found["arms"]]
    names = [label_arm(arm) for arm in arms]
    grid = Grid(f"Success (95 % interval) by {label}", [[label, "tasks", *names]])
    columns = [found["arms"][arm][by] for arm in arms]
    for cells in zip(*columns):
        first = cells[0]
        span = f"{first['from']} - {first['to']}"
        rates = [interval_cell(cell["success"], 2) for cell in cells]
        grid.rows.append([span, str(first["n"]), *rates])
    return grid


# ---- sweeps


def sweep_grids(found: Row) -> list[Grid]:
    """Build the tables of a sweep.

    The first has every arm in every case; the others group success by distance and age.
    Where a task gives several rewards, the only table shows rewards.
    """
    rows = found["cases"]
    if any(gives_several_rewards(row["arms"]) for row in rows):
        whole = _reward_sweep_grid(found) if rows[0]["values"] else arms_grid(rows[0])
        return [whole]
    whole = _success_sweep_grid(found) if rows[0]["values"] else arms_grid(rows[0])
    crossings = [_crossed_grid(pool) for pool in found["together"]]
    return [whole, *(grid for grid in crossings if grid)]


def _swept_arms(found: Row) -> list[str]:
    """List the arms of all cases in order of appearance."""
    names = [arm for row in found["cases"] for arm in row["arms"]]
    return list(dict.fromkeys(names))


def _count(found: Row) -> str:
    """Return the number of tasks for each case, or its range."""
    first = _swept_arms(found)[0]
    counts = [row["arms"][first]["n"] for row in found["cases"]]
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _reward_sweep_grid(found: Row) -> Grid:
    arms = _swept_arms(found)
    names = [label_arm(arm, windows_of(found)) for arm in arms]
    title = f"Reward per task (95 % interval), {_count(found)} held-out tasks a row"
    grid = Grid(title, [[*found["cases"][0]["values"], *names]])
    for row in found["cases"]:
        values = [str(value) for value in row["values"].values()]
        played = row["arms"]
        cells = [reward_cell(played[arm]) if arm in played else NONE for arm in arms]
        grid.rows.append([*values, *cells])
    return grid


def _success_sweep_grid(found: Row) -> Grid:
    rows = found["cases"]
    arms = _swept_arms(found)
    names = [label_arm(arm, windows_of(found)) for arm in arms]
    minus = [arm for arm in COMPARED if "retained" in arms and arm in arms]
    lists = {row["tasks"]["hash"] for row in rows}
    shared_tasks = len(lists) < len(rows) and "retained" in arms
    header = [*rows[0]["values"], *names, *(f"retained - {arm}" for arm in minus)]
    if shared_tasks:
        header.append("retained - first row's")
    n = _count(found)
    title = f"Planning success (95 % intervals), {n} held-out tasks a row, differences paired"
    grid = Grid(title, [header])
    for row in rows:
        values = [str(value) for value in row["values"].values()]
        played = row["arms"]
        rates = [_rate(arm, played.get(arm)) for arm in arms]
        gaps = [
            difference_cell(played.get(arm, {}).get("retained_minus_this"))
            for arm in minus
        ]
        if shared_tasks:
            gaps.append(difference_cell(row.get("retained_minus_first")))
        grid.rows.append([*values, *rates, *gaps])
    return grid


def _rate(arm: str, row: Row | None) -> str:
    """Return the success rate of an arm; only `retained` has its interval shown."""
    if row is None:
        return NONE
    if arm == "retained":
        return interval_cell(row["success"], 2)
    return f"{row['success']['mean']:.2f}"


def _crossed_grid(pool: Row) -> Grid | None:
    """Build the table of success by goal distance and evidence age; None without cells."""
    retained = _cells(pool, "retained")
    erased = _cells(pool, "erased")
    if not retained:
        return None
    distances = sorted({distance for distance, _ in retained})
    ages = sorted({age for _, age in retained})
    title = "Success by steps to the goal (rows) and age of the evidence (columns)"
    names = name_values(pool["values"])
    ending = f": {names}" if names else ""
    header = ["steps to the goal", *(f"age {low} - {high}" for low, high in ages)]
    grid = Grid(f"{title}, in brackets with memory erased{ending}", [header])
    for distance in distances:
        cells = []
        for age in ages:
            key = (distance, age)
            cells.append(_crossed_cell(retained.get(key), erased.get(key)))
        grid.rows.append([f"{distance[0]} - {distance[1]}", *cells])
    return grid


def _cells(pool: Row, arm: str) -> dict[tuple, Row]:
    """Return the cells of an arm by range of distance and range of age."""
    cells = pool["arms"].get(arm, {}).get("by_both", [])
    found = {}
    for cell in cells:
        distance = (cell["distance"], cell["to_distance"])
        age = (cell["age"], cell["to_age"])
        found[distance, age] = cell
    return found


def _crossed_cell(retained: Row | None, erased: Row | None) -> str:
    if retained is None:
        return NONE
    without = "" if erased is None else f" [{erased['success']['mean']:.2f}]"
    return f"{interval_cell(retained['success'], 2)}{without}, {retained['n']}"


def name_values(values: Row) -> str:
    """Return the settings of a case as text."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


# ---- benchmarks of memory, training, planners and decisions


def memory_grids(found: Row) -> list[Grid]:
    """Build the tables of recall of tiles seen long ago, and of linear probes."""
    grids = [_recall_grid(found)]
    if any(row["test"] == "probe" for row in found["rows"]):
        grids.append(_probe_grid(found))
    return grids


def _recall_grid(found: Row) -> Grid:
    far = [row for row in found["rows"] if row["by"] == "age" and is_far(row)]
    cases = recall_cases(far)
    title = f"Tiles last in view more than {FAR} frames ago: PSNR in dB (95 % interval over seeds), share recognised"
    names = [f"{test}, context {context}" for test, context in cases]
    grid = Grid(
        f"{title}; in brackets with the memory erased", [["model", "seeds", *names]]
    )
    for model in found["models"]:
        mine = {}
        for row in far:
            if row["model"] == model:
                mine[row["test"], row["context"], row["arm"]] = row
        if mine:
            seeds = len(next(iter(mine.values()))["psnr"]["seeds"])
            cells = [_recall_cell(mine, case) for case in cases]
            grid.rows.append([model, str(seeds), *cells])
    return grid


def _recall_cell(mine: dict[tuple, Row], case: tuple[str, int]) -> str:
    retained = mine.get((*case, "retained"))
    if retained is None:
        return NONE
    right = retained["tiles_right"]["mean"]
    erased = mine[(*case, "erased")]["psnr"]["mean"]
    return f"{interval_cell(retained['psnr'])}, {right:.3f} [{erased:.1f}]"


def _probe_grid(found: Row) -> Grid:
    probes = [row for row in found["rows"] if row["test"] == "probe"]
    cases = list(dict.fromkeys((row["by"], row["from"], row["to"]) for row in probes))
    names = [_probe_name(*case) for case in cases]
    title = (
        "Read off the memory by linear probes, share right; in brackets without memory"
    )
    grid = Grid(title, [["model", *names]])
    for model in found["models"]:
        right = {}
        for row in probes:
            if row["model"] == model:
                case = (row["by"], row["from"], row["to"])
                right[case, row["arm"]] = row["right"]["mean"]
        if right:
            cells = []
            for case in cases:
                with_memory = right[case, "retained"]
                without = right[case, "erased"]
                cells.append(f"{with_memory:.3f} [{without:.3f}]")
            grid.rows.append([model, *cells])
    return grid


def _probe_name(by: str, low: int, high: int) -> str:
    return f"{by}, {low} - {high}" if by in ("walls", "objects") else by


PUBLISHED = {
    "constant": ("80.8", "4.9"),
    "RSSM with truncated backpropagation": ("94.0", "2.5"),
    "trained with supervision": ("99.7", "0.5"),
}
"""Published probes of walls and objects, 9 x 9, after 29 million frames (arXiv 2210.13383)."""
PUBLISHED_SIZE = 9


def memory_maze_grids(found: Row) -> list[Grid]:
    """Build the tables of probes and of imagined frames in Memory Maze."""
    grids = [_maze_probe_grid(found), _maze_frame_grid(found)]
    return [grid for grid in grids if grid.rows[1:]]


def _maze_probe_grid(found: Row) -> Grid:
    scores = {(r["test"], r["arm"]): r["score"] for r in found["rows"] if "score" in r}
    count = found["settings"]["benchmark"]["walks"]
    half = found["frames"] // 2
    title = f"Read off the memory after {half} frames, {count} held-out walks"
    header = ["memory", "walls, % right", "objects, RMSE in tiles"]
    grid = Grid(f"{title} (95 % interval over walks)", [header])
    for arm in dict.fromkeys(arm for _, arm in scores):
        share = _within_unit(scores["walls", arm])
        walls = {key: 100 * value for key, value in share.items()}
        objects = interval_cell(scores["objects", arm], 2)
        grid.rows.append([label_arm(arm), interval_cell(walls), objects])
    if scores and found["settings"]["env"].get("size") == PUBLISHED_SIZE:
        for name, cells in PUBLISHED.items():
            grid.rows.append([f"published: {name}", *cells])
    return grid


def _maze_frame_grid(found: Row) -> Grid:
    rows = [row for row in found["rows"] if "psnr" in row]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    by_test = {(row["test"], row["arm"]): row for row in rows}
    names = [label_arm(arm) for arm in arms]
    header = ["imagined frames", "frames or walks", *names]
    grid = Grid("PSNR in dB (SSIM) of imagined frames", [header])
    for test in dict.fromkeys(row["test"] for row in rows):
        mine = [by_test[test, arm] for arm in arms]
        cells = [_psnr_cell(row) for row in mine]
        grid.rows.append([test, f"{mine[0]['n']:,}", *cells])
    return grid


def _psnr_cell(row: Row) -> str:
    """Return PSNR, and SSIM if there is one."""
    similar = f" ({row['ssim']:.3f})" if "ssim" in row else ""
    return f"{row['psnr']:.1f}{similar}"


def recall_cases(rows: list[Row]) -> list[tuple[str, int]]:
    """List pairs of test and context, retrieval first."""
    cases = {(row["test"], row["context"]) for row in rows}
    return sorted(cases, key=lambda case: (case[0] != "retrieval", case))


def is_far(row: Row) -> bool:
    """Decide whether a row sums up all tiles older than FAR frames."""
    return row["from"] == FAR + 1 and row["to"] > OPEN_END


def success_grid(found: Row) -> Grid:
    """Build the table of planning success of each model in every case.

    The last columns have 95 % intervals over seeds: success in the last case, and its lead over the first model.
    """
    rows = found["rows"]
    cases = list(dict.fromkeys((row["by"], row["at"]) for row in rows))
    tasks = f"{rows[0]['n']} held-out tasks each"
    note = "(in the last columns with 95 % intervals over seeds)"
    columns = [f"{by} {at}" for by, at in cases]
    lead = f"{columns[-1]}, minus {rows[0]['name']}"
    header = ["", "seeds", *columns, lead]
    grid = Grid(f"Planning success on {tasks} {note}", [header])
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = {(row["by"], row["at"]): row for row in rows if row["name"] == name}
        first = next(iter(mine.values()))
        means = [f"{mine[case]['success']['mean']:.2f}" for case in cases[:-1]]
        last = mine[cases[-1]]
        whole = interval_cell(_within_unit(last["success"]), 2)
        ahead = NONE
        if "more" in last and name != rows[0]["name"]:
            ahead = interval_cell(last["more"], 2)
        seeds = str(len(first["success"]["seeds"]))
        grid.rows.append([name, seeds, *means, whole, ahead])
    return grid


def _within_unit(value: Row) -> Row:
    """Clip the bounds of a share to 0 and 1."""
    bounds = {
        key: min(1.0, max(0.0, value[key])) for key in ("low", "high") if key in value
    }
    return value | bounds


def seeds_grid(found: Row) -> Grid:
    """Build the table of success over the seeds of one experiment.

    It shows the reward where tasks give several rewards.
    """
    rows = found["rows"]
    several = any(row["reward"]["mean"] > SINGLE_REWARD for row in rows)
    quantity = "reward" if several else "success"
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    count = len(found["seeds"])
    title = f"{found['name']}: {quantity}, mean over {count} training seeds (95 % interval, Student's t)"
    grid = Grid(title, [["condition", "tasks", *arms, "retained, by seed"]])
    for condition in dict.fromkeys(row["condition"] for row in rows):
        mine = {row["arm"]: row for row in rows if row["condition"] == condition}
        cells = [
            interval_cell(_bounded(mine[arm][quantity], several), 2)
            if arm in mine
            else NONE
            for arm in arms
        ]
        by_seed = mine.get("retained", {}).get(quantity, {}).get("seeds", [])
        number = str(next(iter(mine.values()))["n"])
        listed = ", ".join(f"{value:.2f}" for value in by_seed)
        grid.rows.append([condition, number, *cells, listed])
    return grid


def _bounded(value: Row, several: bool) -> Row:
    return value if several else _within_unit(value)


def agents_grid(found: Row) -> Grid:
    """Build the table of success of every agent at the end of its training.

    It shows the reward where tasks give several rewards.
    """
    rows = found["rows"]
    several = any(row["reward"]["mean"] > SINGLE_REWARD for row in rows)
    quantity = "reward" if several else "success"
    note = f"on {rows[0]['n']} held-out tasks (95 % interval over training seeds)"
    header = ["agent", "seeds", "hours", "frames", quantity, "by seed"]
    grid = Grid(f"{found['name']}: {quantity} {note}", [header])
    for name in dict.fromkeys(row["agent"] for row in rows):
        last = [row for row in rows if row["agent"] == name][-1]
        value = last[quantity]
        cell = interval_cell(_bounded(value, several), 2)
        listed = ", ".join(f"{one:.2f}" for one in value["seeds"])
        hours = f"{last['hours']:.2f}"
        frames = f"{last['frames']:,}"
        count = str(len(value["seeds"]))
        grid.rows.append([name, count, hours, frames, cell, listed])
    return grid


def pose_grid(found: Row) -> Grid:
    """Build the table of the drift of estimated poses."""
    head = ["frames", "walks", "tiles walked", "error in tiles", "share of the way"]
    grid = Grid(
        "Error of the estimated position (95 % interval)",
        [[*head, "heading error in degrees", "expected error in tiles"]],
    )
    for row in found["rows"]:
        expected = row.get("expected_error")
        grid.rows.append(
            [
                str(row["frames"]),
                str(row["walks"]),
                f"{row['tiles_walked']:.0f}",
                f"{row['error']:.2f}",
                interval_cell(row["error_per_tile"], 4),
                f"{row['heading_error']:.1f}",
                NONE if expected is None else f"{expected:.2f}",
            ]
        )
    return grid


def planner_grid(found: Row) -> Grid:
    """Build the table of each planner's returns and time per decision."""
    rows = found["rows"]
    s = found["settings"]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    title = f"Return in closed loop (95 % interval, {s['seeds']} seeds)"
    search = f"{s['rounds']} x {s['candidates']} candidates of {s['horizon']} steps a decision"
    header = ["planner", *problems, "ms a decision"]
    grid = Grid(f"{title}, {search}", [header])
    for name in dict.fromkeys(row["planner"] for row in rows):
        mine = {row["problem"]: row for row in rows if row["planner"] == name}
        seconds = sum(row["seconds_per_decision"] for row in mine.values()) / len(mine)
        returns = [interval_cell(mine[problem]["return"]) for problem in problems]
        grid.rows.append([name, *returns, f"{1e3 * seconds:.1f}"])
    return grid


def decision_grid(found: Row) -> Grid:
    """Build the table of time and memory of one plan, by way of planning."""
    header = [
        "actions, planner",
        "candidates x steps x rounds",
        "seconds",
        "plans a second",
        "peak memory",
    ]
    title = f"Plans in the same world model, {found['threads']} threads"
    grid = Grid(title, [header])
    for row in found["rows"]:
        size = f"{row['candidates']} x {row['horizon']} x {row['iterations']}"
        memory = NONE if row["bytes"] is None else f"{row['bytes'] / 1e6:,.0f} MB"
        name = f"{row['actions']}, {row['planner']}"
        seconds = row["seconds"]
        grid.rows.append([name, size, f"{seconds:.2f}", f"{1 / seconds:.2f}", memory])
    return grid


DEVICE_TITLES = {
    "scans": "Backends of the scan",
    "training": "Training steps",
    "observe": "Observing, one agent",
    "imagine": "Imagining 16 steps of one agent",
    "decide": "Decisions of one agent",
}
DEVICE_NAMES = (
    "rule",
    "backend",
    "model",
    "precision",
    "candidates",
    "planner",
    "actions",
)
"""Entries of a row of `lssvwm benchmark device` that say what was measured."""


def device_grids(found: Row) -> list[Grid]:
    """Build the tables of `lssvwm benchmark device`: the peaks, then one per section."""
    peaks = found["peaks"]
    title = f"{found['device']}, {found['threads']} threads, backend {found['backend']}"
    grid = Grid(title, [["peak", "value"]])
    for name, value in peaks["products"].items():
        label = f"matrix products, {name}"
        grid.rows.append([label, f"{value / 1e12:.2f} TFLOP/s"])
    grid.rows.append(["copies", f"{peaks['copies'] / 1e9:.1f} GB/s"])
    return [grid, *(_device_grid(found, section) for section in DEVICE_TITLES)]


def _device_grid(found: Row, section: str) -> Grid:
    rows = [row for row in found["rows"] if row["section"] == section]
    names = [name for name in DEVICE_NAMES if any(name in row for row in rows)]
    known = {"section", *names}
    values = list(dict.fromkeys(key for row in rows for key in row if key not in known))
    header = [key.replace("_", " ") for key in (*names, *values)]
    grid = Grid(DEVICE_TITLES[section], [header])
    for row in rows:
        grid.rows.append([_device_cell(row.get(key)) for key in (*names, *values)])
    return grid


def _device_cell(value: Any) -> str:
    """Return a number with three digits, or a text."""
    if not isinstance(value, float):
        return NONE if value is None else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ---- cells


def interval_cell(value: Row, digits: int = 1) -> str:
    """Return a mean with its bounds, if it has any."""
    mean = f"{value['mean']:.{digits}f}"
    if "low" not in value:
        return mean
    return f"{mean} ({value['low']:.{digits}f} - {value['high']:.{digits}f})"


def difference_cell(gap: Row | None) -> str:
    """Return a paired difference with its bounds and p-value."""
    if gap is None:
        return NONE
    p = "p < .001" if gap["p"] < 0.001 else f"p = {gap['p']:.3f}"
    return f"{gap['mean']:+.2f} ({gap['low']:+.2f} - {gap['high']:+.2f}), {p}"


def _gain(gain: Row | None, n: int) -> str:
    """Return a paired difference of rewards, its bounds and its positive cases."""
    if gain is None:
        return NONE
    more = f"more in {round(gain['more'] * n)} of {n}"
    return f"{gain['mean']:+.1f} ({gain['low']:+.1f} - {gain['high']:+.1f}), {more}"


def reward_cell(row: Row) -> str:
    """Return the mean reward with its bounds."""
    mean = row["reward"]
    half = Z95 * row["reward_error"]
    return interval_cell({"mean": mean, "low": mean - half, "high": mean + half})
