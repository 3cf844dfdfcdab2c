"""Run the environments of Memory Gym, which need memory and are seen from above."""

from __future__ import annotations

import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    STRICT,
    SUCCESS,
    TIMEOUT,
    WRONG,
    BatchedEnv,
    Discrete,
    Explorer,
    NoopExplorer,
    RandomExplorer,
    Step,
    blank_frames,
    counts,
    flags,
    slots_where,
    unknown_explorer,
)
from lssvwm.envs.gymnasium_spaces import from_action, to_actions
from lssvwm.envs.memorygym.explorers import StrategyExplorer
from lssvwm.envs.memorygym.games import Game
from lssvwm.envs.memorygym.mortar_mayhem import FreeMortarMayhemGame, MortarMayhemGame
from lssvwm.envs.memorygym.mystery_path import FreeMysteryPathGame, MysteryPathGame
from pydantic import Field
from pydantic.dataclasses import dataclass

GAMES: dict[str, type[Game]] = {
    "MysteryPath-Grid-v0": MysteryPathGame,
    "MortarMayhem-Grid-v0": MortarMayhemGame,
    "MysteryPath-v0": FreeMysteryPathGame,
    "MortarMayhem-v0": FreeMortarMayhemGame,
    "SearingSpotlights-v0": Game,
    "Endless-MysteryPath-v0": Game,
    "Endless-MortarMayhem-v0": Game,
    "Endless-SearingSpotlights-v0": Game,
}
"""Reader of every environment. MortarMayhemB shows its commands as numbers, not in frames."""
SIDE = 84
"""Side of a frame, in pixels."""
NAMES = ("stay", "left", "right", "forward")
"""Actions of the grid variants."""
MISSING = (
    "env=memorygym needs Memory Gym; install it with: "
    "pip install 'pygame-ce>=2.5' && pip install --no-deps memory-gym==1.0.2"
)
QUIET = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_AUDIODRIVER": "dummy"}
"""Variables without which pygame greets, and looks for a sound card."""


@dataclass(frozen=True, config=STRICT)
class MemoryGymConfig:
    """Choose an environment of Memory Gym."""

    kind: Literal["memorygym"] = "memorygym"
    """Name of this kind of environment."""
    id: str = "MysteryPath-Grid-v0"
    """Id in Memory Gym, except MortarMayhemB, whose commands are not in the frames."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Reset parameters of the id that differ from its own, e.g. {command_count: [5]}."""

    def build(self, batch: int) -> MemoryGymEnv:
        """Return `batch` of these environments.

        Raises ImportError with the pip command without Memory Gym, and ValueError for
        an unknown id or option.
        """
        return MemoryGymEnv(self, batch)


class MemoryGymEnv(BatchedEnv):
    """Run B environments of one id; the package makes episodes, moves and frames.

    ## Description
    Mystery Path: find an invisible path across a grid. A fall puts the agent back to the
    start. Mortar Mayhem: commands are shown, which is the context, then executed.

    ## Actions
    Grid variants: stay, left, right, forward. Others: every combination of a horizontal
    and a vertical move. An action that the context ignores is reported as 0.

    ## Observation
    uint8 [B, 3, 84, 84]: the package's frame, seen from above.

    ## Reward
    The package's, see `options`.

    ## Termination
    The package's; its time limit truncates.
    """

    def __init__(self, config: MemoryGymConfig, batch: int):
        self.config = config
        self.batch = batch
        self.frame_shape = (3, SIDE, SIDE)
        make = _maker(config.id)
        self.envs = [make() for _ in range(batch)]
        _check_options(config, self.envs[0])
        self.games = [GAMES[config.id](env) for env in self.envs]
        self.explorers = ("random", "noop", *self.games[0].explorers)
        actions = to_actions(self.envs[0], config.id)
        assert isinstance(actions, Discrete)
        named = actions.n == len(NAMES)
        self.actions = Discrete(actions.n, NAMES) if named else actions
        self.episode = counts(batch)
        self.seeds = counts(batch)
        self._terminated = flags(batch)
        self._truncated = flags(batch)
        self._success = flags(batch)
        self._frames = blank_frames(batch, SIDE)
        self._action = counts(batch)

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`; the package gets the same seed."""
        for slot, seed in zip(np.asarray(where).tolist(), np.asarray(seeds).tolist()):
            options = dict(self.config.options)
            picture, _ = self.envs[slot].reset(seed=seed, options=options)
            self.games[slot].begin()
            self._frames[slot] = _upright(picture)
            self.episode[slot] += 1
            self.seeds[slot] = seed
            self._action[slot] = 0
            self._terminated[slot] = False
            self._truncated[slot] = False
            self._success[slot] = False

    def step(self, action: np.ndarray) -> Step:
        """Step every running slot by `action`, int64 [B].

        Raises RuntimeError if a slot was never reset.
        """
        if not self.episode.all():
            raise RuntimeError("reset every slot before the first step")
        reward = np.zeros(self.batch, np.float32)
        running = ~(self._terminated | self._truncated)
        for slot in slots_where(running):
            reward[slot] = self._step_one(slot, int(action[slot]))
        return Step(reward, self._terminated.copy(), self._truncated.copy())

    def _step_one(self, slot: int, action: int) -> float:
        env = self.envs[slot]
        game = self.games[slot]
        self._action[slot] = 0 if game.in_context() else action
        native = from_action(np.array(action), self.actions, env.action_space)
        picture, reward, done, _, info = env.step(native)
        game.update()
        self._frames[slot] = _upright(picture)
        success = done and game.succeeded(info)
        out_of_time = game.out_of_time() and not success
        self._success[slot] = success
        self._truncated[slot] = done and out_of_time
        self._terminated[slot] = done and not out_of_time
        return float(reward)

    def frames(self) -> np.ndarray:
        """Return the frames, uint8 [B, 3, 84, 84]."""
        return self._frames.copy()

    def last_action(self) -> np.ndarray:
        """Return the last action, 0 after a reset and in the context."""
        return self._action.copy()

    def in_context(self) -> np.ndarray:
        """Return bool [B], true while the commands of Mortar Mayhem are shown."""
        return np.array([game.in_context() for game in self.games])

    def retries(self) -> np.ndarray:
        """Return bool [B], true where Mystery Path has put the agent back to the start."""
        return np.array([game.retries() for game in self.games])

    def truth(self) -> dict[str, np.ndarray]:
        """Return the ground truth that `BatchedEnv.truth` describes.

        The evidence is the latest fall, or the picture of the present command. `goal`
        is the goal's cell, or the present command.
        """
        ends = [self._success, self._terminated, self._truncated]
        outcome = np.select(ends, [SUCCESS, WRONG, TIMEOUT], RUNNING)
        distance = [game.distance() for game in self.games]
        age = [game.evidence_age() for game in self.games]
        goal = [game.goal() for game in self.games]
        return {
            "success": self._success.copy(),
            "goal_distance": np.array(distance, np.int64),
            "evidence_age": np.array(age, np.int64),
            "outcome": outcome.astype(np.int64),
            "goal": np.array(goal, np.int64),
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`, one of `explorers`."""
        if name not in self.explorers:
            raise unknown_explorer(self.config.id, name, self.explorers)
        match name:
            case "random":
                return RandomExplorer(self, seed)
            case "noop":
                return NoopExplorer(self)
        return StrategyExplorer(self, name, seed)


def _upright(picture: np.ndarray) -> np.ndarray:
    """Return uint8 [3, H, W] of a picture [W, H, 3], the package's order."""
    return picture.transpose(2, 1, 0)


def _maker(name: str) -> Callable[[], Any]:
    """Return the function that makes one environment of the id `name`."""
    if name not in GAMES:
        near = get_close_matches(name, GAMES, n=1, cutoff=0.0)
        raise ValueError(
            f"env=memorygym has no id {name!r}; did you mean {near[0]}? "
            f"there are {', '.join(GAMES)}"
        )
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        import memory_gym  # noqa: F401  registers its ids  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(MISSING) from error
    import gymnasium

    return lambda: gymnasium.make(name, disable_env_checker=True).unwrapped


def _check_options(config: MemoryGymConfig, env: Any) -> None:
    """Raise ValueError for options that the package does not take."""
    known = env.default_reset_parameters
    for option in config.options:
        if option not in known:
            raise ValueError(
                f"env.options: {config.id} has no option {option!r}; "
                f"it has {', '.join(known)}"
            )
    try:
        env.reset(seed=0, options=dict(config.options))
    except Exception as error:
        raise ValueError(
            f"env.options={config.options} does not fit {config.id}: {error!r}"
        ) from error
