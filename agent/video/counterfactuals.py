"""Compare several plans from one memory.

Each plan is imagined, and carried out in a copy of the environment. The first plan is the agent's own.
The others are sampled by the policy head and at random; those are shown whose imagined
last frames differ most from the ones chosen before.
Shapes: N plans, k of them shown, H steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent, AgentState
from lssvwm.agent.video.episode import Episode, EpisodeRecorder, Moment, rounded
from lssvwm.agent.video.rendering import (
    CONTEXT,
    DIM,
    IMAGINED,
    INK,
    TINTS,
    Canvas,
    Colour,
    as_image,
    outcome_ink,
    psnr,
    to_even,
)
from lssvwm.planners.noise import uniform
from lssvwm.worldmodel import Memory, WorldModel, memory_map
from lssvwm.worldmodel.mixers.path_integrator import rotate2d
from PIL import Image
from torch import Tensor

POOL = 64
"""Plans sampled, from which those shown are chosen."""
HOLD_PROB = 0.7
"""Probability that a random plan repeats its action."""
MARGIN, LARGEST_SIDE = 2, 63
"""Tokens shown around the routes, and the longest side of the map in tokens."""
NAMES = "ABCDEFGH"
COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (90, 90, 96),
)
"""Colours of the plans; colour-blind readers can distinguish them (Okabe and Ito)."""
UNSEEN: Colour = (222, 228, 240)
"""Colour of places that were never in view."""
OUTLINE: Colour = (20, 20, 24)
GAMMA, LIFT = 0.75, 0.12
"""Brightening of the memory map: exponent, then share of white."""


@dataclass(frozen=True)
class Counterfactual:
    """Hold one plan, its imagined rollout, and its execution.

    actions: [H, ...]
    imagined: frames, uint8 [H, C, H', W']
    predicted: rewards [H], weighted by the probability that the episode still runs
    route: poses [H, 3] of `worldmodel.memory_map`; None without path integration
    moments: executed steps, fewer than H if the episode ended
    """

    actions: np.ndarray
    score: float
    imagined: np.ndarray
    predicted: np.ndarray
    route: Tensor | None
    moments: list[Moment]
    outcome: str

    def describe(self, episode: Episode) -> dict[str, Any]:
        """Return plain data."""
        pairs = zip(self.moments, self.imagined)
        route = None if self.route is None else self.route.cpu().numpy().round(3)
        return {
            "score": float(f"{self.score:.6g}"),
            "actions": self.actions.tolist(),
            "action_names": [episode.name(action) for action in self.actions],
            "predicted_reward": rounded(self.predicted),
            "reward": [moment.reward for moment in self.moments],
            "psnr": [round(psnr(moment.pixels, frame), 3) for moment, frame in pairs],
            "route": None if route is None else route.tolist(),
            "outcome": self.outcome,
        }


@dataclass(frozen=True)
class MemoryMap:
    """Hold the map in the agent's memory, turned as the real map.

    picture: uint8 [C, R, S]
    seen: bool [R, S], places that were in view
    past: remembered path of the agent [T, 2], rows and columns of the picture
    routes: imagined path of each plan [H, 2]
    corner: place (ahead, right) of the first pixel, in tokens, in the axes of the picture
    token: rows and columns of a token
    """

    picture: np.ndarray
    seen: np.ndarray
    past: np.ndarray
    routes: list[np.ndarray]
    corner: tuple[float, float]
    token: tuple[int, int]

    def cropped(self) -> MemoryMap:
        """Cut off margins that were never in view and that no route enters."""
        spots = np.concatenate((np.argwhere(self.seen), *self.routes, self.past[-1:]))
        limit = np.array(self.seen.shape)
        top, left = np.clip(spots.min(0), 0, limit - 1).astype(int)
        bottom, right = np.clip(spots.max(0) + 1, 1, limit).astype(int)
        corner = np.array([top, left])
        rows, columns = self.token
        ahead, first_right = self.corner
        return MemoryMap(
            picture=self.picture[:, top:bottom, left:right],
            seen=self.seen[top:bottom, left:right],
            past=self.past - corner,
            routes=[route - corner for route in self.routes],
            corner=(ahead - top / rows, first_right + left / columns),
            token=self.token,
        )

    def place(self, row: float, column: float) -> tuple[float, float]:
        """Return the place (ahead, right) of a pixel, in the axes of the picture."""
        rows, columns = self.token
        ahead, right = self.corner
        return ahead - row / rows, right + column / columns

    def brightened(self) -> np.ndarray:
        """Return a light picture, uint8 [3, R, S]; unseen places have their own colour."""
        rgb = np.broadcast_to(self.picture, (3, *self.picture.shape[1:])) / 255
        light = LIFT + (1 - LIFT) * rgb**GAMMA
        unseen = np.array(UNSEEN)[:, None, None]
        return np.where(self.seen, 255 * light, unseen).astype(np.uint8)


@dataclass(frozen=True)
class Comparison:
    """Hold the plans compared from moment `start`, and the map in the agent's memory."""

    start: Moment
    plans: list[Counterfactual]
    map: MemoryMap | None


def record_counterfactuals(recorder: EpisodeRecorder) -> Comparison:
    """Observe the context, then compare plans.

    Without a context phase the agent first acts for `record.context` frames.
    Raises UserError if the episode ends before.
    """
    agent, context = recorder.agent, recorder.config.context
    moment = recorder.watch_context()
    while not moment.ended and len(recorder.scenes) < context:
        action, recorder.state = agent.act(recorder.state)
        moment = recorder.episode.act(action.cpu().numpy())
        recorder.watch(moment)
    if moment.ended:
        raise UserError(
            f"record.context={context}: an episode ended before; set it lower"
        )
    _, state = agent.act(replace(recorder.state, plan=None))
    plans = compare_plans(agent, state, recorder.episode, recorder.config.plans)
    remembered = None
    routes = [plan.route for plan in plans if plan.route is not None]
    if routes and moment.bearing is not None:
        poses = torch.stack(recorder.poses)
        remembered = draw_memory_map(
            agent.model, state.memory, poses, routes, moment.bearing
        )
    return Comparison(moment, plans, remembered)


@torch.no_grad()
def compare_plans(
    agent: Agent, state: AgentState, episode: Episode, k: int
) -> list[Counterfactual]:
    """Imagine and carry out k plans from the present memory; the episode stays unchanged."""
    assert state.plan is not None
    first = torch.zeros(1, dtype=torch.int64, device=agent.device)
    goal = agent.goal_images(state, first)
    own = state.plan.actions[:, None]
    pool = torch.cat((own, sample_plans(agent, state, POOL)), 1)
    actions = agent.objective.repeat_actions(pool)
    rollout = agent.model.imagine(state.memory, actions, decode=True)
    assert rollout.frames is not None
    last_frames = rollout.frames[0, :, -1].flatten(1).float()
    chosen = farthest(last_frames, k)
    scores = agent.objective.score(
        state.memory, pool[:, chosen], goal, [agent.generator]
    )
    routes: list[Tensor | None] = [None] * len(chosen)
    if memory_map.has_map(agent.model):
        chosen_actions = actions[:, chosen]
        routes = [
            *memory_map.predicted_routes(agent.model, state.memory, chosen_actions)[0]
        ]
    plans = []
    for i, score, route in zip(chosen, scores[0].tolist(), routes):
        plan = actions[0, i].cpu().numpy()
        moments, outcome = _execute(episode, plan)
        start = torch.ones(1, device=agent.device)
        running = torch.cat((start, rollout.cont[0, i, :-1].cumprod(0)))
        plans.append(
            Counterfactual(
                actions=plan,
                score=score,
                imagined=rollout.frames[0, i].cpu().numpy(),
                predicted=(rollout.reward[0, i] * running).cpu().numpy(),
                route=route,
                moments=moments,
                outcome=outcome,
            )
        )
    return plans


def sample_plans(agent: Agent, state: AgentState, n: int) -> Tensor:
    """Sample n plans [1, n, H(, A)]: half by the policy head, half at random.

    Random plans hold each action for a while.
    """
    steps = agent.horizon
    generator = agent.generator
    proposals = agent.objective.propose(
        state.memory, state.policy, n // 2, steps, [generator]
    )
    count = n - n // 2
    like = torch.zeros(1, count, agent.model.actions, device=agent.device)
    random = [agent.policy_head.uniform(like, generator) for _ in range(steps)]
    for t in range(1, steps):
        hold = uniform((1, count), generator) < HOLD_PROB
        hold = hold.view(*hold.shape, *[1] * (random[t].dim() - 2))
        random[t] = torch.where(hold, random[t - 1], random[t])
    return torch.cat((proposals.actions, torch.stack(random, 2)), 1)


def farthest(points: Tensor, k: int) -> list[int]:
    """Choose k of points [N, D]: the first, then always the one farthest from those chosen."""
    chosen = [0]
    distance = torch.cdist(points, points[:1])[:, 0]
    while len(chosen) < min(k, len(points)):
        chosen.append(int(distance.argmax()))
        to_last = torch.cdist(points, points[chosen[-1:]])[:, 0]
        distance = torch.minimum(distance, to_last)
    return chosen


def _execute(episode: Episode, actions: np.ndarray) -> tuple[list[Moment], str]:
    """Execute actions [H, ...] in a copy of the episode; return its moments and outcome."""
    moments = []
    with episode.copied() as copy:
        for action in actions:
            moments.append(copy.act(action[None]))
            if copy.ended:
                break
        return moments, copy.outcome()


def draw_memory_map(
    model: WorldModel,
    memory: Memory,
    poses: Tensor,
    routes: list[Tensor],
    bearing: float,
    lit: Tensor | None = None,
) -> MemoryMap:
    """Draw what memory expects to see around the path `poses` [T, 3] and the routes.

    bearing: direction in which the agent faces on the real map
    lit: tokens that frames observed at the first poses showed, bool [O, rows, columns]; places are then drawn as they
        look from these poses, if they turn by quarters
    """
    up = poses[-1, :1] - bearing
    paths = [rotate2d(path[:, 1:], -up) for path in (poses, *routes)]
    points = torch.cat(paths)
    now = paths[0][-1]
    low = torch.maximum(points.amin(0) - MARGIN, now - LARGEST_SIDE // 2).floor()
    high = torch.minimum(points.amax(0) + MARGIN, now + LARGEST_SIDE // 2).ceil()
    first, last = ((int(ahead), int(right)) for ahead, right in (low, high))
    observed = poses if lit is None else poses[: len(lit)]
    if lit is not None and memory_map.has_views(model, observed, float(up)):
        view = memory_map.draw_views(
            model, memory, observed, lit, first, last, float(up)
        )
    else:
        view = memory_map.draw_map(model, memory, observed, first, last, float(up))
    picture = view.cpu().numpy()
    tokens = (last[0] - first[0] + 1, last[1] - first[1] + 1)
    size = picture.shape[1] // tokens[0], picture.shape[2] // tokens[1]
    pixels = []
    for path in paths:
        rows = (high[0] - path[:, 0] + 0.5) * size[0]
        columns = (path[:, 1] - low[1] + 0.5) * size[1]
        pixels.append(torch.stack((rows, columns), -1).cpu().numpy())
    seen = _seen(picture, size)
    return MemoryMap(
        picture=picture,
        seen=seen,
        past=pixels[0],
        routes=pixels[1:],
        corner=(float(high[0]) + 0.5, float(low[1]) - 0.5),
        token=size,
    )


def _seen(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which pixels belong to drawn tokens, bool [R, S]; tokens never in view are black."""
    rows, columns = size
    channels, height, width = picture.shape
    tokens = picture.reshape(channels, height // rows, rows, width // columns, columns)
    drawn = tokens.max((0, 2, 4)) > 0
    return drawn.repeat(rows, 0).repeat(columns, 1)


class CounterfactualPainter:
    """Draw the plans of a comparison below one another, one picture for each step.

    Each plan has the panels imagined, real and map.
    At the right is the map in the agent's memory with all imagined routes.
    Pictures are uint8 [R, S, 3].
    """

    def __init__(self, comparison: Comparison, scale: int, title: str):
        self.comparison = comparison
        self.title = title
        self.steps = max(len(plan.moments) for plan in comparison.plans)
        self.side = max(24, comparison.start.pixels.shape[1] * scale // 2)
        self.text = max(11, self.side // 9)
        self.gap = 12
        self.line = self.text + 8
        self.columns = ["imagined", "real"]
        if comparison.start.map is not None:
            self.columns.append("real map")
        self.row = self.side + 2 * self.line + self.gap

    def __len__(self) -> int:
        return self.steps + 1

    @property
    def still(self) -> int:
        """Index of the last picture."""
        return self.steps

    @property
    def map_left(self) -> int:
        """Left edge of the memory map."""
        return 2 * self.gap + len(self.columns) * (self.side + self.gap)

    @property
    def rows(self) -> int:
        """Height of all plans."""
        return len(self.comparison.plans) * self.row

    @property
    def legend(self) -> int:
        """Height of the legend."""
        return (3 + len(self.comparison.plans)) * self.line

    @property
    def map_side(self) -> int:
        """Side of the memory map."""
        available = self.rows - self.legend - self.gap
        return max(2 * self.side, min(3 * self.side, available))

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the pictures, both even."""
        top = 2 * self.line
        if self.comparison.map is None:
            return to_even(self.map_left), to_even(top + self.rows)
        right = self.map_left + self.map_side + self.gap
        bottom = max(self.rows, self.map_side + self.legend + self.gap)
        return to_even(right), to_even(top + bottom)

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield pictures from the last observed frame to the last executed one of any plan."""
        return (self.draw(step) for step in range(self.steps + 1))

    def draw(self, step: int) -> np.ndarray:
        """Return the picture after so many steps of each plan."""
        canvas = Canvas(self.size, self.text)
        start = self.comparison.start.step
        canvas.write((self.gap, 6), f"{self.title}   step {start} + {step}")
        for i, name in enumerate(self.columns):
            left = self.gap + i * (self.side + self.gap)
            canvas.write((left, 6 + self.line), name, DIM)
        for index in range(len(self.comparison.plans)):
            top = 2 * self.line + self.gap // 2 + index * self.row
            self._plan(canvas, top, index, step)
        if self.comparison.map is not None:
            self._memory_map(canvas, self.comparison.map, step)
        return np.asarray(canvas.image)

    def _plan(self, canvas: Canvas, top: int, index: int, step: int) -> None:
        """Draw the panels of a plan; after the end of its episode they stand still."""
        plan = self.comparison.plans[index]
        step = min(step, len(plan.moments))
        real = plan.moments[step - 1] if step else self.comparison.start
        imagined = plan.imagined[step - 1] if step else real.pixels
        frames = (imagined, real.pixels, real.map)
        size = (self.side, self.side)
        for i, frame in enumerate(frames[: len(self.columns)]):
            assert frame is not None
            corner = (self.gap + i * (self.side + self.gap), top)
            is_imagined = step > 0 and i == 0
            canvas.border(corner, size, TINTS[IMAGINED if is_imagined else CONTEXT], 3)
            canvas.paste(corner, size, frame)
        below = top + self.side + 6
        quality = f"   PSNR {psnr(real.pixels, imagined):.1f} dB" if step else ""
        self._words(canvas, below, index, step, quality)

    def _words(
        self, canvas: Canvas, top: int, index: int, step: int, quality: str
    ) -> None:
        """Write name, score, outcome and rewards of a plan in two lines."""
        plan = self.comparison.plans[index]
        columns = len(self.columns) * (self.side + self.gap) - self.gap
        self._badge(canvas, (self.gap, top), index)
        left = self.gap + 2 * self.text
        score = f"score {plan.score:+.2f}"
        owner = "the agent's plan" if index == 0 else "another plan"
        words = canvas.first_fitting(columns // 2, f"{owner}   {score}", score)
        end = canvas.write((left, top), words)
        ended = step == len(plan.moments) and plan.outcome != "running"
        if ended:
            at = (end + 2 * self.text, top)
            canvas.write(at, f"ended: {plan.outcome}", outcome_ink(plan.outcome))
        imagined = f"{plan.predicted[:step].sum():+.2f}"
        real = f"{sum(moment.reward for moment in plan.moments[:step]):+.2f}"
        rewards = f"reward: imagined {imagined}, real {real}"
        short = f"{imagined}, real {real}"
        fitting = canvas.first_fitting(columns, rewards + quality, rewards, short)
        canvas.write((self.gap, top + self.line), fitting, DIM)

    def _badge(self, canvas: Canvas, at: tuple[int, int], index: int) -> None:
        """Draw the letter of a plan on its colour."""
        left, top = at
        width = int(1.5 * self.text)
        box = (left, top, left + width, top + self.text + 4)
        canvas.pen.rounded_rectangle(box, 4, COLOURS[index])
        center = (left + width / 2, top + self.text / 2 + 2)
        canvas.write(center, NAMES[index], (255, 255, 255), "mm")

    def _memory_map(self, canvas: Canvas, drawn: MemoryMap, step: int) -> None:
        """Draw the map in the agent's memory, with paths, positions and a legend."""
        left = self.map_left
        top = 2 * self.line + self.gap // 2
        side = self.map_side
        heading = (left, 6 + self.line)
        canvas.write(heading, "map in the agent's memory", DIM)
        drawn = drawn.cropped()
        height, width = drawn.picture.shape[1:]
        zoom = side / max(height, width)
        rows, columns = max(1, round(height * zoom)), max(1, round(width * zoom))
        corner = ((side - columns) // 2, (side - rows) // 2)
        sheet = Canvas((side, side), self.text)  # its own, so that long paths are cut
        sheet.border((0, 0), (side, side), UNSEEN, 0)
        picture = as_image(drawn.brightened())
        picture = picture.resize((columns, rows), Image.Resampling.BOX)
        sheet.image.paste(picture, corner)
        origin = np.array([corner[1], corner[0]])
        past = drawn.past * zoom + origin
        self._line(sheet, past, (255, 255, 255), self._thick)
        plans = self.comparison.plans
        for index in reversed(range(len(plans))):
            # Shifted, so that equal routes lie side by side.
            shift = (index - (len(plans) - 1) / 2) * (self._thick + 1)
            route = np.concatenate((past[-1:], drawn.routes[index] * zoom + origin))
            reached = min(step, len(plans[index].moments))
            self._route(sheet, route + shift, reached, COLOURS[index])
        canvas.image.paste(sheet.image, (left, top))
        self._legend(canvas, top + side + self.gap)

    @property
    def _thick(self) -> int:
        """Width of thick lines."""
        return max(3, self.map_side // 110)

    def _route(
        self, canvas: Canvas, route: np.ndarray, reached: int, colour: Colour
    ) -> None:
        """Draw a route, thin, its steps so far, thick, and the position there."""
        self._line(canvas, route, colour, 1)
        self._line(canvas, route[: reached + 1], colour, self._thick)
        y, x = route[reached]
        radius = 2 * self._thick
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.pen.ellipse(box, colour, OUTLINE, 2)

    def _line(
        self, canvas: Canvas, path: np.ndarray, colour: Colour, width: int
    ) -> None:
        """Draw a path [T, 2] of rows and columns with a dark outline."""
        points = [(column, row) for row, column in path.tolist()]
        if len(points) > 1:
            canvas.pen.line(points, OUTLINE, width + 2, "curve")
            canvas.pen.line(points, colour, width, "curve")

    def _legend(self, canvas: Canvas, top: int) -> None:
        """Explain lines and colours of the memory map."""
        entries: list[tuple[Colour, str]] = [
            ((255, 255, 255), "path of the agent so far"),
        ]
        for index in range(len(self.comparison.plans)):
            words = f"imagined route of plan {NAMES[index]}"
            entries.append((COLOURS[index], words))
        length = 2 * self.text
        for i, (colour, words) in enumerate(entries):
            middle = top + i * self.line + self.line // 2
            path = np.array([(middle, self.map_left), (middle, self.map_left + length)])
            self._line(canvas, path, colour, self._thick)
            at = (self.map_left + length + self.gap, middle)
            canvas.write(at, words, INK, "lm")
        last = top + len(entries) * self.line
        box = (self.map_left, last + 4, self.map_left + length, last + self.line - 4)
        canvas.pen.rectangle(box, UNSEEN)
        at = (self.map_left + length + self.gap, last + self.line // 2)
        canvas.write(at, "never in view", INK, "lm")
        below = (self.map_left, last + self.line)
        canvas.write(
            below, "dots: positions after the steps; faint objects: uncertain", DIM
        )
