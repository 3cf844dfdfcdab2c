"""Counterfactual videos: from one memory, several plans imagined side by side, each beside what really comes of it.

The environment is copied and each plan carried out in a copy. The first plan is the agent's own; the others are the
ones, of many drawn by the policy head and at random, whose imagined last frames differ most from those chosen before.

Shapes: N plans, k of them shown, H steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from agent.film import BAD, CONTEXT, DIM, GOOD, GROUND, IMAGINED, INK, TINTS, as_image, psnr
from agent.policy import Agent, AgentState

if TYPE_CHECKING:
    from agent.record import Moment, Stage

POOL = 64
"""Plans drawn, from which those to be shown are chosen."""
HELD = 0.7
"""Chance that a random plan takes the same action again."""
NAMES = "ABCDEFGH"


@dataclass(frozen=True)
class Branch:
    """One plan: its actions [H], its score, what was imagined (frames uint8 [H, C, H', W']; rewards [H], each times the
    chance that the episode goes on until then), and what happened: the moments of its steps, fewer than H if the
    episode ended."""

    actions: np.ndarray
    score: float
    imagined: np.ndarray
    predicted: np.ndarray
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
            "outcome": self.outcome,
        }


@torch.no_grad()
def branches(agent: Agent, state: AgentState, stage: Stage, k: int) -> list[Branch]:
    """k plans from the present memory, imagined and carried out; the stage stays as it is."""
    assert state.plan is not None
    goal = agent.goal(state, torch.zeros(1, dtype=torch.int64, device=agent.device))
    pool = torch.cat((state.plan.actions[:, None], draw(agent, state, POOL)), 1)
    actions = agent.unfold(pool)
    future = agent.model.imagine(state.memory, actions, decode=True)
    assert future.frames is not None
    chosen = farthest(future.frames[0, :, -1].flatten(1).float(), k)
    scores = agent.score(state.memory, pool[:, chosen], goal)[0].tolist()
    found = []
    for i, score in zip(chosen, scores):
        moments, outcome = _carried_out(stage, actions[0, i].cpu().numpy())
        reach = torch.cat((torch.ones(1, device=agent.device), future.cont[0, i, :-1].cumprod(0)))
        plan, frames = (x[0, i].cpu().numpy() for x in (actions, future.frames))
        reward = (future.reward[0, i] * reach).cpu().numpy()
        found.append(Branch(plan, score, frames, reward, moments, outcome))
    return found


def draw(agent: Agent, state: AgentState, n: int) -> Tensor:
    """n plans [1, n, H(, A)]: half of them walks of the policy head, half random, actions being held for a while."""
    steps = agent.config.horizon
    walks = agent.propose(state.memory, state.policy, n=n // 2)[0]
    anything = torch.zeros(1, n - n // 2, agent.model.actions, device=agent.device)
    fresh = [agent.anything(anything) for _ in range(steps)]
    for t in range(1, steps):
        held = torch.rand(1, n - n // 2, generator=agent.generator, device=agent.device) < HELD
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


class BranchPainter:
    """Draws k branches below one another, one picture a step: imagined | real | map. Pictures are uint8 [R, S, 3]."""

    def __init__(self, start: Moment, found: list[Branch], scale: int, title: str):
        self.start, self.found, self.title = start, found, title
        self.steps = max(len(branch.moments) for branch in found)
        self.side = max(24, start.pixels.shape[1] * scale // 2)
        self.text = max(11, self.side // 10)
        self.font = ImageFont.load_default(size=self.text)
        self.gap, self.line = 12, self.text + 8
        self.columns = 2 if start.map is None else 3
        wide = self.gap + self.columns * (self.side + self.gap)
        self.row = self.side + 2 * self.line + self.gap
        words = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        self.beside = int(max(words.textlength(f"{name}  score +0.00  the agent's own", self.font) for name in NAMES))
        high = 2 * self.line + len(found) * self.row
        self.size = (wide + self.beside + 2 * self.gap) // 2 * 2, high // 2 * 2 + 2

    def pictures(self) -> Iterator[np.ndarray]:
        """From the frame that was known to the last that was real in any branch."""
        return (self.draw(h) for h in range(self.steps + 1))

    def draw(self, h: int) -> np.ndarray:
        """The picture after h steps; 0: what all branches have in common."""
        canvas = Image.new("RGB", self.size, GROUND)
        pen = ImageDraw.Draw(canvas)
        pen.text((self.gap, 6), f"{self.title}   from step {self.start.step}, +{h}", INK, self.font)
        for i, name in enumerate(("imagined", "real", "map")[: self.columns]):
            pen.text((self.gap + i * (self.side + self.gap), 6 + self.line), name, DIM, self.font)
        for i, branch in enumerate(self.found):
            top = 2 * self.line + self.gap // 2 + i * self.row
            self._branch(canvas, pen, top, NAMES[i], branch, h)
        return np.asarray(canvas)

    def _branch(self, canvas: Image.Image, pen: ImageDraw.ImageDraw, top: int, name: str, branch: Branch, h: int):
        after = branch.moments[: max(1, h)][-1] if h else self.start
        imagined = self.start.pixels if h == 0 else branch.imagined[h - 1]
        over = h > len(branch.moments)
        panels = ((imagined, IMAGINED if h else CONTEXT), (after.pixels, CONTEXT), (after.map, CONTEXT))
        for i, (frame, tint) in enumerate(panels[: self.columns]):
            left = self.gap + i * (self.side + self.gap)
            pen.rectangle((left - 3, top - 3, left + self.side + 2, top + self.side + 2), TINTS[tint])
            if frame is not None:
                shown = frame // 3 if over and i else frame
                canvas.paste(as_image(shown).resize((self.side, self.side), Image.Resampling.BOX), (left, top))
        left = self.gap + self.columns * (self.side + self.gap) + self.gap
        reward = sum(moment.reward for moment in branch.moments[:h])
        ended = branch.outcome if over or h == len(branch.moments) else ""
        lines = [
            (f"{name}  score {branch.score:+.2f}" + ("  the agent's own" if name == NAMES[0] else ""), INK),
            (f"imagined reward {branch.predicted[:h].sum():+.2f}", TINTS[IMAGINED]),
            (f"real reward {reward:+.2f}", INK),
            *([(f"PSNR {psnr(after.pixels, imagined):.1f} dB", DIM)] if h and not over else []),
            *([(f"ended: {ended}", GOOD if ended == "success" else BAD)] if ended not in ("", "running") else []),
        ]
        for i, (words, ink) in enumerate(lines):
            pen.text((left, top + i * self.line), words, ink, self.font)
