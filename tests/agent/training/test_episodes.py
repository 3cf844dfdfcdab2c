"""Steps of a collector become episodes that hold the frame which ends them."""

import numpy as np
import torch
from lssvwm.agent.training.episodes import Episodes
from tensordict import TensorDict


def steps(first: int, reward: list[float], terminated: list[bool]) -> TensorDict:
    """Return steps [1, T] whose frames hold their number, from `first`."""
    number = torch.arange(first, first + len(reward))

    def frames(value: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = value.to(torch.uint8)[None, :, None, None, None]
        return {"pixels": pixels, "last_action": value[None]}

    flag = torch.tensor(terminated)[None, :, None]
    arrival = {
        "reward": torch.tensor(reward)[None, :, None],
        "terminated": flag,
        "truncated": torch.zeros_like(flag),
    }
    following = frames(number + 1) | arrival
    return TensorDict(frames(number) | {"next": following}, [1, len(reward)])


def test_episodes_have_one_row_more_than_steps():
    episodes = Episodes(1)
    episodes.add(steps(0, [1.0, 2.0], [False, False]))
    assert episodes.frames == 0 and episodes.take() == {}
    episodes.add(steps(2, [3.0, 4.0], [True, False]))
    assert episodes.frames == 4
    rows = episodes.take()
    assert rows["pixels"].flatten().tolist() == [0, 1, 2, 3]
    assert rows["action"].tolist() == [0, 1, 2, 3]
    assert rows["reward"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert rows["is_first"].tolist() == [True, False, False, False]
    assert rows["terminated"].tolist() == [False, False, False, True]
    assert not rows["truncated"].any()
    assert rows["reward"].dtype == np.float32
    assert episodes.frames == 0 and episodes.take() == {}
