"""Jobs in processes: order, errors, killed workers, and the end of the process that started them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.processes import ATTEMPTS, Workers
from lssvwm.envs import GymConfig, make

PARENT = """
import signal
import sys
from lssvwm.agent.processes import Workers
from tests.agent.test_processes import note_and_sleep

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may ignore it
    with Workers(note_and_sleep, count=2) as workers:
        for _ in workers.run([sys.argv[1]] * 2):
            pass
"""


def square(number):
    return number * number


def fail(job):
    raise UserError(f"no {job}")


def kill_once(mark):
    """Kill the worker unless a file says that this has happened."""
    if mark.exists():
        return "done"
    mark.touch()
    return kill(mark)


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(_):
    os.kill(os.getpid(), signal.SIGINT)
    return "goes on"


def leave(_):
    sys.exit(3)


def note_and_sleep(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def frame_shape(config):
    return make(config, 1).frame_shape


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("count", [1, 2])
def test_workers_number_their_results(count):
    with Workers(square, count) as workers:
        assert sorted(workers.run([1, 2, 3])) == [(0, 1), (1, 4), (2, 9)]
        assert list(workers.run([4])) == [(0, 16)]
        assert list(workers.run([])) == []
        started = [worker.process for worker in workers.workers]
    assert len(started) == (0 if count == 1 else 2)
    assert all(process.exitcode == 0 for process in started)


@pytest.mark.parametrize("count", [1, 2])
def test_workers_raise_errors_of_the_work(count):
    with (
        pytest.raises(UserError, match="no luck"),
        Workers(fail, count) as workers,
    ):
        list(workers.run(["luck"]))


def test_killed_worker_leaves_its_job_to_another(tmp_path, capsys):
    with Workers(kill_once, 2) as workers:
        marks = [tmp_path / "a", tmp_path / "b"]
        assert sorted(workers.run(marks)) == [(0, "done"), (1, "done")]
    lines = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in lines] == [
        "a worker was killed (SIGKILL); its job starts again"
    ] * 2


def test_workers_leave_interrupts_to_their_parent():
    with Workers(interrupt, 2) as workers:
        assert list(workers.run([0])) == [(0, "goes on")]


def test_workers_find_environments_of_the_user(tmp_path, monkeypatch):
    source = Path(__file__).parents[1] / "envs" / "picture_env.py"
    shutil.copy(source, tmp_path / "my_worlds.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = ["my_worlds.py:PictureEnv", "my_worlds:PictureEnv"]
    with Workers(frame_shape, 2) as workers:
        jobs = [GymConfig(factory=name, size=16) for name in names]
        found = sorted(workers.run(jobs))
    assert found == [(0, (3, 16, 16)), (1, (3, 16, 16))]


@pytest.mark.parametrize(
    ("work", "message"),
    [(kill, f"killed {ATTEMPTS} times"), (leave, "exit code 3")],
)
def test_deadly_job_is_an_error(work, message):
    with pytest.raises(UserError, match=message), Workers(work, 2) as workers:
        list(workers.run([0]))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_workers_end_with_their_parent(name, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    notes = tmp_path / "notes"
    notes.mkdir()
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"
    }
    parent = subprocess.Popen(
        [sys.executable, script, notes],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: len(list(notes.iterdir())) == 2)
    pids = [int(note.name) for note in notes.iterdir()]
    if name == "SIGINT":  # a terminal sends Ctrl-C to all processes
        os.killpg(parent.pid, signal.SIGINT)
    else:
        parent.send_signal(signal.Signals[name])
    _, errors = parent.communicate(timeout=30)
    wait_until(lambda: not any(map(is_alive, pids)), seconds=10)
    assert errors.count("Traceback") == (name == "SIGINT")
