"""Turn the state of a session into replies for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lssvwm.agent.mpc import Agent
from lssvwm.agent.play import messages
from lssvwm.agent.play.history import History, Present
from lssvwm.agent.play.memory_file import to_bytes
from lssvwm.agent.play.mind import Mind
from lssvwm.agent.play.planning import Candidate
from lssvwm.agent.play.walk import Walk
from lssvwm.agent.video.counterfactuals import MemoryMap, draw_memory_map
from lssvwm.agent.video.episode import Moment
from lssvwm.agent.video.rendering import psnr
from lssvwm.worldmodel import memory_map

TRAIL = 100
"""Points of a path that are drawn."""
WITHOUT_STEP = ("start", "mode", "erase", "swap", "window", "load", "move")
"""Changes after which the last prediction says nothing about the real frame."""
Reply = dict[str, Any]


def error(real: np.ndarray, imagined: np.ndarray | None) -> dict[str, float] | None:
    """Return mean absolute error in per cent, and PSNR in dB; None without a prediction."""
    if imagined is None:
        return None
    difference = np.abs(real.astype(np.float32) - imagined)
    return {
        "percent": float(difference.mean() / 2.55),
        "psnr": psnr(real, imagined),
    }


def state(walk: Walk, cause: str) -> Reply:
    """Return what the page shows after every change.

    cause: what changed
    """
    world, mind = walk.world, walk.mind
    moment = world.now()
    stale = cause in WITHOUT_STEP
    shown = mind.frame
    unknown = stale or walk.imagines
    age = world.evidence_age()
    since = mind.ahead if walk.imagines else 0
    return {
        "type": "state",
        "cause": cause,
        "mode": walk.mode,
        "step": world.step,
        "ahead": mind.ahead,
        "real": messages.frame(moment.pixels),
        "imagined": messages.frame(shown),
        "error": None if unknown else error(moment.pixels, shown),
        "predicted": None if stale else mind.reward,
        "reward": None if unknown else moment.reward,
        "age": None if age is None else age + since,
        "bytes": mind.memory.nbytes(),
        "history": len(walk.history.past),
        "ended": world.ended,
        "outcome": world.outcome() if world.ended else None,
    }


def memory_file(walk: Walk) -> Reply:
    """Return the file of the memory, with a name."""
    name = f"{walk.world.config.kind}-step{walk.world.step}.memory.safetensors"
    return {"type": "file", "name": name, "bytes": to_bytes(walk.mind.memory)}


def branches(history: History) -> Reply:
    """Return thumbnail and words of each branch."""
    shown = [_thumbnail(present) for present in history.branches]
    return {"type": "branches", "branches": shown}


def _thumbnail(present: Present) -> dict[str, Any]:
    mind = present.mind
    seen = mind.ahead == 0 or mind.frame is None
    pixels = present.moment.pixels if seen else mind.frame
    step = present.moment.step
    words = f"step {step}" if seen else f"step {step} + {mind.ahead}"
    return {"frame": messages.frame(pixels), "label": words, "imagined": not seen}


def comparison(imagined: list[np.ndarray], real: list[Moment]) -> Reply:
    """Return imagined and real frames of the same actions, and their errors."""
    frames = np.stack([moment.pixels for moment in real])
    errors = [error(m.pixels, f) for m, f in zip(real, imagined)]
    return {
        "type": "comparison",
        "imagined": messages.strip(np.stack(imagined)),
        "real": messages.strip(frames),
        "errors": [found["percent"] for found in errors if found],
        "ended": real[-1].ended,
    }


@dataclass(frozen=True)
class Decoded:
    """Hold the map in memory, and the agent's heading on it in radians."""

    picture: MemoryMap
    bearing: float


def decoded_map(agent: Agent, mind: Mind, plans: list[Candidate]) -> Decoded | None:
    """Draw the map in memory, with the imagined path and the routes of plans.

    There is no map if the model has no poses, the real map no headings, or memory no frames.
    """
    places, path, lit = mind.places, mind.path, mind.lit
    if places is None or path is None or lit is None or mind.up is None:
        return None
    if not len(places):
        return None
    now = memory_map.agent_pose(agent.model, mind.memory).cpu()
    routes = [plan.route[: plan.steps] for plan in plans if plan.route is not None]
    trail = torch.cat((places, now))
    bearing = float(now[0, 0]) - mind.up
    drawn = draw_memory_map(
        agent.model, mind.memory, trail, [path, *routes], bearing, lit
    )
    return Decoded(drawn.cropped(), bearing)


def maps(real: np.ndarray | None, found: Decoded | None) -> Reply:
    """Return the real map, and the one in memory, as far as there are any."""
    return {
        "type": "map",
        "real": None if real is None else messages.picture(real),
        "memory": None if found is None else _map(found.picture, found.bearing),
    }


def _map(drawn: MemoryMap, bearing: float) -> dict[str, Any]:
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


def plans(found: list[Candidate], seconds: float) -> Reply:
    """Return candidates with scores and clips."""
    shown = [
        {
            "score": plan.score,
            "reward": plan.reward,
            "steps": plan.steps,
            "clip": messages.strip(plan.frames[: plan.steps]),
        }
        for plan in found
    ]
    return {"type": "plans", "plans": shown, "seconds": seconds}
