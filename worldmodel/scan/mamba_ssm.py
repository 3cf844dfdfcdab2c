"""The scan by mamba-ssm's fused Triton kernels (`ssd_combined`): NVIDIA GPUs.

Install, with a CUDA build of torch in place: `pip install --no-build-isolation 'lssvwm[mamba]'`. Only its Triton part
is used, so that a wheel built without its CUDA extensions, in seconds and without a CUDA compiler, does as well:
`MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch
from torch import Tensor

CHUNK = 64
INDEX_LIMIT = 2**31
"""The kernels count elements in 32 bits and go wrong silently beyond."""


def _kernels() -> ModuleType:
    """`mamba_ssm.ops.triton.ssd_combined`. The package's own __init__ wants its compiled Mamba-1 extension, which the
    Triton part does not; where that is missing, the package is entered without running __init__."""
    path = "mamba_ssm.ops.triton.ssd_combined"
    try:
        return importlib.import_module(path)
    except ImportError as error:
        spec = (
            importlib.util.find_spec("mamba_ssm")
            if "mamba_ssm" not in sys.modules
            else None
        )
        if spec is None or "cuda" not in str(error):
            raise
    try:
        for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
        sys.modules["mamba_ssm"] = importlib.util.module_from_spec(spec)
        return importlib.import_module(path)
    finally:
        sys.modules.pop(
            "mamba_ssm", None
        )  # so that others who import it hear what is missing


kernels = _kernels()


def scan(
    X: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    S: Tensor,
    reset: Tensor | None = None,
):
    """`ssm.chunked`, by the fused kernel; batches too large for its 32-bit counters go through in parts."""
    b, length, h, p = X.shape
    n = B.shape[-1]
    chunks = -(-length // CHUNK)
    row = max(length * h * p, chunks * h * p * n, chunks * CHUNK * CHUNK)
    if row >= INDEX_LIMIT:
        raise ValueError(
            f"a sequence of {length} tokens is too long for mamba_ssm's kernels; train on shorter ones"
        )
    most = (INDEX_LIMIT - 1) // row
    sequence = None if reset is None else reset.cumsum(1).to(torch.int32)
    parts = [
        kernels.mamba_chunk_scan_combined(
            X[i : i + most].contiguous(),
            dt[i : i + most].float().contiguous(),
            A.float(),
            B[i : i + most, :, None].contiguous(),
            C[i : i + most, :, None].contiguous(),
            CHUNK,
            initial_states=S[i : i + most].contiguous(),
            seq_idx=None if sequence is None else sequence[i : i + most].contiguous(),
            return_final_states=True,
        )
        for i in range(0, b, most)
    ]
    Y, S = (torch.cat(x) if len(parts) > 1 else x[0] for x in zip(*parts))
    return Y, S
