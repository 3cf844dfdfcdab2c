"""Planning success on held-out tasks, the same for every arm, and what proves that memory is what makes it work.

A task: a scripted guide walks the context phase while the agent only observes; then the agent acts. Arms:
    retained   the memory of all that was observed
    erased     memory reset when planning starts
    swapped    the memory of another task (with another answer, where the environment tells)
    window     only the last `tasks.window` frames were observed when planning starts
    always_window  never more than the last `tasks.window` frames are remembered, while planning either
    policy     the policy head acts on the retained memory, without planning
    any scripted explorer of the environment: random, noop, wall, seek ... oracle
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.config.settings import CheckpointConfig, Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent, AgentState, build_agent
from lssvwm.agent.progress import Progress
from lssvwm.agent.training.collection import HELD_OUT, build_env
from lssvwm.envs.base import BatchedEnv
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

MEMORY_ARMS = ("retained", "erased", "swapped", "window", "always_window", "policy")
FLOORS = (
    "random",
    "noop",
    "seek",
    "wall",
    "forage",
    "oracle",
)  # left out where an environment has no such explorer


VALIDATION_TASKS = 64
"""Tasks of an evaluation during training."""
ARRAYS = (
    "success",
    "outcome",
    "steps",
    "total_reward",
    "goal_distance",
    "evidence_age",
    "goal",
)
"""What is told of every task."""


@dataclass
class Outcome:
    """How each of N tasks ended, arrays [N]; distances and ages as they were when planning started."""

    success: np.ndarray
    outcome: np.ndarray
    steps: np.ndarray
    total_reward: np.ndarray
    goal_distance: np.ndarray
    evidence_age: np.ndarray
    goal: np.ndarray
    seconds: float = 0.0  # spent deciding, all tasks together
    decisions: int = 0
    memory_bytes: int = 0
    memories: list[Memory] = field(
        default_factory=list
    )  # as they were when planning started, [1] each

    def counted(self) -> Outcome:
        """Without the tasks that were solved before anybody moved, which say nothing."""
        some = self.goal_distance != 0
        return replace(self, **{key: getattr(self, key)[some] for key in ARRAYS})

    @staticmethod
    def cat(parts: list[Outcome]) -> Outcome:
        """The tasks of all parts, one after the other."""
        return Outcome(
            **{
                key: np.concatenate([getattr(part, key) for part in parts])
                for key in ARRAYS
            },
            seconds=sum(p.seconds for p in parts),
            decisions=sum(p.decisions for p in parts),
            memory_bytes=max(p.memory_bytes for p in parts),
            memories=[m for p in parts for m in p.memories],
        )


def task_seeds(seed: int, count: int) -> np.ndarray:
    """Episode seeds of held-out tasks, int64 [count]; training draws below 2**31, these lie above."""
    return np.random.default_rng([seed, HELD_OUT]).integers(2**31, 2**32, size=count)


def tasks_hash(config: Config, seeds: np.ndarray) -> str:
    """Names the task list: the environment's settings and the seeds."""
    text = json.dumps([vars(config.env), seeds.tolist()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Play:
    """One arm on one batch of tasks, all slots stepped together until every task has ended."""

    def __init__(
        self,
        config: Config,
        env: BatchedEnv,
        seeds: np.ndarray,
        arm: str,
        agent: Agent | None,
    ):
        self.config, self.env, self.arm, self.agent = config, env, arm, agent
        env.reset(np.arange(env.batch), seeds)
        n = env.batch
        self.guide = env.guide(int(seeds[0]) % 2**31)
        self.scripted = None if agent else env.explorer(arm, int(seeds[0]) % 2**31)
        self.running, self.control = np.ones(n, bool), np.zeros(n, bool)
        self.recent: list[tuple[Tensor, Tensor, Tensor]] = []
        zeros = np.zeros(n, np.int64)
        self.result = Outcome(
            np.zeros(n, bool),
            zeros.copy(),
            zeros.copy(),
            np.zeros(n),
            zeros - 1,
            zeros - 1,
            zeros.copy(),
        )
        self.result.memories = [None] * n  # type: ignore[list-item]
        self.state = agent.initial(n) if agent else None
        self.first = np.ones(n, bool)

    def run(self, others: Memory | None = None) -> Outcome:
        """Play to the end; `others` [N] are the memories that the `swapped` arm begins with."""
        while self.running.any():
            starts = self.running & ~self.control & ~self.env.in_context()
            if starts.any():
                self._note(starts)
            if self.agent:
                self._observe(starts, others)
            self.control |= starts
            self._step(self._actions())
        return self.result

    def _note(self, starts: np.ndarray) -> None:
        truth = self.env.truth()
        for key in ("goal_distance", "evidence_age", "goal"):
            getattr(self.result, key)[starts] = truth[key][starts]

    def _observe(self, starts: np.ndarray, others: Memory | None) -> None:
        agent, state = self.agent, self.state
        assert agent is not None and state is not None
        frame = (
            torch.from_numpy(self.env.frames().copy()),
            torch.from_numpy(np.array(self.env.last_action())),
            torch.from_numpy(self.first.copy()),
        )
        if self.arm == "always_window":
            state = replace(state, memory=self._window_memory(torch.arange(len(state))))
        elif starts.any():
            state = self._intervene(state, torch.from_numpy(starts), others)
        self.recent = [*self.recent, frame][-self.config.tasks.window :]
        if self.arm in ("retained", "policy") or (self.control | starts).any():
            goals = self.env.goals()
            state = agent.observe(
                state, *frame, goal=None if goals is None else torch.from_numpy(goals)
            )
        self.state = state

    def _intervene(
        self, state: AgentState, starts: Tensor, others: Memory | None
    ) -> AgentState:
        """Set the memory of the slots whose planning starts, as the arm wants it."""
        agent = self.agent
        assert agent is not None
        where = starts.nonzero()[:, 0]
        if self.arm == "retained":
            for i in where.tolist():
                self.result.memories[i] = state.memory[i : i + 1].clone()
            self.result.memory_bytes = state.memory.nbytes()
            return state
        if self.arm == "policy":
            return state
        if self.arm == "erased":
            new = agent.model.initial(len(where))
        elif self.arm == "swapped":
            assert others is not None
            new = others[where]
        else:
            new = self._window_memory(where)
        memory = state.memory.clone()
        memory[where] = new
        return replace(state, memory=memory)

    @torch.no_grad()
    def _window_memory(self, where: Tensor) -> Memory:
        """What a new memory holds after the last frames before the present one."""
        assert self.agent is not None
        memory = self.agent.model.initial(len(where))
        before = self.config.tasks.window - 1
        for frames, action, first in self.recent[-before:] if before else []:
            x = (
                v[where][:, None].to(memory.frames.device)
                for v in (frames, action, first)
            )
            memory, _ = self.agent.model.observe(memory, *x)
        return memory

    def _actions(self) -> np.ndarray:
        action = self.guide.act().copy()
        chosen = self.control & self.running
        if not chosen.any():
            return action
        began = time.perf_counter()
        if self.agent is None:
            assert self.scripted is not None
            own = self.scripted.act()
        else:
            assert self.state is not None
            if self.arm == "policy":
                decided = self.agent.sample(self.state.policy)
            else:
                decided, self.state = self.agent.act(
                    self.state, torch.from_numpy(chosen)
                )
            own = decided.cpu().numpy()
        self.result.seconds += time.perf_counter() - began
        self.result.decisions += int(chosen.sum())
        action[chosen] = own[chosen]
        return action

    def _step(self, action: np.ndarray) -> None:
        reward, terminated, truncated = self.env.step(action)
        self.first[:] = False
        truth, result = self.env.truth(), self.result
        acted = self.running & self.control
        result.steps[acted] += 1
        result.total_reward[self.running] += reward[self.running]
        result.success |= self.running & truth["success"]
        ended = self.running & (terminated | truncated)
        result.outcome[ended] = truth["outcome"][ended]
        self.running &= ~ended


def play(
    config: Config,
    arm: str,
    seeds: np.ndarray,
    agent: Agent | None,
    others: Memory | None,
    progress,
) -> Outcome:
    """One arm on all tasks, in batches of `tasks.batch`."""
    parts, size = [], config.tasks.batch
    for i in range(0, len(seeds), size):
        some = seeds[i : i + size]
        env = build_env(config, len(some))
        parts.append(
            Play(config, env, some, arm, agent).run(
                None if others is None else others[i : i + size]
            )
        )
        progress.update(progress.done + len(some), arm)
    return Outcome.cat(parts)


def swap_partners(goal: np.ndarray) -> np.ndarray:
    """For every task the next one (cyclically) whose goal differs, or simply the next if none does."""
    n = len(goal)
    order = [(np.arange(1, n) + i) % n for i in range(n)]
    return np.array(
        [
            next((j for j in o if goal[j] != goal[i]), (i + 1) % n)
            for i, o in enumerate(order)
        ]
    )


def offered(env: BatchedEnv, arms: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `arms` that there are in this environment; raises UserError for one that there is in none."""
    for arm in arms:
        if arm not in (*MEMORY_ARMS, *FLOORS, *env.explorers):
            known = ", ".join((*MEMORY_ARMS, *env.explorers))
            raise UserError(f"tasks.arms: there is no arm {arm!r}; there are {known}")
    return tuple(arm for arm in arms if arm in MEMORY_ARMS or arm in env.explorers)


def measure(
    config: Config,
    model: WorldModel,
    arms: tuple[str, ...],
    finished: Callable[[dict[str, Outcome]], None] = lambda results: None,
) -> dict[str, Outcome]:
    """All arms on the same tasks; `finished` is called after each. Arms that the environment does not offer are left
    out."""
    env = build_env(config, 1)
    seeds, arms = task_seeds(config.tasks.seed, config.tasks.count), offered(env, arms)
    if "swapped" in arms and "retained" not in arms:
        raise UserError("tasks.arms: swapped needs retained, whose memories it swaps")
    arms = tuple(sorted(arms, key=lambda arm: arm != "retained"))
    progress = Progress("evaluate", len(arms) * len(seeds), "tasks")
    results: dict[str, Outcome] = {}
    for arm in arms:
        agent = build_agent(config, model, env) if arm in MEMORY_ARMS else None
        others = None
        if arm == "swapped":
            kept = results["retained"]
            others = Memory.cat(kept.memories)[
                torch.from_numpy(swap_partners(kept.goal))
            ]
        results[arm] = play(config, arm, seeds, agent, others, progress)
        finished(results)
    progress.close()
    return results


def quick_success(config: Config, model: WorldModel) -> float:
    """Success of `retained` on a few validation tasks (other seeds than any test list), for use while training."""
    seeds = task_seeds(2**20 + config.seed, VALIDATION_TASKS)
    env = build_env(config, len(seeds))
    return float(
        Play(config, env, seeds, "retained", build_agent(config, model, env))
        .run()
        .success.mean()
    )


def wilson(successes: float, n: int, z: float = 1.96) -> dict[str, float]:
    """Share of successes with its 95 % interval (Wilson 1927)."""
    if n == 0:
        return {"mean": math.nan, "low": 0.0, "high": 1.0}
    p = successes / n
    middle, spread = (
        p + z * z / (2 * n),
        z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
    )
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return {"mean": p, "low": min(p, max(0.0, low)), "high": max(p, min(1.0, high))}


def difference(a: np.ndarray, b: np.ndarray, z: float = 1.96) -> dict[str, float]:
    """Mean of the paired differences a - b of successes, its 95 % interval (Agresti and Min 2005: half a pair is added
    to each of the four outcomes), and the p-value of McNemar's exact test."""
    n, won, lost = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    gap, spread = (
        (won - lost) / (n + 2),
        math.sqrt(won + lost + 1 - (won - lost) ** 2 / (n + 2)) / (n + 2),
    )
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (
        won + lost
    )
    bounds = {"low": max(-1.0, gap - z * spread), "high": min(1.0, gap + z * spread)}
    return (
        {"mean": (won - lost) / n if n else math.nan}
        | bounds
        | {"p": min(1.0, 2 * tail)}
    )


def gain(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean of the paired differences a - b of rewards with its 95 % interval (normal), and the share of tasks in which
    a is more."""
    gap, n = a - b, len(a)
    mean, half = (
        float(gap.mean()),
        1.96 * float(gap.std(ddof=int(n > 1))) / math.sqrt(max(1, n)),
    )
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "more": float((gap > 0).mean()),
    }


def summary(config: Config, results: dict[str, Outcome]) -> dict[str, Any]:
    """What `evaluation.json` holds."""
    seeds = task_seeds(config.tasks.seed, config.tasks.count)
    tasks: dict[str, Any] = {
        "seed": config.tasks.seed,
        "count": len(seeds),
        "hash": tasks_hash(config, seeds),
    }
    out: dict[str, Any] = {
        "tasks": tasks,
        "arms": {},
        "settings": {"env": vars(config.env), "planner": vars(config.planner)},
    }
    results = {arm: result.counted() for arm, result in results.items()}
    for arm, result in results.items():
        tasks["solved_at_start"] = len(seeds) - len(result.success)
        row: dict[str, Any] = {
            "n": len(result.success),
            "success": wilson(result.success.sum(), len(result.success)),
        }
        row["wrong"] = float((result.outcome == 2).mean())
        row["timeout"] = float((result.outcome == 3).mean())
        row["reward"] = float(result.total_reward.mean())
        row["reward_error"] = float(
            result.total_reward.std() / math.sqrt(max(1, len(result.success)))
        )
        row["steps"] = float(result.steps.mean())
        row["seconds_per_decision"] = result.seconds / max(1, result.decisions)
        row["memory_bytes"] = (
            results["retained"].memory_bytes
            if arm in MEMORY_ARMS and "retained" in results
            else 0
        )
        if arm != "retained" and "retained" in results:
            row["retained_minus_this"] = difference(
                results["retained"].success, result.success
            )
            row["retained_minus_this_reward"] = gain(
                results["retained"].total_reward, result.total_reward
            )
        row["by_goal_distance"] = grouped(result.success, result.goal_distance)
        row["by_evidence_age"] = grouped(result.success, result.evidence_age)
        row["by_both"] = crossed(result)
        out["arms"][arm] = row
    return out


def ranges(by: np.ndarray, groups: int = 4) -> list[np.ndarray]:
    """Which tasks lie in each of up to `groups` about equally full ranges of `by`, bool [N] each; none unknown (-1)."""
    known = by >= 0
    if not known.any():
        return []
    edges = np.unique(np.quantile(by[known], np.linspace(0, 1, groups + 1)))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    last = len(edges) - 2
    inside = [
        known & (by >= low) & ((by < high) | (i == last) & (by <= high))
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    return [some for some in inside if some.any()]


def grouped(
    success: np.ndarray, by: np.ndarray, groups: int = 4
) -> list[dict[str, Any]]:
    """Success in ranges of `by`."""
    return [
        {"from": int(by[some].min()), "to": int(by[some].max()), "n": int(some.sum())}
        | {"success": wilson(success[some].sum(), int(some.sum()))}
        for some in ranges(by, groups)
    ]


def crossed(result: Outcome, groups: int = 3) -> list[dict[str, Any]]:
    """Success by goal distance and evidence age together, cells without tasks left out."""
    cells = []
    for far in ranges(result.goal_distance, groups):
        for old in ranges(result.evidence_age, groups):
            both, distance, age = (
                far & old,
                result.goal_distance[far],
                result.evidence_age[old],
            )
            if both.any():
                cell = {
                    "distance": int(distance.min()),
                    "to_distance": int(distance.max()),
                }
                cell |= {
                    "age": int(age.min()),
                    "to_age": int(age.max()),
                    "n": int(both.sum()),
                }
                cells.append(
                    cell
                    | {"success": wilson(result.success[both].sum(), int(both.sum()))}
                )
    return cells


def evaluate(config: CheckpointConfig, output: Path) -> dict[str, Any]:
    """`lssvwm evaluate`: all arms on the held-out tasks; tables on the terminal and as Markdown, JSON, CSV, a plot in
    `output`.

    Everything is written anew after each arm, so that a run which is stopped leaves the arms it finished.
    """
    from lssvwm.agent.evaluation.tables import evaluation_grids, plot, publish, write

    if config.checkpoint is None:
        raise UserError("evaluate needs checkpoint=NAME_OR_FOLDER")
    if config.threads:
        torch.set_num_threads(config.threads)
    model = checkpoint.load(config.checkpoint, config.device, config.backend)
    output.mkdir(parents=True, exist_ok=True)
    seeds = task_seeds(config.tasks.seed, config.tasks.count)
    found = summary(config, {})

    def keep(results: dict[str, Outcome]) -> None:
        found.update(summary(config, results))
        write(found, results, seeds, output)

    try:
        measure(config, model, config.tasks.arms, keep)
    except KeyboardInterrupt:
        kept = (
            f", {', '.join(found['arms'])} saved in {output}" if found["arms"] else ""
        )
        raise KeyboardInterrupt(f"evaluating{kept}") from None
    plot(found, output / "success.png")
    publish(evaluation_grids(found), output / "evaluation.md")
    if "retained" in found["arms"]:
        mine = found["arms"]["retained"]
        pace = f"{1000 * mine['seconds_per_decision']:.1f} ms a decision"
        print(f"retained: {pace}, a memory of {mine['memory_bytes'] / 1024:.0f} KiB")
    return found
