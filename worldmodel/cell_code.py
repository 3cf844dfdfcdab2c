"""Code patches by the principal components of their cells.

The code is linear, found before training, and stays as it is.

Shapes: P = C * patch * patch numbers per patch, n cells of a patch, k numbers per cell.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

COMPONENTS = 16
"""Numbers per cell, at most."""


class CellCode(nn.Module):
    """Code patches of `channels` and side `patch`, cut into cells of side `cell`.

    Raises ValueError if cells do not fill a patch.
    """

    basis: Tensor
    """Orthonormal rows [k, C * cell * cell], the same for all cells"""

    def __init__(self, channels: int, patch: int, cell: int):
        super().__init__()
        if patch % cell:
            raise ValueError(
                f"model.patch: the side of a cell, {cell}, must divide that of a patch, {patch}"
            )
        numbers = channels * cell**2
        components = min(COMPONENTS, numbers)
        side = patch // cell
        self.sizes = {"c": channels, "i": side, "j": side, "p": cell}
        self.register_buffer("basis", torch.eye(components, numbers))

    @property
    def size(self) -> int:
        """Numbers per coded patch."""
        return self.sizes["i"] * self.sizes["j"] * len(self.basis)

    def encode(self, patches: Tensor) -> Tensor:
        """Code patches [..., P] of any type. Returns [..., n * k]."""
        cells = self._cells(patches).to(self.basis.dtype)
        return (cells @ self.basis.T).flatten(-2)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the patches [..., P] of codes [..., n * k]."""
        cells = codes.unflatten(-1, (-1, len(self.basis))) @ self.basis
        return rearrange(cells, "... (i j) (c p q) -> ... (c i p j q)", **self.sizes)

    @torch.no_grad()
    def fit(self, patches: Tensor) -> None:
        """Set the basis to the principal components of the cells of patches [N, P]."""
        cells = self._cells(patches).flatten(0, -2)
        vectors = torch.linalg.eigh((cells.T @ cells).double()).eigenvectors
        self.basis.copy_(vectors.T.flip(0)[: len(self.basis)])

    def _cells(self, patches: Tensor) -> Tensor:
        """Cut patches [..., P] into cells [..., n, C * cell * cell]."""
        return rearrange(patches, "... (c i p j q) -> ... (i j) (c p q)", **self.sizes)
