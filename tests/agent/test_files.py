"""Files are replaced as a whole or not at all."""

import pytest
from lssvwm.agent.files import remove, replacing


def test_replacing_writes_a_new_file(tmp_path):
    with replacing(tmp_path / "a.txt") as draft:
        assert draft.suffix == ".txt"
        draft.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_replacing_keeps_the_file_on_errors(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError), replacing(tmp_path / "a.txt") as draft:
        draft.write_text("part")
        raise OSError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_replacing_and_remove_accept_folders(tmp_path):
    with replacing(tmp_path / "folder") as draft:
        draft.mkdir()
        (draft / "file").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]
    remove(tmp_path / "folder")
    remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())
