"""Turn the state of a session into replies for the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lssvwm.agent.mpc import Agent
from lssvwm.agent.play import messages
from lssvwm.agent.play.history import History, Present
from lssvwm.agent.play.mind import Mind
from lssvwm.agent.play.planning import Candidate
from lssvwm.agent.video.counterfactuals import MemoryMap, draw_memory_map
from lssvwm.agent.video.episode import Moment
from lssvwm.agent.video.rendering import psnr
from lssvwm.worldmodel import memory_map

TRAIL = 100
"""Points of a path that are drawn."""


def error(real: np.ndarray, imagined: np.ndarray | None) -> dict[str, float] | None:
    """Return mean absolute error in per cent, and PSNR in dB; None without a prediction."""
    if imagined is None:
        return None
    difference = np.abs(real.astype(np.float32) - imagined)
    return {
        "percent": float(difference.mean() / 2.55),
        "psnr": psnr(real, imagined),
    }


def branches(history: History) -> list[dict[str, Any]]:
    """Return thumbnail and words of each branch."""
    return [_thumbnail(present) for present in history.branches]


def _thumbnail(present: Present) -> dict[str, Any]:
    mind = present.mind
    seen = mind.ahead == 0 or mind.frame is None
    pixels = present.world.now().pixels if seen else mind.frame
    step = present.world.step
    words = f"step {step}" if seen else f"step {step} + {mind.ahead}"
    return {"frame": messages.frame(pixels), "label": words, "imagined": not seen}


def comparison(
    imagined: list[np.ndarray], real: list[Moment], ended: bool
) -> dict[str, Any]:
    """Return imagined and real frames of the same actions, and their errors."""
    frames = np.stack([moment.pixels for moment in real])
    errors = [error(m.pixels, f) for m, f in zip(real, imagined)]
    return {
        "type": "comparison",
        "imagined": messages.strip(np.stack(imagined[: len(real)])),
        "real": messages.strip(frames),
        "errors": [found["percent"] for found in errors if found],
        "ended": ended,
    }


def decoded_map(
    agent: Agent, mind: Mind, plans: list[Candidate]
) -> tuple[MemoryMap | None, float]:
    """Draw the map in memory, and return its rotation in radians.

    There is no map if the model has no poses, the real map no headings, or memory no frames.
    """
    places, path = mind.places, mind.path
    if places is None or mind.lit is None or path is None or mind.up is None:
        return None, 0.0
    if not len(places):
        return None, 0.0
    now = memory_map.agent_pose(agent.model, mind.memory).cpu()
    routes = [plan.route[: plan.steps] for plan in plans if plan.route is not None]
    trail = torch.cat((places, now))
    unseen = torch.zeros_like(mind.lit[:1])
    lit = torch.cat((mind.lit, unseen))  # the present pose may be imagined
    bearing = float(now[0, 0]) - mind.up
    drawn = draw_memory_map(
        agent.model, mind.memory, trail, [path, *routes], bearing, lit
    )
    return drawn.cropped(), bearing


def map_reply(drawn: MemoryMap, bearing: float) -> dict[str, Any]:
    """Return a map with its paths, as shares of its width and height."""
    height, width = drawn.picture.shape[1:]

    def shares(path: np.ndarray) -> list[list[float]]:
        recent = path[-TRAIL:] / (height, width)
        return [[round(x, 4), round(y, 4)] for y, x in recent.tolist()]

    imagined, *routes = drawn.routes
    return {
        "image": messages.picture(drawn.brightened()),
        "tokens": [height / drawn.token[0], width / drawn.token[1]],
        "agent": [*shares(drawn.past[-1:])[0], bearing],
        "observed": shares(drawn.past[:-1]),
        "imagined": shares(imagined),
        "routes": [shares(route) for route in routes],
    }


def plan_reply(plans: list[Candidate], seconds: float) -> dict[str, Any]:
    """Return candidates with scores and clips."""
    shown = [
        {
            "score": plan.score,
            "reward": plan.reward,
            "steps": plan.steps,
            "clip": messages.strip(plan.frames[: plan.steps]),
        }
        for plan in plans
    ]
    return {"type": "plans", "plans": shown, "seconds": seconds}
