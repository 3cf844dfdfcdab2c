"""Read Mortar Mayhem on a grid: commands are shown first, and executed from memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from lssvwm.envs.maze.layout import Cell
from lssvwm.envs.memorygym.games import FreeMoves, GridGame, Strategy, to_cell

MOVES = {
    "right": (0, 1),
    "down": (1, 0),
    "left": (0, -1),
    "up": (-1, 0),
    "stay": (0, 0),
    "right_down": (1, 1),
    "right_up": (-1, 1),
    "left_down": (1, -1),
    "left_up": (-1, -1),
}
"""Change of (row, column) of every command, in the order of the package."""


class MortarMayhemGame(GridGame):
    """Read Mortar Mayhem.

    While the commands are shown the agent cannot move: this is the context. The
    evidence is the picture of the present command.
    """

    explorers = ("oracle", "noisy", "guess")

    def in_context(self) -> bool:
        """Return whether a command, or the pause after one, is shown next."""
        return bool(self.env._command_visualization)

    def succeeded(self, info: dict[str, Any]) -> bool:
        """Return whether every command was obeyed.

        The package also counts an episode in which only the last one was not.
        """
        return super().succeeded(info) and self.cell == self.target

    @property
    def side(self) -> int:
        """Tiles in a row of the arena."""
        return self.env.arena.arena_size

    @property
    def corner(self) -> tuple[float, float, float]:
        """Pixels (x, y) of the arena's upper left corner, and the side of a tile."""
        left, upper = self.env.arena.rect.topleft
        return left, upper, self.env.arena.tile_dim

    @property
    def command(self) -> int:
        """Number of the present command, from 0. It lasts until its explosion ends."""
        return int(self.env._current_command) - int(self.env.arena.tiles_on)

    @property
    def target(self) -> Cell:
        """Cell to be on when the tiles explode, and until the explosion ends."""
        return to_cell(self.env._target_pos)

    def distance(self) -> int:
        """Return the steps until all commands are obeyed; -1 after a mistake."""
        env = self.env
        if env.arena.tiles_on and self.cell != self.target:
            return -1
        following = env.num_commands - 1 - int(env._current_command)
        if following < 0:
            return 0
        period = int(env._explosion_delay) + int(env._explosion_duration)
        shown = len(env._command_visualization)
        return shown + self._until_explosion() + int(following) * period

    def _until_explosion(self) -> int:
        """Return the steps until the next explosion, as if all commands were shown."""
        env = self.env
        delay = int(env._explosion_delay)
        if not env.arena.tiles_on:
            return delay - int(env._command_steps) + 1
        lasts = int(env._explosion_duration) - int(env._command_verify_step)
        return lasts + 1 + delay

    def evidence_age(self) -> int:
        """Return the frames since the present command was shown."""
        shown = self.env._command_visualization_clone
        commands = int(self.env.num_commands)
        period = len(shown) // commands
        pause = shown.count("") // commands
        last = (self.command + 1) * period - pause - 1
        return max(0, self.frame - last)

    def goal(self) -> int:
        """Return the position of the present command in `MOVES`."""
        return list(MOVES).index(self.env._commands[self.command])

    def allowed(self) -> list[Cell]:
        """Return the cells to which a command can send the agent from its cell."""
        row, col = self.cell
        count = self.env.reset_params["allowed_commands"]
        moves = list(MOVES.values())[:count]
        cells = [(row + down, col + right) for down, right in moves]
        return [cell for cell in cells if self.contains(cell)]

    def strategy(self, name: str, rng: np.random.Generator) -> Strategy:
        """Return how the explorer `name` plays the episode that began."""
        return Guess(self, rng) if name == "guess" else Obey(self)


class FreeMortarMayhemGame(FreeMoves, MortarMayhemGame):
    """Read Mortar Mayhem with free moves."""


class Obey(Strategy):
    """Obey every command. All of them were shown: perfect memory suffices."""

    def __init__(self, game: MortarMayhemGame):
        self.game = game
        self.floor = np.ones((game.side, game.side), bool)

    def target(self) -> Cell | None:
        """Return the cell of the present command."""
        return self.game.target


class Guess(Obey):
    """Go to a random cell that a command allows, as if no command was remembered."""

    def __init__(self, game: MortarMayhemGame, rng: np.random.Generator):
        super().__init__(game)
        self.rng = rng
        self.command = -1
        self.chosen = game.cell

    def target(self) -> Cell | None:
        """Return a cell that is drawn once for every command."""
        if self.game.command != self.command:
            self.command = self.game.command
            cells = self.game.allowed()
            self.chosen = cells[self.rng.integers(len(cells))]
        return self.chosen
