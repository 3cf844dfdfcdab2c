"""Do independent jobs in several processes.

    with Workers(play, count=2) as workers:
        for number, result in workers.run(jobs):
            ...

A caller that has other work meanwhile submits the jobs and polls:

    workers.submit(jobs)
    while workers.unfinished:
        results = workers.poll(timeout=0)

The work, its jobs and their results are pickled. Each worker starts a new Python (`spawn`), which imports
the main module again: a script needs `if __name__ == "__main__":` around calls that start workers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from lssvwm.agent.errors import UserError
from lssvwm.agent.progress import announce

ATTEMPTS = 3
"""Times that a job starts, if its worker is killed each time."""
GRACE = 5.0
"""Seconds in which an idle worker may end by itself."""
PATIENCE = 2.0
"""Seconds between two calls of `waits`."""
SPAWN = get_context("spawn")


class Workers:
    """Call `work(job)` for jobs in `count` processes of `threads` threads each.

    With a count of 1, `run` starts no process: the work is done in this one.
    Workers end with the `with` block, by Ctrl-C too, and if this process is killed.
    """

    def __init__(self, work: Callable[[Any], Any], count: int, threads: int = 1):
        self.work = work
        self.count = count
        self.threads = threads
        self.workers: list[Any] = []
        self.jobs: Sequence[Any] = ()
        self.waiting: deque[int] = deque()
        """Numbers of the jobs that no worker has started."""
        self.deaths: Counter[int] = Counter()
        """Workers that were killed, by the number of their job."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; those that are busy are killed."""
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.end()

    def run(
        self, jobs: Sequence[Any], waits: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Any]]:
        """Do the jobs; yield the number and the result of each as it is done.

        waits: called every few seconds while workers are busy
        Jobs start in their order. If a worker is killed, its job starts again.
        Raises what the work raises, and UserError if workers are killed again and again.
        """
        if self.count == 1:
            for number, job in enumerate(jobs):
                yield number, self.work(job)
            return
        self.submit(jobs)
        while self.unfinished:
            found = self.poll(PATIENCE)
            if not found:
                waits()
            yield from found

    def submit(self, jobs: Sequence[Any]) -> None:
        """Start jobs in processes, and return at once; jobs before them must be finished."""
        self.jobs = jobs
        self.waiting = deque(range(len(jobs)))
        self.deaths.clear()
        self._assign()

    @property
    def unfinished(self) -> bool:
        """Return whether submitted jobs are not done."""
        return bool(self.waiting or self._busy())

    def poll(self, timeout: float | None = None) -> list[tuple[int, Any]]:
        """Return number and result of the jobs that are done; start those that wait.

        timeout: longest time to wait for a result, in seconds; None: no limit.
        Raises what the work raises, and UserError if workers are killed again and again.
        """
        results = []
        for worker in self._answering(timeout):
            number = worker.number
            assert number is not None
            answer = worker.receive()
            if answer is not None:
                results.append((number, _result(answer)))
            else:
                self.deaths[number] += 1
                self._bury(worker, self.deaths[number])
                self.waiting.appendleft(number)
        self._assign()
        return results

    def _busy(self) -> list[Any]:
        return [worker for worker in self.workers if worker.number is not None]

    def _assign(self) -> None:
        """Give waiting jobs to idle workers; start workers up to `count`."""
        needed = min(self.count, len(self.waiting) + len(self._busy()))
        while len(self.workers) < needed:
            self.workers.append(self._start())
        for worker in self.workers:
            if self.waiting and worker.number is None:
                number = self.waiting.popleft()
                worker.send(number, self.jobs[number])

    def _start(self) -> Any:
        """Start a worker."""
        return _Worker(self.work, self.threads)

    def _answering(self, timeout: float | None) -> list[Any]:
        """Wait until workers answer or die, or for `timeout` seconds; return these."""
        busy = {worker.pipe: worker for worker in self._busy()}
        return [busy[pipe] for pipe in wait(list(busy), timeout)]

    def _bury(self, worker: Any, deaths: int) -> None:
        """Remove and report a dead worker; raises UserError unless its job may start again."""
        self.workers.remove(worker)
        death = worker.death()
        if deaths == ATTEMPTS:
            raise UserError(
                f"workers were killed {ATTEMPTS} times at the same job ({death}); "
                "is there too little memory for so many?"
            )
        announce(f"a worker was killed ({death}); its job starts again")


class _Worker:
    """Hold a process and the pipe to it.

    number: of the job that it does, None if it is idle
    """

    def __init__(self, work: Callable[[Any], Any], threads: int):
        self.number: int | None = None
        self.work = work
        self.started = False
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs, threads))
        with _interrupts_wait():
            self.process.start()
        theirs.close()  # so that the pipe ends when the worker dies

    def send(self, number: int, job: Any) -> None:
        """Send a job, before the first one also the work."""
        self.number = number
        messages = [job] if self.started else [self.work, job]
        self.started = True
        with contextlib.suppress(OSError):  # of a dead worker, which `receive` notices
            for message in messages:
                self.pipe.send_bytes(pickle.dumps(message))

    def receive(self) -> bytes | None:
        """Return the answer to the job; None if the worker died."""
        try:
            answer = self.pipe.recv_bytes()
        except (EOFError, OSError):
            return None
        self.number = None
        return answer

    def death(self) -> str:
        """Return the signal that killed the process; raises UserError if it ended by itself."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        if code >= 0:
            raise UserError(
                f"a worker ended with exit code {code} (see above); a script needs "
                '`if __name__ == "__main__":` around calls that start workers'
            )
        return signal.Signals(-code).name

    def stop(self) -> None:
        """End the process, or let it end by itself if it is idle."""
        self.pipe.close()
        if self.number is not None:
            self.process.terminate()

    def end(self) -> None:
        """Wait until the process has ended; kill it if that takes long."""
        self.process.join(GRACE)
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold back Ctrl-C, also in a process that is started, until that ignores it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, threads: int) -> None:
    """Do jobs until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # closes environments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        server = Server(pipe.recv_bytes(), threads)
        while True:
            pipe.send_bytes(server.do(pipe.recv_bytes()))


class Server:
    """Do pickled jobs in a worker; the first one loads the work."""

    def __init__(self, work: bytes, threads: int):
        self.work = work
        self.threads = threads
        self.loaded: Callable[[Any], Any] | None = None

    def do(self, job: bytes) -> bytes:
        """Return the result of a job and None, or None and its error, pickled."""
        try:
            if self.loaded is None:
                self.loaded = _load(self.work, self.threads)
            return pickle.dumps((self.loaded(pickle.loads(job)), None))
        except Exception as error:
            return pickle.dumps((None, _portable(error)))


def _load(work: bytes, threads: int) -> Callable[[Any], Any]:
    """Return the work, and limit the threads of torch if the work has imported it."""
    do = pickle.loads(work)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    return do


def _end_with_parent() -> None:
    """End this process when the parent has ended."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return an error that can be pickled, with the traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker:\n{text}")
    return error


def _result(answer: bytes) -> Any:
    """Return the result of a job; raises the error of its worker."""
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result
