"""Train one run with several processes, which `torchrun` starts.

Every process holds the same weights and trains on some rows of each batch (see `worldmodel.batch_part`). Rank 0
collects, evaluates and writes files. The others wait for it and read the same folder. With one process, nothing is
exchanged. `torchrun` sends a signal more than once, to a single process, too: it must not count as a second Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from lssvwm.agent import interrupts
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.interrupts import Postponed
from lssvwm.worldmodel.batch_part import Part
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

WAIT = timedelta(days=7)
"""Longest time that processes wait for rank 0, which may collect or evaluate."""
FAILED, INTERRUPTED = 1, 130
"""Exit codes of processes that leave the message to another one."""
LOST = (
    "another process of this run has ended, so this one cannot go on: see its message, "
    "then continue from the last checkpoint with `lssvwm resume`"
)

T = TypeVar("T")
P = ParamSpec("P")


class Signals:
    """Keep signals until all processes can stop together.

    raises: raise KeyboardInterrupt at once, as rank 0 does while the others wait for it
    """

    def __init__(self) -> None:
        self.received = False
        self.raises = False

    def __call__(self, *_: Any) -> None:
        """Handle a signal."""
        self.received = True
        if self.raises:
            raise KeyboardInterrupt


class Messenger:
    """Choose the process that reports an error: the first one that has any."""

    def __init__(self, store: dist.Store):  # pyright: ignore[reportPrivateImportUsage]
        self.store = store
        self.chosen = False

    def claim(self) -> bool:
        """Return whether this process reports."""
        if not self.chosen:
            try:
                self.chosen = self.store.add("reports", 1) == 1
            except RuntimeError:  # the store ended with another process
                self.chosen = True
        return self.chosen


_signals = Signals()
_messenger: Messenger | None = None


def world_size() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Return whether this is rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def part_of(rows: int) -> Part | None:
    """Return the part of this process in a batch; None: it is the only process."""
    if world_size() == 1:
        return None
    rank, count = dist.get_rank(), world_size()
    return Part(rows * rank // count, rows * (rank + 1) // count, rows)


def device_name(config: Config) -> str:
    """Return the device of this process, where `cuda` is the GPU of its local rank.

    Raises UserError for settings that do not fit several processes.
    """
    count, name = world_size(), config.device
    if count == 1:
        return name
    if count > config.train.batch:
        raise UserError(
            f"train.batch={config.train.batch} is less than the {count} processes: "
            f"raise it, or start torchrun with a smaller --nproc-per-node"
        )
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"device={name} would be shared by {count} processes: "
            f"use device=auto, which gives each its own GPU"
        )
    if name != "cpu" and torch.cuda.is_available():
        _choose_gpu(int(os.environ["LOCAL_RANK"]))
    return name


def _choose_gpu(number: int) -> None:
    found = torch.cuda.device_count()
    if number >= found:
        raise UserError(
            f"there are more processes than GPUs on this machine ({found}): "
            f"start torchrun with --nproc-per-node={found}, or set device=cpu"
        )
    torch.cuda.set_device(number)


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Connect the processes that `torchrun` started. Only rank 0 prints.

    The first process that fails reports it; the others end without a message.
    """
    several = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    launched = several or dist.is_torchelastic_launched()
    if not launched or dist.is_initialized():
        yield
        return
    _connect()
    before = {number: signal.signal(number, _signals) for number in interrupts.SIGNALS}
    try:
        with _quiet():
            yield
    except (Exception, KeyboardInterrupt) as error:
        _end(error)  # signals stay harmless: torchrun ends all processes after one
    dist.destroy_process_group()
    for number, handler in before.items():
        signal.signal(number, handler)


def _connect() -> None:
    global _messenger
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, count = next(rendezvous("env://"))
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=WAIT
    )
    _messenger = Messenger(store)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what other ranks than 0 print."""
    if leads():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _end(error: BaseException) -> None:
    """Raise the error if this process is the first to report one; otherwise exit."""
    assert _messenger is not None
    if not _messenger.claim():
        raise SystemExit(_exit_code(error)) from None
    if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
        raise UserError(LOST) from None
    raise error


def first(action: Callable[[], T]) -> T | None:
    """Let rank 0 do something while the others wait; returns its result there, None elsewhere.

    If it fails, all processes end. If it is interrupted, all raise KeyboardInterrupt.
    """
    if not dist.is_initialized():
        return action()
    result, error = _attempt(action) if leads() else (None, None)
    code = agree(_exit_code(error))
    if error is not None:
        raise error
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)
    return result


def _attempt(action: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Return the result of an action, or what it raised; signals interrupt it."""
    _signals.raises = True
    try:
        if _signals.received:
            raise KeyboardInterrupt
        return action(), None
    except (Exception, KeyboardInterrupt) as error:
        assert _messenger is not None
        _messenger.claim()
        return None, error
    finally:
        _signals.raises = False


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED


def only_first(function: Callable[P, None]) -> Callable[P, None]:
    """Let only rank 0 call a function that writes files; the others skip it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        if leads():
            function(*args, **kwargs)

    return call


def agree(value: T) -> T:
    """Return the value of rank 0."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


class _Together(Postponed):
    """Hold back the signals of all processes.

    `first` lets them interrupt what rank 0 does alone.
    """

    def check(self) -> None:
        """Raise KeyboardInterrupt in all processes if a signal has reached one of them."""
        self.complete = True
        received = torch.tensor(int(_signals.received))
        dist.all_reduce(received)
        if received:
            raise KeyboardInterrupt
        self.complete = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Do nothing else."""
        yield


@contextlib.contextmanager
def postponed() -> Iterator[Postponed]:
    """Hold back interrupts within the block, until all processes can stop together."""
    if dist.is_initialized():
        yield _Together()
        return
    with interrupts.postponed() as held:
        yield held


def add_up(tensors: list[Tensor]) -> None:
    """Add up tensors over all processes, in place and in one exchange."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, summed in zip(tensors, flat.split(sizes)):
        tensor.copy_(summed.view_as(tensor))
