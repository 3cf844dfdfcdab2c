"""Jobs in actors of Ray: results, errors, and actors that die."""

import os

import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.processes import ATTEMPTS
from lssvwm.agent.replay import Replay
from lssvwm.agent.training import loop

from tests.agent.test_processes import fail, kill, kill_once, square
from tests.agent.training.conftest import collecting, training
from tests.agent.training.test_collector_pool import check_streams, counting_run

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def importable_tests(monkeypatch):
    """Let actors import the tests."""
    path = f"{os.getcwd()}:{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", path)


def run(work, jobs):
    from lssvwm.agent.ray_workers import RayWorkers

    with RayWorkers(work, 2) as workers:
        return sorted(workers.run(jobs))


def test_actors_number_their_results(tmp_path, capsys):
    assert run(square, [1, 2, 3]) == [(0, 1), (1, 4), (2, 9)]
    with pytest.raises(UserError, match="no luck"):
        run(fail, ["luck"])


def test_dead_actor_leaves_its_job_to_another(tmp_path, capsys):
    assert run(kill_once, [tmp_path / "a"]) == [(0, "done")]
    assert "its Ray actor died" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"killed {ATTEMPTS} times"):
        run(kill, [0])


def test_run_trains_on_frames_of_two_actors(tmp_path):
    config = collecting(counting_run(), workers=2, engine="ray", every=2, more=2000)
    folder = loop.train(training(config, steps=6), tmp_path / "run")
    assert len(check_streams(Replay(folder / "data").shards)) == 2
