"""Share a function that plays episodes and records what evaluation reads."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def run():
    """Return `run(env, name)`, which plays to the end; rows of truth, context and retries."""

    def played(env, name, limit=150):
        explorer = env.explorer(name, 0)
        rows = []
        done = np.zeros(env.batch, bool)
        while not done.all() and len(rows) < limit:
            rows.append(read(env) | {"running": ~done})
            step = env.step(explorer.act())
            done = step.terminated | step.truncated
        return [*rows, read(env) | {"running": ~done}]

    def read(env):
        more = {"context": env.in_context(), "retries": env.retries()}
        return env.truth() | more | {"action": env.last_action()}

    return played
