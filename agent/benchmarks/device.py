"""Measure what a machine can do with this package: `lssvwm benchmark device`.

Every section runs on the configured device, in at most five minutes together:

    peaks      matrix products and copies: the limits of everything else
    scans      error and speed of every backend of both update rules
    training   frames per second by model and precision, and the share of the matrix peak
    observe    milliseconds per observed frame
    imagine    imagined frames per second by number of candidates
    decide     decisions per second, next to TorchRL's CEMPlanner on the same model
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lssvwm.agent.benchmarks import decision_latency
from lssvwm.agent.benchmarks.decision_latency import CONTINUOUS, DISCRETE
from lssvwm.agent.benchmarks.throughput import ACTIONS, FRAME, random_frames
from lssvwm.agent.checkpoint import pick_backend, pick_device
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import Config, TrainConfig
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.progress import Progress
from lssvwm.agent.training.optimization import Learner, TrainingBatch
from lssvwm.worldmodel import Batch, Memory, RolloutPolicy, WorldModel
from lssvwm.worldmodel.scan import backends
from lssvwm.worldmodel.scan.chunked import ScanInputs
from lssvwm.worldmodel.scan.delta import DeltaInputs
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

BUDGET = 270.0
"""Seconds after which no further measurement starts."""
SECONDS = 1.0
"""Seconds of one measurement, at least."""
MODELS = ("small", "delta", "base", "large")
CANDIDATES, HORIZON = (256, 1024, 4096), 16
CALLS, PRODUCTS = 1.3, 0.35
"""Growth of time with twice the batch below which calls are the limit; share of the peak above which products are."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Set the sizes that suit a kind of device."""

    matrix: int
    """Side of the matrices whose product is the peak."""

    copy: int
    """Bytes that are copied."""

    scan: tuple[int, int]
    """Sequences and tokens of a scan."""

    batch: tuple[int, int]
    """Sequences and frames of a training batch."""


SIZES = {
    "cpu": Sizes(2048, 1 << 27, (2, 1152), (2, 64)),
    "cuda": Sizes(8192, 1 << 30, (64, 2048), (32, 128)),
}


@dataclass(frozen=True)
class Machine:
    """Hold the device, its sizes, and its measured peaks."""

    device: torch.device
    sizes: Sizes
    products: dict[str, float]
    """Peak of matrix products by precision, in FLOP/s."""

    copies: float
    """Peak of copies in bytes/s, read and written."""


Measurement = tuple[Row, Callable[[], Row]]
"""A description of what is measured, and the function that measures it."""


def device(config: Config, output: Path) -> Path:
    """Measure all sections on `config.device`. Returns the JSON file."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    begun = time.monotonic()
    machine = measure_peaks(pick_device(config.device))
    planned = list(_measurements(config, machine))
    progress = Progress("benchmark", len(planned), "measurements")
    rows = []
    for about, measure in planned:
        found = {"skipped": "no time left"}
        if time.monotonic() - begun < BUDGET:
            found = _attempt(measure)
        rows.append(about | found)
        progress.update(len(rows), " ".join(map(str, about.values())))
    progress.close()
    found = {
        "command": "lssvwm benchmark device",
        "device": _name(machine.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "backend": pick_backend(config.backend, machine.device)[0],
        "seconds": time.monotonic() - begun,
        "peaks": {"products": machine.products, "copies": machine.copies},
        "rows": rows,
    }
    results.write_json(output / "device.json", found)
    tables.publish(tables.device_grids(found), output / "device.md")
    return output / "device.json"


def measure_peaks(device: torch.device) -> Machine:
    """Measure the peaks of matrix products and copies."""
    sizes = SIZES.get(device.type, SIZES["cpu"])
    products = {}
    for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(sizes.matrix, sizes.matrix, device=device).to(kind)
        seconds = seconds_of(partial(torch.mm, a, a), device)
        products[name] = 2 * sizes.matrix**3 / seconds
    source = torch.zeros(sizes.copy, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = 2 * sizes.copy / seconds_of(lambda: target.copy_(source), device)
    return Machine(device, sizes, products, copies)


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call: the fastest of several, after one to warm up."""
    run()
    best = float("inf")
    begun = time.perf_counter()
    while best == float("inf") or time.perf_counter() - begun < SECONDS:
        _wait(device)
        at = time.perf_counter()
        run()
        _wait(device)
        best = min(best, time.perf_counter() - at)
    return best


def _wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _attempt(measure: Callable[[], Row]) -> Row:
    """Return a measurement, or its error: other measurements go on."""
    try:
        return measure()
    except (RuntimeError, ValueError, ImportError) as error:
        return {"error": backends.one_line(error)}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _measurements(config: Config, machine: Machine) -> Iterator[Measurement]:
    """Yield all measurements, the most important first."""
    for rule in backends.RULES:
        for name in backends.NAMES:
            about = {"section": "scans", "rule": rule, "backend": name}
            yield about, partial(_scan_row, rule, name, machine)
    for name in MODELS:
        for precision in machine.products:
            about = {"section": "training", "model": name, "precision": precision}
            yield about, partial(_training_row, name, precision, config, machine)
    for name in MODELS:
        about = {"section": "observe", "model": name}
        yield about, partial(_observe_row, name, config, machine)
    for name in MODELS[:2]:
        for candidates in CANDIDATES:
            about = {"section": "imagine", "model": name, "candidates": candidates}
            yield about, partial(_imagine_row, name, candidates, config, machine)
    for planner in ("cem", "torchrl CEMPlanner"):
        for actions in ("continuous", "discrete"):
            if (planner, actions) != ("torchrl CEMPlanner", "discrete"):
                about = {"section": "decide", "planner": planner, "actions": actions}
                yield about, partial(_decide_row, planner, actions, config, machine)


# ---- scans


def _scan_row(rule: backends.RuleName, name: str, machine: Machine) -> Row:
    """Return error and speed of a backend, and the share of the bandwidth limit."""
    device = machine.device
    if reason := backends.unavailable_reason(name, device, rule):
        return {"unavailable": reason}
    row: Row = {"relative_error": backends.relative_error(name, device, rule)}
    if name == "reference":
        return row
    _, scan = backends.select_backend(name, device, rule)
    inputs = _scan_inputs(rule, *machine.sizes.scan, device)
    with torch.no_grad():
        outputs = scan(inputs)
        forward = seconds_of(lambda: scan(inputs), device)
    tensors = [v for v in (*inputs, *outputs) if isinstance(v, Tensor)]
    moved = sum(v.numel() * v.element_size() for v in tensors)

    def both() -> None:
        leaves = [v.detach().requires_grad_() for v in inputs[:5]]
        Y = scan(inputs._replace(**dict(zip(inputs._fields, leaves))))[0]
        torch.autograd.grad(Y.sum(), leaves, allow_unused=True)

    row["tokens_per_second"] = _tokens(machine) / forward
    row["training_tokens_per_second"] = _tokens(machine) / seconds_of(both, device)
    row["bandwidth_share"] = moved / machine.copies / forward
    return row


def _tokens(machine: Machine) -> int:
    sequences, tokens = machine.sizes.scan
    return sequences * tokens


def _scan_inputs(
    rule: backends.RuleName, sequences: int, tokens: int, device: torch.device
) -> Any:
    """Return random inputs of the sizes of `small`: values of 128, keys of 128."""
    heads, width, size = 4, 32, 128

    def normal(*shape: int) -> Tensor:
        return torch.randn(sequences, *shape, device=device)

    X, keys, queries = (
        normal(tokens, heads, width),
        normal(tokens, size),
        normal(tokens, size),
    )
    state = normal(heads, width, size)
    if rule == "ssd":
        strength = torch.rand(sequences, tokens, heads, device=device)
        A = -torch.rand(heads, device=device)
        return ScanInputs(X, strength, A, keys, queries, state, None, None)
    beta = torch.rand(sequences, tokens, device=device)
    keys, queries = F.normalize(keys, dim=-1), F.normalize(queries, dim=-1)
    return DeltaInputs(
        X.flatten(2), beta, keys, queries, state.flatten(1, 2), None, None
    )


# ---- models


def _model(name: str, config: Config, machine: Machine) -> WorldModel:
    model = WorldModel(compose([f"model={name}"]).model, FRAME, ACTIONS)
    return model.to(machine.device).use_backend(config.backend)


def _training_row(name: str, precision: str, config: Config, machine: Machine) -> Row:
    """Return frames per second of training steps, and which limit binds."""
    device = machine.device
    batch, length = machine.sizes.batch
    model = _model(name, config, machine).train()
    settings = TrainConfig(precision=precision)  # type: ignore[arg-type]
    generator = torch.Generator(device).manual_seed(0)
    learner = Learner(model, _model(name, config, machine), settings, generator)
    seconds = []
    for sequences in (batch // 2, batch):
        pixels, action, none = random_frames(sequences, length, device)
        reward = torch.zeros(sequences, length, device=device)
        examples = TrainingBatch(Batch(pixels, action, reward, none, none, none))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = partial(learner.step, examples, 1)
        seconds.append(seconds_of(step, device))
    floating = _operations(partial(learner.step, examples, 1))
    share = floating / seconds[1] / machine.products[precision]
    row: Row = {
        "frames_per_second": batch * length / seconds[1],
        "peak_share": share,
        "limit": limit(seconds[1] / seconds[0], share),
    }
    if device.type == "cuda":
        row["bytes"] = torch.cuda.max_memory_allocated(device)
    return row


def limit(growth: float, share: float) -> str:
    """Return what limits a step.

    `growth` of its time with twice the batch, `share` of the matrix peak
    """
    if growth < CALLS:
        return "calls"
    return "matrix products" if share > PRODUCTS else "memory traffic"


def _operations(run: Callable[[], Any]) -> int:
    """Return the floating-point operations of the matrix products in a call."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def _remember(model: WorldModel, device: torch.device, batch: int = 1) -> Memory:
    return model.observe(model.initial(batch), *random_frames(batch, 64, device))[0]


@torch.no_grad()
def _observe_row(name: str, config: Config, machine: Machine) -> Row:
    """Return milliseconds per observed frame of one agent."""
    model = _model(name, config, machine).eval()
    memory = _remember(model, machine.device)
    frame = random_frames(1, 1, machine.device)
    seconds = seconds_of(lambda: model.observe(memory, *frame), machine.device)
    return {"milliseconds": 1e3 * seconds, "memory_bytes": memory.nbytes()}


@torch.no_grad()
def _imagine_row(name: str, candidates: int, config: Config, machine: Machine) -> Row:
    """Return imagined frames per second, without shared prefixes."""
    model = _model(name, config, machine).eval()
    memory = _remember(model, machine.device)
    shape = (1, candidates, HORIZON)
    actions = torch.randint(0, ACTIONS, shape, device=machine.device)
    policy = RolloutPolicy.along(actions)
    run = partial(model.imagine, memory, policy)
    frames = candidates * HORIZON
    return {"frames_per_second": frames / seconds_of(run, machine.device)}


@torch.no_grad()
def _decide_row(planner: str, actions: str, config: Config, machine: Machine) -> Row:
    """Return decisions per second of one agent with random weights of `small`."""
    if actions == "discrete":
        model, size = _model("small", config, machine).eval(), DISCRETE
        memory = _remember(model, machine.device)
    else:
        model = decision_latency.continuous_model().to(machine.device)
        model, size = model.use_backend(config.backend).eval(), CONTINUOUS
        memory = decision_latency.memory_of_noise(model)
    ways = {"cem": decision_latency.cem, "torchrl CEMPlanner": decision_latency.torchrl}
    run = ways[planner](model, size, memory)
    shape = " x ".join(str(size[k]) for k in ("candidates", "horizon", "iterations"))
    return {
        "size": shape,
        "decisions_per_second": 1 / seconds_of(run, machine.device),
    }
