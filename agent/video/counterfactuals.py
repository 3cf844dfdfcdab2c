"""Counterfactual videos: from one memory, several plans imagined side by side, each beside what really comes of it.

The environment is copied and each plan carried out in a copy. The first plan is the agent's own; the others are the
ones, of many drawn by the policy head and at random, whose imagined last frames differ most from those chosen before.

Shapes: N plans, k of them shown, H steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lssvwm.agent.mpc import Agent, AgentState
from lssvwm.agent.video.rendering import (
    BAD,
    CONTEXT,
    DIM,
    GOOD,
    GROUND,
    IMAGINED,
    INK,
    TINTS,
    as_image,
    psnr,
)
from lssvwm.worldmodel import Memory, WorldModel
from lssvwm.worldmodel import memory_map as belief
from lssvwm.worldmodel.mixers.path_integrator import rotate2d
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from lssvwm.agent.video.record import Moment, Stage

POOL = 64
"""Plans drawn, from which those to be shown are chosen."""
HELD = 0.7
"""Chance that a random plan takes the same action again."""
NAMES = "ABCDEFGH"
MARGIN, LARGEST = 2, 63
"""Tokens drawn about the routes, and along a side of the remembered map, at most; the agent is in its middle then."""


@dataclass(frozen=True)
class Branch:
    """One plan: its actions [H], its score, what was imagined (frames uint8 [H, C, H', W']; rewards [H], each times the
    chance that the episode goes on until then; the route [H, 3], in poses of `worldmodel.belief`, None without an
    odometer), and what happened: the moments of its steps, fewer than H if the episode ended."""

    actions: np.ndarray
    score: float
    imagined: np.ndarray
    predicted: np.ndarray
    route: Tensor | None
    moments: list[Moment]
    outcome: str

    def describe(self, stage: Stage) -> dict[str, Any]:
        """As plain data."""
        pairs = zip(self.moments, self.imagined)
        return {
            "score": round(self.score, 5),
            "actions": self.actions.tolist(),
            "action_names": [stage.name(action) for action in self.actions],
            "predicted_reward": [round(float(reward), 5) for reward in self.predicted],
            "reward": [moment.reward for moment in self.moments],
            "psnr": [round(psnr(moment.pixels, frame), 3) for moment, frame in pairs],
            "route": None
            if self.route is None
            else self.route.cpu().numpy().round(3).tolist(),
            "outcome": self.outcome,
        }


@torch.no_grad()
def branches(agent: Agent, state: AgentState, stage: Stage, k: int) -> list[Branch]:
    """k plans from the present memory, imagined and carried out; the stage stays as it is."""
    assert state.plan is not None
    goal = agent.goal_images(
        state, torch.zeros(1, dtype=torch.int64, device=agent.device)
    )
    pool = torch.cat((state.plan.actions[:, None], draw(agent, state, POOL)), 1)
    actions = agent.objective.repeat_actions(pool)
    future = agent.model.imagine(state.memory, actions, decode=True)
    assert future.frames is not None
    chosen = farthest(future.frames[0, :, -1].flatten(1).float(), k)
    scores = agent.objective.score(state.memory, pool[:, chosen], goal)[0].tolist()
    routes: list[Tensor | None] = [None] * len(chosen)
    if belief.has_map(agent.model):
        routes = [*belief.routes(agent.model, state.memory, actions[:, chosen])[0]]
    found = []
    for i, score, route in zip(chosen, scores, routes):
        moments, outcome = _carried_out(stage, actions[0, i].cpu().numpy())
        reach = torch.cat(
            (torch.ones(1, device=agent.device), future.cont[0, i, :-1].cumprod(0))
        )
        plan, frames = (x[0, i].cpu().numpy() for x in (actions, future.frames))
        reward = (future.reward[0, i] * reach).cpu().numpy()
        found.append(Branch(plan, score, frames, reward, route, moments, outcome))
    return found


def draw(agent: Agent, state: AgentState, n: int) -> Tensor:
    """n plans [1, n, H(, A)]: half of them walks of the policy head, half random, actions being held for a while."""
    steps = agent.horizon
    walks = agent.objective.propose(state.memory, state.policy, n // 2, steps).actions
    anything = torch.zeros(1, n - n // 2, agent.model.actions, device=agent.device)
    fresh = [agent.policy_head.uniform(anything) for _ in range(steps)]
    for t in range(1, steps):
        held = (
            torch.rand(1, n - n // 2, generator=agent.generator, device=agent.device)
            < HELD
        )
        held = held.view(*held.shape, *[1] * (fresh[t].dim() - 2))
        fresh[t] = torch.where(held, fresh[t - 1], fresh[t])
    return torch.cat((walks, torch.stack(fresh, 2)), 1)


def farthest(points: Tensor, k: int) -> list[int]:
    """The first of points [N, D], and then always the one farthest from those chosen: k of them."""
    chosen, away = [0], torch.cdist(points, points[:1])[:, 0]
    while len(chosen) < min(k, len(points)):
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, torch.cdist(points, points[chosen[-1:]])[:, 0])
    return chosen


def _carried_out(stage: Stage, actions: np.ndarray) -> tuple[list[Moment], str]:
    """What actions [H, ...] really lead to, in a copy of the environment."""
    copy, moments = deepcopy(stage), []
    for action in actions:
        moments.append(copy.act(action[None]))
        if copy.ended:
            break
    return moments, copy.outcome()


@dataclass(frozen=True)
class Sketch:
    """The map as memory has it, uint8 [C, R, S], the map's up being up; the route that it remembers [T, 2] and that of
    each branch [H, 2], rows and columns of the picture."""

    picture: np.ndarray
    past: np.ndarray
    routes: list[np.ndarray]


def sketch(
    model: WorldModel,
    memory: Memory,
    trail: list[Tensor],
    found: list[Branch],
    bearing: float,
) -> Sketch | None:
    """What memory holds of the places about its route `trail` (poses [3]) and about those of the branches; the agent
    now faces `bearing` on the map. None for a model that carries no odometer."""
    routes = [branch.route for branch in found if branch.route is not None]
    if not routes:
        return None
    past = torch.stack(trail)
    up = past[-1, :1] - bearing
    routes = [rotate2d(route[:, 1:], -up) for route in (past, *routes)]
    points, now = torch.cat(routes), routes[0][-1]
    low = torch.maximum(points.amin(0) - MARGIN, now - LARGEST // 2).floor()
    high = torch.minimum(points.amax(0) + MARGIN, now + LARGEST // 2).ceil()
    bounds = [(int(corner[0]), int(corner[1])) for corner in (low, high)]
    picture = (
        belief.survey(model, memory, past, bounds[0], bounds[1], float(up))
        .cpu()
        .numpy()
    )
    size = torch.tensor(picture.shape[1:]).to(low) / (high - low + 1)
    pixels = [
        (torch.stack((high[0] - r[:, 0], r[:, 1] - low[1]), -1) + 0.5) * size
        for r in routes
    ]
    return Sketch(
        picture, pixels[0].cpu().numpy(), [route.cpu().numpy() for route in pixels[1:]]
    )


class BranchPainter:
    """Draws k branches below one another, one picture a step: imagined | real | map | the map as remembered, with the
    route that was imagined. Pictures are uint8 [R, S, 3]."""

    def __init__(
        self,
        start: Moment,
        found: list[Branch],
        scale: int,
        title: str,
        sketch: Sketch | None = None,
    ):
        self.start, self.found, self.title, self.sketch = start, found, title, sketch
        self.steps = max(len(branch.moments) for branch in found)
        self.side = max(24, start.pixels.shape[1] * scale // 2)
        self.text = max(11, self.side // 10)
        self.font = ImageFont.load_default(size=self.text)
        self.gap, self.line = 12, self.text + 8
        known = (True, True, start.map is not None, sketch is not None)
        self.columns = list(compress(("imagined", "real", "map", "remembered"), known))
        wide = self.gap + len(self.columns) * (self.side + self.gap)
        self.row = self.side + 2 * self.line + self.gap
        words = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        self.beside = int(
            max(
                words.textlength(f"{name}  score +0.00  the agent's own", self.font)
                for name in NAMES
            )
        )
        high = 2 * self.line + len(found) * self.row
        self.size = (wide + self.beside + 2 * self.gap) // 2 * 2, high // 2 * 2 + 2

    def pictures(self) -> Iterator[np.ndarray]:
        """From the frame that was known to the last that was real in any branch."""
        return (self.draw(h) for h in range(self.steps + 1))

    def draw(self, h: int) -> np.ndarray:
        """The picture after h steps; 0: what all branches have in common."""
        canvas = Image.new("RGB", self.size, GROUND)
        pen = ImageDraw.Draw(canvas)
        pen.text(
            (self.gap, 6),
            f"{self.title}   from step {self.start.step}, +{h}",
            INK,
            self.font,
        )
        for i, name in enumerate(self.columns):
            pen.text(
                (self.gap + i * (self.side + self.gap), 6 + self.line),
                name,
                DIM,
                self.font,
            )
        for i in range(len(self.found)):
            top = 2 * self.line + self.gap // 2 + i * self.row
            self._branch(canvas, pen, top, i, h)
        return np.asarray(canvas)

    def _branch(
        self,
        canvas: Image.Image,
        pen: ImageDraw.ImageDraw,
        top: int,
        index: int,
        h: int,
    ):
        name, branch = NAMES[index], self.found[index]
        over, h = (
            h > len(branch.moments),
            min(h, len(branch.moments)),
        )  # after the end, all panels stand still
        after = branch.moments[h - 1] if h else self.start
        imagined = branch.imagined[h - 1] if h else self.start.pixels
        frames = {"imagined": imagined, "real": after.pixels, "map": after.map}
        for i, name_of in enumerate(self.columns):
            left = self.gap + i * (self.side + self.gap)
            tint = IMAGINED if h and name_of in ("imagined", "remembered") else CONTEXT
            pen.rectangle(
                (left - 3, top - 3, left + self.side + 2, top + self.side + 2),
                TINTS[tint],
            )
            frame = frames.get(name_of)
            if frame is not None:
                shown = frame // 3 if over else frame
                canvas.paste(
                    as_image(shown).resize(
                        (self.side, self.side), Image.Resampling.BOX
                    ),
                    (left, top),
                )
            elif self.sketch is not None:
                canvas.paste(self._remembered(self.sketch, index, h), (left, top))
        left = self.gap + len(self.columns) * (self.side + self.gap) + self.gap
        reward = sum(moment.reward for moment in branch.moments[:h])
        ended = branch.outcome if h == len(branch.moments) else ""
        lines = [
            (
                f"{name}  score {branch.score:+.2f}"
                + ("  the agent's own" if name == NAMES[0] else ""),
                INK,
            ),
            (f"imagined reward {branch.predicted[:h].sum():+.2f}", TINTS[IMAGINED]),
            (f"real reward {reward:+.2f}", INK),
            *([(f"PSNR {psnr(after.pixels, imagined):.1f} dB", DIM)] if h else []),
            *(
                [(f"ended: {ended}", GOOD if ended == "success" else BAD)]
                if ended not in ("", "running")
                else []
            ),
        ]
        for i, (words, ink) in enumerate(lines):
            pen.text((left, top + i * self.line), words, ink, self.font)

    def _remembered(self, sketch: Sketch, branch: int, h: int) -> Image.Image:
        """The map as memory has it: the route so far, and in colour the first h steps of the branch."""
        zoom = self.side / max(sketch.picture.shape[1:])
        rows, columns = (
            max(1, round(length * zoom)) for length in sketch.picture.shape[1:]
        )
        canvas, corner = (
            Image.new("RGB", (self.side, self.side)),
            ((self.side - columns) // 2, (self.side - rows) // 2),
        )
        canvas.paste(
            as_image(sketch.picture).resize((columns, rows), Image.Resampling.BOX),
            corner,
        )
        pen, width = ImageDraw.Draw(canvas), max(2, self.side // 64)

        def at(route: np.ndarray) -> list[tuple[float, float]]:
            return [
                (corner[0] + column * zoom, corner[1] + row * zoom)
                for row, column in route.tolist()
            ]

        now = at(sketch.past[-1:])
        ahead = now + at(sketch.routes[branch][:h])
        pen.line(at(sketch.past), INK, max(1, width // 2))
        if h:
            pen.line(ahead, TINTS[IMAGINED], width)
        x, y = ahead[-1]
        pen.ellipse(
            (x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width),
            TINTS[IMAGINED] if h else INK,
        )
        return canvas
