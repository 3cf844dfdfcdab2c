"""Test the tree of shared prefixes."""

import torch
from lssvwm.worldmodel.prefix_tree import levels


def test_levels_contain_every_candidate():
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        actions = torch.randint(0, 3, (3, 20, 5), generator=g)
        actions[1] = actions[1, :1]  # all equal
        path = torch.zeros(3, 1, 0, dtype=torch.int64)
        for h, level in enumerate(levels(actions, 3)):
            if level.parents is not None:
                path = path.gather(1, level.parents[..., None].expand(-1, -1, h))
            path = torch.cat([path, level.action[..., None]], 2)
            whole = path.gather(1, level.prefix[..., None].expand(-1, -1, h + 1))
            assert torch.equal(whole, actions[:, :, : h + 1])
