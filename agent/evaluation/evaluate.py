"""Measure planning success on held-out tasks, the same for every arm.

A scripted guide walks the context phase of a task while the agent only observes.
Then the agent, or a scripted explorer, acts until the task ends.
The arms of `interventions` show how much of the success depends on memory.

Tasks are played in blocks of BLOCK tasks, which `tasks.workers` processes share.
Results do not depend on the number of workers, if each has as many threads.
(With `threads=0`, one process takes all cores, and each of several workers takes one.)

Random numbers of a task depend on its seed and on the seed of the run only.
With another BLOCK or other threads, matrix products may round differently.
Memories and continuous actions then differ in their last bits.
Discrete decisions differ only between plans whose scores are equal up to rounding.
`planner.time_budget` makes plans, and so all results, depend on the machine's speed.

Shapes: N tasks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_agent, build_env
from lssvwm.agent.config.migration import RENAMED_VALUES
from lssvwm.agent.config.settings import (
    CheckpointConfig,
    Config,
    EnvConfig,
)
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.interventions import (
    ARMS,
    SCRIPTED,
    Arm,
    Moment,
    RecentFrames,
    Seen,
    write_frames,
)
from lssvwm.agent.evaluation.origin import Origin, used_settings
from lssvwm.agent.evaluation.results import (
    Evaluation,
    Outcome,
    TaskList,
    arms_in,
    summarise,
    write,
)
from lssvwm.agent.files import locked
from lssvwm.agent.mpc import Agent
from lssvwm.agent.processes import Workers
from lssvwm.agent.progress import Progress
from lssvwm.agent.training.streams import HELD_OUT
from lssvwm.envs.base import BatchedEnv, Explorer
from lssvwm.worldmodel import Memory, WorldModel

BLOCK = 25
"""Tasks played at once. On a CPU, a task takes as long in larger blocks, which are harder to share."""
PIECE = 32
"""Frames of the context that the agent observes at once, in less time than one by one."""
WALK_SEED = 0
"""Seed of scripted walks, which depend on the seeds of the tasks, too."""
VALIDATION_SEED = 2**20
"""Added to the seed of a run for its validation tasks, which are in no test list."""
VALIDATION_TASKS = 64
"""Tasks of an evaluation during training."""


def task_seeds(seed: int, count: int) -> np.ndarray:
    """Return episode seeds of held-out tasks, int64 [count].

    Training draws episode seeds below 2**31; these lie above.
    """
    rng = np.random.default_rng([seed, HELD_OUT])
    return rng.integers(2**31, 2**32, size=count)


def balanced_seeds(env: BatchedEnv, seed: int, count: int) -> np.ndarray:
    """Return episode seeds of held-out tasks, int64 [count], with each right answer equally often.

    A constant answer then scores 1 / `env.answers`. Seeds whose answer is complete are left out.
    """
    if env.answers == 1:
        return task_seeds(seed, count)
    kinds = np.arange(env.answers)
    missing = count // env.answers + (kinds < count % env.answers)
    drawn = count
    while True:
        seeds = task_seeds(seed, drawn)
        answers = _answers(env, seeds)
        order = np.argsort(answers, kind="stable")
        # number of earlier seeds with the same answer
        rank = np.empty(drawn, np.int64)
        sizes = np.bincount(answers, minlength=env.answers)
        rank[order] = np.arange(drawn) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if (sizes >= missing).all():
            return seeds[rank < missing[answers]]
        drawn *= 2


def _answers(env: BatchedEnv, seeds: np.ndarray) -> np.ndarray:
    """Return the right answers of the episodes with these seeds, int64 [N]."""
    found = []
    for start in range(0, len(seeds), env.batch):
        some = seeds[start : start + env.batch]
        env.reset(np.arange(len(some)), some)
        found.append(env.answer()[: len(some)])
    return np.concatenate(found)


def list_tasks(config: Config, seeds: np.ndarray) -> TaskList:
    """Identify a task list by a hash of the environment's settings and the seeds."""
    listed = [vars(config.env), seeds.tolist()]
    text = json.dumps(listed, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return TaskList(config.tasks.seed, len(seeds), digest)


def noise_seeds(run_seed: int, tasks: np.ndarray) -> torch.Tensor:
    """Return the seeds of the agent's random numbers in tasks with these seeds, int64 [N]."""
    mixed = [
        np.random.default_rng([run_seed, task]).integers(2**62)
        for task in tasks.tolist()
    ]
    return torch.tensor(mixed)


class Player(Protocol):
    """Act in a batch of N tasks."""

    memory_bytes: int

    @property
    def memories(self) -> list[Memory]:
        """Memories [1] at planning start by task, if the player keeps them."""
        ...

    def observe(self, env: BatchedEnv, starts: np.ndarray, acting: np.ndarray) -> None:
        """Receive the present frames.

        `starts` bool [N] marks tasks whose planning starts, or starts again after a failure.
        `acting` bool [N] marks tasks whose planning has started.
        """
        ...

    def act(self, chosen: np.ndarray) -> np.ndarray:
        """Return actions [N, ...]; only those of tasks in `chosen` bool [N] are used."""
        ...


class ScriptedPlayer:
    """Act as a scripted explorer of the environment.

    It chooses actions in the context, too, where they are not used.
    Its random numbers in a task then do not depend on when other tasks end their context.
    """

    memory_bytes = 0

    def __init__(self, explorer: Explorer):
        self.explorer = explorer
        self.action = np.empty(0)

    @property
    def memories(self) -> list[Memory]:
        """Return none: an explorer has no memory."""
        return []

    def observe(self, env: BatchedEnv, starts: np.ndarray, acting: np.ndarray) -> None:
        """Choose actions by the state of the environment, not by its frames."""
        self.action = self.explorer.act()

    def act(self, chosen: np.ndarray) -> np.ndarray:
        """Return the explorer's actions [N, ...]."""
        return self.action


class AgentPlayer:
    """Act as the agent, with the intervention of one arm on its memory.

    `seeds` [N] are those of the tasks.
    `window` counts the frames that windowed arms observe.
    `others` [N] are the memories that the arm `swapped` starts with.
    """

    def __init__(
        self,
        agent: Agent,
        arm: Arm,
        seeds: np.ndarray,
        window: int,
        others: Memory | None = None,
    ):
        self.agent = agent
        self.arm = arm
        self.others = others
        batch = len(seeds)
        run_seed = agent.generator.initial_seed()
        self.state = agent.initial(batch, noise_seeds(run_seed, seeds))
        self.recent = RecentFrames(window - 1)
        self.first = torch.ones(batch, dtype=torch.bool)
        self.waiting: list[Seen] = []
        """Frames not yet written"""
        self.saved: dict[int, Memory] = {}
        self.memory_bytes = 0

    @property
    def memories(self) -> list[Memory]:
        """Memories [1] at planning start by task; empty for arms that intervene."""
        return [self.saved[task] for task in sorted(self.saved)]

    def observe(self, env: BatchedEnv, starts: np.ndarray, acting: np.ndarray) -> None:
        """Intervene on the memory, then write the present frames into it.

        While no task is being planned, frames wait and are written in pieces.
        """
        pixels = torch.from_numpy(env.frames().copy())
        action = torch.from_numpy(np.array(env.last_action()))
        seen = (pixels, action, self.first)
        if acting.any():
            self._write_context()
            memory = self._intervened(torch.from_numpy(starts))
            goals = env.goals()
            self.state = self.agent.observe(
                dataclasses.replace(self.state, memory=memory),
                *seen,
                goal=None if goals is None else torch.from_numpy(goals),
            )
        elif self.arm.observes_context:
            self.waiting.append(seen)
            if len(self.waiting) == PIECE:
                self._write_context()
        self.recent.append(seen)
        self.first = torch.zeros_like(self.first)

    def _write_context(self) -> None:
        """Write the frames that wait into memory."""
        memory = write_frames(self.agent.model, self.state.memory, self.waiting)
        self.state = dataclasses.replace(self.state, memory=memory)
        self.waiting.clear()

    def _intervened(self, starts: torch.Tensor) -> Memory:
        memory = self.state.memory
        moment = Moment(self.agent.model, memory, starts, self.recent, self.others)
        if self.arm.keeps_memories and starts.any():
            self.memory_bytes = memory.nbytes()
            for task in moment.starting.tolist():
                if task not in self.saved:  # later attempts are no planning start
                    self.saved[task] = memory[task : task + 1].clone()
        return self.arm.intervene(moment)

    def act(self, chosen: np.ndarray) -> np.ndarray:
        """Plan, or sample the policy head; returns actions [N, ...]."""
        decide = self.agent.act if self.arm.plans else self.agent.sample
        action, self.state = decide(self.state, torch.from_numpy(chosen))
        return action.cpu().numpy()


class Play:
    """Play a batch of tasks with one player.

    All tasks step together until each has ended.
    make_player: called after the tasks have started
    """

    def __init__(
        self, env: BatchedEnv, seeds: np.ndarray, make_player: Callable[[], Player]
    ):
        self.env = env
        env.reset(np.arange(env.batch), seeds)
        self.guide = env.guide(WALK_SEED)
        self.player = make_player()
        self.running = np.ones(env.batch, bool)
        self.acting = np.zeros(env.batch, bool)
        self.result = Outcome.empty(seeds)

    def run(self, progress: Progress | None = None) -> Outcome:
        """Play to the end; `progress` shows every step."""
        steps = 0
        while self.running.any():
            if progress is not None:
                progress.update(progress.done, f"step {steps:,} of an episode")
            steps += 1
            starts = self.running & ~self.acting & ~self.env.in_context()
            self._note_start(starts)
            self.acting |= starts
            again = self.running & self.acting & self.env.retries()
            self.player.observe(self.env, starts | again, self.acting)
            self._step(self._actions())
        self.result.memories = self.player.memories
        self.result.memory_bytes = self.player.memory_bytes
        return self.result

    def _note_start(self, starts: np.ndarray) -> None:
        if not starts.any():
            return
        truth = self.env.truth()
        self.result.goal_distance[starts] = truth["goal_distance"][starts]
        self.result.evidence_age[starts] = truth["evidence_age"][starts]
        self.result.goal[starts] = truth["goal"][starts]

    def _actions(self) -> np.ndarray:
        """Return the guide's actions in the context, and the player's after it."""
        action = self.guide.act().copy()
        chosen = self.acting & self.running
        if not chosen.any():
            return action
        began = time.perf_counter()
        own = self.player.act(chosen)
        self.result.seconds += time.perf_counter() - began
        self.result.decisions += int(chosen.sum())
        action[chosen] = own[chosen]
        return action

    def _step(self, action: np.ndarray) -> None:
        reward, terminated, truncated = self.env.step(action)
        truth = self.env.truth()
        result = self.result
        acted = self.running & self.acting
        result.steps[acted] += 1
        result.total_reward[self.running] += reward[self.running]
        result.success |= self.running & truth["success"]
        ended = self.running & (terminated | truncated)
        result.outcome[ended] = truth["outcome"][ended]
        self.running &= ~ended


def play_arm(
    env: BatchedEnv,
    seeds: np.ndarray,
    arm: str,
    agent: Agent | None = None,
    window: int = 1,
    others: Memory | None = None,
) -> Play:
    """Start one arm on a batch of tasks. `agent` is None for scripted arms.

    See `AgentPlayer` for `window` and `others`.
    """

    def make_player() -> Player:
        if agent is None:
            return ScriptedPlayer(env.explorer(arm, WALK_SEED))
        return AgentPlayer(agent, ARMS[arm], seeds, window, others)

    return Play(env, seeds, make_player)


@dataclass(frozen=True)
class Block:
    """Hold tasks that are played together in one arm.

    seeds: of the episodes, int64 [N]
    others: memories [N] that the arm `swapped` starts with
    """

    arm: str
    seeds: np.ndarray
    others: Memory | None = None


class BlockPlayer:
    """Play blocks of tasks. A copy in another process builds environments of its own."""

    def __init__(self, config: Config, model: WorldModel):
        self.config = config
        self.model = model
        self.envs: dict[int, BatchedEnv] = {}
        self.progress: Progress | None = None
        """Shows steps; a copy in another process has none."""

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockPlayer, (self.config, self.model)

    def env(self, batch: int) -> BatchedEnv:
        """Return the environment for blocks of `batch` tasks."""
        if batch not in self.envs:
            self.envs[batch] = build_env(self.config.env, batch)
        return self.envs[batch]

    def __call__(self, block: Block) -> Outcome:
        """Play a block to its end."""
        env = self.env(len(block.seeds))
        agent = None
        if block.arm in ARMS:
            agent = build_agent(self.config, self.model, env)
        window = self.config.tasks.window
        play = play_arm(env, block.seeds, block.arm, agent, window, block.others)
        return play.run(self.progress)


def split(
    arm: str, seeds: np.ndarray, others: Sequence[Memory] = ()
) -> Iterator[Block]:
    """Split the tasks of an arm into blocks of at most BLOCK tasks; see `Block`."""
    for start in range(0, len(seeds), BLOCK):
        part = slice(start, start + BLOCK)
        theirs = Memory.cat(others[part]) if others else None
        yield Block(arm, seeds[part], theirs)


def play_blocks(
    workers: Workers, blocks: Sequence[Block], progress: Progress
) -> Iterator[tuple[str, Outcome]]:
    """Play blocks of any arms; yield each arm when all its blocks are played."""
    missing = Counter(block.arm for block in blocks)
    played: dict[int, Outcome] = {}
    for number, outcome in workers.run(blocks, progress.refresh):
        arm = blocks[number].arm
        played[number] = outcome
        missing[arm] -= 1
        progress.update(progress.done + len(outcome.task_seed), arm)
        if not missing[arm]:
            parts = [played[i] for i, block in enumerate(blocks) if block.arm == arm]
            yield arm, Outcome.cat(parts)


def swap_partners(goal: np.ndarray) -> np.ndarray:
    """Return the next task, cyclically, with another goal; else simply the next.

    goal: [N]; returns indices [N].
    """
    n = len(goal)
    partners = []
    for task in range(n):
        following = (task + np.arange(1, n)) % n
        different = following[goal[following] != goal[task]]
        partners.append(different[0] if len(different) else (task + 1) % n)
    return np.array(partners)


def offered(env: BatchedEnv, arms: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `arms` that the environment offers, each once.

    Raises UserError for an arm that exists in no environment, or if none is offered.
    """
    renamed = RENAMED_VALUES["tasks.arms"]
    here = (*ARMS, *env.explorers)
    there_are = f"there are {', '.join(here)}"
    for arm in arms:
        if arm in renamed:
            raise UserError(f"tasks.arms: the arm {arm!r} is called {renamed[arm]!r}")
        if arm not in (*here, *SCRIPTED):
            raise UserError(f"tasks.arms: there is no arm {arm!r}; {there_are}")
    chosen = tuple(dict.fromkeys(arm for arm in arms if arm in here))
    if not chosen:
        raise UserError(f"tasks.arms: this environment has none of them; {there_are}")
    return chosen


def measure(
    config: Config,
    model: WorldModel,
    arms: tuple[str, ...],
    finished: Callable[[dict[str, Outcome]], None] = lambda outcomes: None,
) -> dict[str, Outcome]:
    """Play all arms on the same tasks; `finished` is called after each arm.

    Arms that the environment does not offer are left out.
    The arm `retained` comes first, and those that need its memories are played last.
    """
    player = BlockPlayer(config, model)
    count = config.tasks.count
    env = player.env(min(BLOCK, count))
    seeds = balanced_seeds(env, config.tasks.seed, count)
    chosen = offered(env, arms)
    if "swapped" in chosen and "retained" not in chosen:
        raise UserError("tasks.arms: swapped needs retained, whose memories it swaps")
    if "swapped" in chosen and count < 2:
        raise UserError(
            "tasks.arms: swapped needs the memory of another task: "
            "raise tasks.count, or leave swapped out"
        )
    order = sorted(chosen, key=lambda arm: arm != "retained")
    progress = Progress("evaluate", len(order) * count, "tasks")
    player.progress = progress
    outcomes: dict[str, Outcome] = {}

    def play(blocks: list[Block]) -> None:
        for arm, outcome in play_blocks(workers, blocks, progress):
            outcomes[arm] = outcome
            finished({arm: outcomes[arm] for arm in order if arm in outcomes})

    with Workers(player, config.tasks.workers, config.threads or 1) as workers:
        alone = [arm for arm in order if not _needs_others(arm)]
        play([block for arm in alone for block in split(arm, seeds)])
        for arm in order:
            if _needs_others(arm):
                others = _swapped(outcomes["retained"])
                play(list(split(arm, seeds, others)))
    progress.close()
    return {arm: outcomes[arm] for arm in order}


def _needs_others(arm: str) -> bool:
    return arm in ARMS and ARMS[arm].needs_others


def _swapped(retained: Outcome) -> list[Memory]:
    """Return for each task the memory [1] of another one."""
    memories = retained.memories
    unplanned = len(retained.goal) - len(memories)
    if unplanned:
        raise UserError(
            f"tasks.arms: swapped needs a planning start in every task, but {unplanned} "
            f"of {len(retained.goal)} ended before: give more steps, or leave swapped out"
        )
    return [memories[partner] for partner in swap_partners(retained.goal)]


@dataclass(frozen=True)
class Validation:
    """Hold a few validation tasks, for use while training, and their environment."""

    env: BatchedEnv
    seeds: np.ndarray

    def success(self, agent: Agent) -> float:
        """Return the success rate of an agent with its memory."""
        progress = Progress("validate", 1, "rounds")
        outcome = play_arm(self.env, self.seeds, "retained", agent).run(progress)
        return float(outcome.success.mean())


def build_validation(env: EnvConfig, seed: int) -> Validation:
    """Draw the validation tasks of a run with this seed and build their environment."""
    built = build_env(env, VALIDATION_TASKS)
    seeds = balanced_seeds(built, VALIDATION_SEED + seed, VALIDATION_TASKS)
    return Validation(built, seeds)


def summary(config: Config, outcomes: dict[str, Outcome]) -> Evaluation:
    """Summarise the outcomes of `measure`, with the task list and the settings."""
    some = next(iter(outcomes.values()))
    tasks = list_tasks(config, some.task_seed)
    solved = len(some.task_seed) - len(some.counted().task_seed)
    if solved == len(some.task_seed):
        raise UserError(
            f"all {solved} tasks are solved before the first action, so that there is "
            f"nothing to measure: change settings of env, or tasks.seed"
        )
    tasks = dataclasses.replace(tasks, solved_at_start=solved)
    return Evaluation(tasks, summarise(outcomes), used_settings(config))


def evaluate(config: CheckpointConfig, output: Path) -> dict[str, Any]:
    """Run `lssvwm evaluate`: all arms on the held-out tasks.

    Prints tables; writes them as Markdown, and JSON, CSV and a plot, into `output`.
    Results are written after each arm, so that a stopped run keeps the arms it finished. Complete results are replaced
    by complete ones only.
    """
    if config.checkpoint is None:
        raise UserError("evaluate needs checkpoint=NAME_OR_FOLDER")
    if config.threads:
        torch.set_num_threads(config.threads)
    model = checkpoint.load(config.checkpoint, config.device, config.backend)
    origin = Origin.of(config.checkpoint)
    with locked(output):
        return _evaluate(config, model, origin, output)


def _evaluate(
    config: CheckpointConfig, model: WorldModel, origin: Origin, output: Path
) -> dict[str, Any]:
    """Evaluate a loaded model."""
    from lssvwm.agent.evaluation.plots import plot_success
    from lssvwm.agent.evaluation.tables import evaluation_grids, publish

    found: dict[str, Any] = {"arms": {}}
    earlier = arms_in(output)

    def keep(outcomes: dict[str, Outcome]) -> None:
        result = dataclasses.replace(summary(config, outcomes), origin=origin)
        found.update(result.to_dict())
        if len(outcomes) >= earlier:
            write(result, outcomes, output)

    try:
        measure(config, model, config.tasks.arms, keep)
    except KeyboardInterrupt:
        kept = ""
        if earlier > len(found["arms"]):
            kept = f", the earlier results in {output} stay"
        elif found["arms"]:
            kept = f", {', '.join(found['arms'])} saved in {output}"
        raise KeyboardInterrupt(f"evaluating{kept}") from None
    plot_success(found, output / "success.png")
    publish(evaluation_grids(found), output / "evaluation.md")
    if "retained" in found["arms"]:
        retained = found["arms"]["retained"]
        pace = 1000 * retained["seconds_per_decision"]
        size = retained["memory_bytes"] / 1024
        print(f"retained: {pace:.1f} ms per decision, a memory of {size:.0f} KiB")
    return found
