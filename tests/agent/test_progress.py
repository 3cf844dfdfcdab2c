"""Progress is written as plain lines where there is no terminal."""

from lssvwm.agent.progress import Progress


def test_progress_writes_its_last_state(capsys):
    progress = Progress("train", 4_000, "steps", done=1_000)
    progress.update(2_000, "loss 1.0")
    assert capsys.readouterr().err == ""  # too soon for a line
    progress.close()
    line = capsys.readouterr().err
    assert line.startswith("train 2,000/4,000 steps, ")
    assert "left  loss 1.0" in line and line.endswith("\n")


def test_progress_counts_up_to_its_total(capsys):
    progress = Progress("collect", 10, "frames")
    progress.update(12)
    progress.close()
    assert capsys.readouterr().err.startswith("collect 10/10 frames, ")


def test_progress_with_patience_hides_short_work(capsys):
    progress = Progress("check", 2, "shards", patience=60.0)
    progress.update(2)
    progress.close()
    assert capsys.readouterr().err == ""


def test_progress_with_patience_shows_long_work(capsys):
    progress = Progress("check", 2, "shards", patience=1e-9)
    progress.update(1)
    assert capsys.readouterr().err.startswith("check 1/2 shards, ")
    progress.update(2)
    progress.close()
    assert capsys.readouterr().err.startswith("check 2/2 shards, ")
