"""The log holds means, and a resumed run continues it."""

import torch
from lssvwm.agent.training.logger import Logger

from tests.agent.training.conftest import metrics


def test_logger_writes_means_since_the_last_row(tmp_path):
    logger = Logger(tmp_path, 0)
    for loss in (1.0, 3.0):
        logger.add({"loss/total": torch.tensor(loss), "psnr": torch.tensor(10.0)})
    assert logger.flush(2) == "loss 2.000  frame 10.0 dB"
    logger.add({"loss/total": torch.tensor(5.0), "psnr": torch.tensor(10.0)})
    logger.flush(3)
    logger.close()
    rows = [(row["step"], row["loss/total"]) for row in metrics(tmp_path)]
    assert rows == [(2, 2.0), (3, 5.0)]


def test_logger_removes_rows_after_the_checkpoint(tmp_path):
    logger = Logger(tmp_path, 0)
    for step in (2, 4, 6):
        logger.write(step, {"loss/total": 1.0})
    logger.close()
    Logger(tmp_path, 4).close()
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4]


def test_logger_continues_after_a_cut_line(tmp_path):
    logger = Logger(tmp_path, 0)
    logger.write(2, {"loss/total": 1.0})
    logger.close()
    with logger.file.open("a") as file:
        file.write('{"step": 4, "lo')  # the process was killed
    Logger(tmp_path, 4).close()
    assert [row["step"] for row in metrics(tmp_path)] == [2]


def test_logger_writes_into_no_linked_file(tmp_path):
    kept = tmp_path / "letter.txt"
    kept.write_text("kept")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(kept)
    logger = Logger(run, 0)
    logger.write(2, {"loss/total": 1.0})
    logger.close()
    assert kept.read_text() == "kept"
