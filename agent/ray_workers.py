"""Do jobs in actors of Ray, with the interface of `processes.Workers`.

Only this module imports Ray, which is an extra: `pip install lssvwm[ray]`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

from lssvwm.agent.errors import UserError
from lssvwm.agent.processes import Server, Workers

try:
    import ray  # pyright: ignore[reportMissingImports]
except ImportError:
    raise UserError(
        "train.collect.engine=ray needs Ray: pip install 'lssvwm[ray]', "
        "or use train.collect.engine=local"
    ) from None


class RayWorkers(Workers):
    """Call `work(job)` for jobs in `count` actors of one CPU each.

    They run in the cluster that RAY_ADDRESS names, otherwise on this machine. Actors that die are replaced.
    """

    def __init__(self, work: Callable[[Any], Any], count: int, threads: int = 1):
        super().__init__(work, count, threads)
        self.owns_ray = False
        """True if this object has started or joined Ray."""

    def _start(self) -> _Actor:
        if not ray.is_initialized():
            alone = "RAY_ADDRESS" not in os.environ
            cpus = max(self.count, os.cpu_count() or 1) if alone else None
            ray.init(
                num_cpus=cpus,
                include_dashboard=False if alone else None,
                logging_level="error",
                log_to_driver=False,
            )
            self.owns_ray = True
        return _Actor(self.work, self.threads)

    def _answering(self, timeout: float | None) -> list[Any]:
        """Wait until an actor answers or dies, or for `timeout` seconds; return it."""
        busy = {worker.answer: worker for worker in self._busy()}
        if not busy:
            return []
        answered, _ = ray.wait(list(busy), timeout=timeout)
        return [busy[answer] for answer in answered]

    def close(self) -> None:
        """End the actors, and Ray if this object started it."""
        super().close()
        if self.owns_ray:
            ray.shutdown()
            self.owns_ray = False


class _Actor:
    """Hold an actor and its answer to come.

    number: of the job that it does, None if it is idle
    """

    def __init__(self, work: Callable[[Any], Any], threads: int):
        self.number: int | None = None
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        remote = ray.remote(num_cpus=1, runtime_env=environment)(Server)
        self.actor = remote.remote(pickle.dumps(work), threads)
        self.answer: Any = None

    def send(self, number: int, job: Any) -> None:
        """Send a job."""
        self.number = number
        self.answer = self.actor.do.remote(pickle.dumps(job))

    def receive(self) -> bytes | None:
        """Return the answer to the job; None if the actor died."""
        try:
            answer = ray.get(self.answer)
        except ray.exceptions.RayError:
            return None
        self.number = None
        return answer

    def death(self) -> str:
        """Return what is known about the death."""
        return "its Ray actor died"

    def stop(self) -> None:
        """Kill the actor."""
        ray.kill(self.actor)

    def end(self) -> None:
        """Do nothing: Ray waits for the end of an actor."""
