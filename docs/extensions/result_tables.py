"""Build the tables of the results pages from the JSON files in `docs/results`.

The directive `{result-table} FILE.json` inserts all tables of a file. `:grids: 1` takes
the first one only, `:skip: 1` leaves the first one out, `:replace: old=new, ...` replaces
labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.tables import Grid
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).resolve().parents[1] / "results"
MODELS = {
    "small": "SSD (`small`)",
    "untiled": "SSD, one tile (`untiled`)",
    "delta": "delta rule, one tile (`delta`)",
    "attention": "full attention",
    "window": "window of 16",
}
OPERATIONS = {
    "observe": "observe",
    "imagine": "imagine 32 futures of 8 frames",
    "train": "train",
}
CACHES = {"dual": "TokenCache", "private": "StateCache"}


def speed_grids(found: dict[str, Any]) -> list[Grid]:
    """Return one table per operation: time per frame against the frames in memory."""
    grids = []
    for operation, label in OPERATIONS.items():
        rows = [row for row in found["rows"] if row["operation"] == operation]
        contexts = sorted({row["context"] for row in rows})
        unit = "frames per sequence" if operation == "train" else "frames in memory"
        last = contexts[-1]
        header = ["model", f"{contexts[0]} {unit}", *(str(n) for n in contexts[1:])]
        if operation == "observe":
            header.append(f"memory at {last}")
        table = [header]
        for model in dict.fromkeys(row["model"] for row in rows):
            mine = {row["context"]: row for row in rows if row["model"] == model}
            table.append(_speed_row(model, mine, contexts, operation))
        grids.append(Grid(f"Time per frame, {label}", table))
    return grids


def _speed_row(
    model: str, mine: dict[int, dict[str, Any]], contexts: list[int], operation: str
) -> list[str]:
    first = 1e3 * mine[contexts[0]]["seconds_per_frame"]
    cells = [MODELS.get(model, model), f"{first:.2f} ms"]
    for context in contexts[1:]:
        cells.append(f"x {mine[context]['ratio']:.2f}" if context in mine else "-")
    if operation == "observe":
        cells.append(f"{mine[contexts[-1]]['memory_bytes'] / 1e6:,.2f} MB")
    return cells


def rollout_grid(found: dict[str, Any]) -> Grid:
    """Return memory and time of shared rollouts, relative to copies of the memory."""
    header = ["model", "horizon", "memory", "time", "cache of each layer"]
    rows = [header]
    for row in found["rows"]:
        memory = row["fork_bytes"] / row["copies_bytes"]
        time = row["fork_seconds"] / row["copies_seconds"]
        caches = ", ".join(CACHES.get(name, name) for name in row["forms"])
        cells = [row["model"], str(row["horizon"])]
        rows.append([*cells, f"x {memory:.2f}", f"x {time:.2f}", caches])
    return Grid("Shared rollouts, relative to copies", rows)


def environment_grid(found: dict[str, Any]) -> Grid:
    """Return frames per second of the maze environments."""
    rows = [["environment", "batch", "engine", "through TorchRL"]]
    for row in found["rows"]:
        speeds = f"{row['engine']:,}", f"{row['torchrl']:,}"
        rows.append([row["env"], str(row["batch"]), *speeds])
    return Grid("Frames per second", rows)


def fault_grid(found: dict[str, Any]) -> Grid:
    """Return the cases of every kind of fault, and how many ended badly."""
    rows = [["kind", "cases", "faults"]]
    for kind, count in found["kinds"].items():
        rows.append([kind, str(count["cases"]), str(count["faults"])])
    return Grid("All cases", rows)


BUILDERS: dict[str, Callable[[dict[str, Any]], list[Grid]]] = {
    "demo": tables.evaluation_grids,
    "evaluation": tables.evaluation_grids,
    "recall": lambda found: [tables.success_grid(found)],
    "strategies": lambda found: [tables.success_grid(found)],
    "seeds": lambda found: [tables.seeds_grid(found)],
    "planners": lambda found: [tables.planner_grid(found)],
    "device": tables.device_grids,
    "decide": lambda found: [tables.decision_grid(found)],
    "memory": tables.memory_grids,
    "memorymaze": tables.memory_maze_grids,
    "speed": speed_grids,
    "faults": lambda found: [fault_grid(found)],
    "fork": lambda found: [rollout_grid(found)],
    "environments": lambda found: [environment_grid(found)],
}
"""Table functions by the stem of a file; all other files are sweeps."""


def read(name: str) -> dict[str, Any]:
    """Read a result file by its path below `docs/results`."""
    return results.read(RESULTS / name)


def grids(name: str) -> list[Grid]:
    """Build all tables of a result file."""
    build = BUILDERS.get(Path(name).stem, tables.sweep_grids)
    return build(read(name))


READS = 8
"""Times that a learner reads each collected frame."""
LEARNERS = 10_000, 100_000, 1_000_000
"""Frames per second of faster learners, for comparison."""
COLLECTORS = 10_000, 1_000, 50
"""Frames per second of one collector."""


def collectors_grid(found: dict[str, Any]) -> Grid:
    """Return how many collectors keep a learner busy, from its measured speed."""
    header = [f"one collector makes {speed:,} frames/s" for speed in COLLECTORS]
    grid = Grid("Collectors for one learner", [["learner", *header]])
    for row in found["rows"]:
        if row["section"] == "training" and row["precision"] == "bf16":
            name = f"`{row['model']}` here, {row['frames_per_second']:,.0f} frames/s"
            grid.rows.append([name, *_collectors(row["frames_per_second"])])
    for speed in LEARNERS:
        grid.rows.append([f"{speed:,} frames/s", *_collectors(speed)])
    return grid


def _collectors(learner: float) -> list[str]:
    needed = [math.ceil(learner / READS / speed) for speed in COLLECTORS]
    return [f"{count:,}" for count in needed]


SUMMARY = {
    "T-maze, length 16": "pretrained/tmaze/evaluation.json",
    "T-maze, no guide": "tmaze_alone.json",
    "Recall, 9 x 9, 3 balls": "pretrained/recall9/evaluation.json",
    "Return, 9 x 9, 3 balls": "pretrained/return9/evaluation.json",
    "MiniGrid-Memory, size 17": "pretrained/memory17/evaluation.json",
    "Point maze from within": "pretrained/spots/evaluation.json",
    "Scavenge (balls fetched)": "scavenge.json",
}
"""Rows of the summary table, and the file of each."""


def summary() -> Grid:
    """Build the summary of seven tasks: memory kept, memory removed, policy head, oracle."""
    header = ["task", "tasks", "with memory (95 %)", "without", "policy head", "oracle"]
    rows = [header]
    for task, name in SUMMARY.items():
        found = read(name)
        arms = found["cases"][0]["arms"] if "cases" in found else found["arms"]
        rows.append([task, *_summary_cells(arms)])
    return Grid("Planning success on held-out tasks", rows)


def _summary_cells(arms: dict[str, Any]) -> list[str]:
    retained = arms["retained"]
    without = arms["erased"] if "erased" in arms else arms["always_window"]
    others = [without, arms["policy"], arms["oracle"]]
    if retained["reward"] > 1.05:  # several rewards per task: Scavenge
        half = 1.96 * retained["reward_error"]
        low, high = retained["reward"] - half, retained["reward"] + half
        first = f"{retained['reward']:.1f} ({low:.1f} - {high:.1f})"
        return [str(retained["n"]), first, *(f"{arm['reward']:.1f}" for arm in others)]
    success = retained["success"]
    first = f"{success['mean']:.2f} ({success['low']:.2f} - {success['high']:.2f})"
    means = [f"{arm['success']['mean']:.2f}" for arm in others]
    return [str(retained["n"]), first, *means]


class CollectorsTable(SphinxDirective):
    """Insert the table of collectors, computed from a result of `benchmark device`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the parsed table."""
        name = self.arguments[0]
        self.env.note_dependency(str(RESULTS / name))
        return self.parse_text_to_nodes(collectors_grid(read(name)).markdown())


class ResultTable(SphinxDirective):
    """Insert the tables of one result file."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012
        "grids": directives.positive_int,
        "skip": directives.nonnegative_int,
        "replace": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Return the parsed tables."""
        name = self.arguments[0]
        if name == "summary":
            found = [summary()]
        else:
            self.env.note_dependency(str(RESULTS / name))
            found = grids(name)
        first = self.options.get("skip", 0)
        chosen = found[first : first + self.options.get("grids", len(found))]
        text = "\n".join(grid.markdown() for grid in chosen)
        for pair in self.options.get("replace", "").split(","):
            old, _, new = pair.strip().partition("=")
            text = text.replace(old, new) if old else text
        parsed = self.parse_text_to_nodes(text)
        for node in parsed:
            for table in node.findall(nodes.table):
                table["classes"].append("result")
        return parsed


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("result-table", ResultTable)
    app.add_directive("collectors-table", CollectorsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
