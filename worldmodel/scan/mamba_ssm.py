"""Compute the scan by mamba-ssm's fused Triton kernels (`ssd_combined`) on NVIDIA GPUs.

With a CUDA build of torch in place: `pip install --no-build-isolation 'lssvwm[mamba]'`. Only the Triton part is used.
So a wheel without the CUDA extensions is enough. It needs no CUDA compiler and builds in seconds:
`MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch
from lssvwm.worldmodel.scan.chunked import ScanInputs
from torch import Tensor

PACKAGE = "mamba_ssm"
MODULE = "mamba_ssm.ops.triton.ssd_combined"

CHUNK = 64
"""Tokens that the kernel processes at once."""
INDEX_LIMIT = 2**31
"""Elements that the kernels can count. Beyond this they give wrong numbers without an error."""


def _kernels() -> ModuleType:
    """Import the module of the kernels.

    The package's own `__init__` imports its compiled Mamba-1 extension, which the Triton part does not need. Where
    that is missing, the module is imported without running `__init__`.
    """
    first_import = PACKAGE not in sys.modules
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        spec = importlib.util.find_spec(PACKAGE) if first_import else None
        if spec is None or "cuda" not in str(error):
            raise
    loaded = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    try:
        for name in loaded:
            del sys.modules[name]
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        return importlib.import_module(MODULE)
    finally:
        # later imports of the package must report what is missing
        sys.modules.pop(PACKAGE, None)


kernels = _kernels()


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Compute the scan without `peek` by the fused kernel.

    Batches too large for its 32-bit counters go through in parts. Raises ValueError for sequences too long for them.
    """
    X, dt, A, B, C, S, reset, _ = inputs
    batch, length, h, p = X.shape
    chunks = -(-length // CHUNK)
    state_size = h * p * B.shape[-1]
    largest = max(length * h * p, chunks * state_size, chunks * CHUNK * CHUNK)
    if largest >= INDEX_LIMIT:
        raise ValueError(
            f"a sequence of {length} tokens is too long for mamba_ssm's kernels; train on shorter ones"
        )
    most = (INDEX_LIMIT - 1) // largest
    episode = None if reset is None else reset.cumsum(1).to(torch.int32)
    outputs, states = [], []
    for i in range(0, batch, most):
        part = slice(i, i + most)
        y, state = kernels.mamba_chunk_scan_combined(
            X[part].contiguous(),
            dt[part].float().contiguous(),
            A.float(),
            B[part, :, None].contiguous(),
            C[part, :, None].contiguous(),
            CHUNK,
            initial_states=S[part].contiguous(),
            seq_idx=None if episode is None else episode[part].contiguous(),
            return_final_states=True,
        )
        outputs.append(y)
        states.append(state)
    if len(outputs) == 1:
        return outputs[0], states[0]
    return torch.cat(outputs), torch.cat(states)
