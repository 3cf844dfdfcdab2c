"""Test that counting frames hold episode, step and action exactly."""

import numpy as np
import pytest
from lssvwm.envs.counting import CountingConfig, decode, encode


def test_counting_frames_hold_episode_step_and_action(start):
    env = start(CountingConfig(episode_length=3), 2)
    random = env.explorer("random", 3)
    for episode in (1, 2):
        if episode > 1:
            env.reset(np.arange(2), np.arange(2))
        last = np.zeros(2, np.int64)
        for step in range(4):
            found = [part.tolist() for part in decode(env.frames())]
            assert found == [[episode] * 2, [step] * 2, last.tolist()]
            assert env.last_action().tolist() == last.tolist()
            if step < 3:
                last = random.act()
                result = env.step(last)
                assert result.reward == pytest.approx(0.01 * (step + 1))
        assert result.terminated.all() == (episode == 2)
        assert result.truncated.all() == (episode == 1)


def test_decode_is_exact_and_refuses_altered_frames():
    numbers = np.array([[0, 255, 256, 65535], [7, 511, 3, 0], [1, 2, 300, 4]])
    frames = encode(*numbers, size=10)
    decoded = np.array(decode(frames[:, None]))
    assert (decoded == numbers[:, :, None]).all()
    frames[0, 1, 3, 3] += 1
    with pytest.raises(ValueError, match="not a counting frame"):
        decode(frames)
