"""Count the values that a computation reads on the host, which would wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lssvwm.planners import distributions
from lssvwm.worldmodel import imagination
from lssvwm.worldmodel.mixers import attention, tiled
from lssvwm.worldmodel.scan import chunked
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    torch.ops.aten._local_scalar_dense.default,  # item, float, int, bool
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)


class HostReads(TorchDispatchMode):
    """Collect the operations whose result depends on values read on the host."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in READS:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """Let the code take the paths of a GPU; yield what it reads on the host."""
    mode = HostReads()
    to_list = Tensor.tolist

    def one_hot(index: Tensor, classes: int) -> Tensor:
        """Do what PyTorch does on GPUs: not check the range of the index."""
        return (index[..., None] == torch.arange(classes)).long()

    def tolist(values: Tensor) -> list:
        mode.found.append("tolist")
        return to_list(values)

    with pytest.MonkeyPatch.context() as patch:
        for module in (attention, chunked, distributions, imagination, tiled):
            patch.setattr(module, "host_may_read", lambda _: False)
        patch.setattr(functional, "one_hot", one_hot)
        patch.setattr(Tensor, "tolist", tolist)
        with mode:
            yield mode.found
