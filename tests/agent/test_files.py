"""Files are replaced as a whole or not at all, and changes are noticed."""

import subprocess
import sys

import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import locked, read_json, remove, replacing, write_json


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


HOLDER = """
import sys, time
from pathlib import Path
from lssvwm.agent.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_locked_folder_has_one_writer_until_it_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_json_has_null_for_numbers_that_it_lacks(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), 1.5], "b": -float("inf")})
    assert read_json(tmp_path / "a.json", "") == {"a": [None, 1.5], "b": None}


def test_json_survives_with_a_checksum(tmp_path):
    content = {"rate": 0.1, "path": tmp_path, "rows": [(1, None)], 3: "three"}
    write_json(tmp_path / "new" / "a.json", content)
    found = read_json(tmp_path / "new" / "a.json", "delete it")
    plain = {"rate": 0.1, "path": str(tmp_path), "rows": [[1, None]], "3": "three"}
    assert found == plain


def test_read_json_accepts_files_without_a_checksum(tmp_path):
    (tmp_path / "a.json").write_text('{"n": 1}')
    assert read_json(tmp_path / "a.json", "delete it") == {"n": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"a\.json is missing: delete it$"),
        ("{", r"a\.json is damaged: delete it$"),
        ("[1]", r"a\.json is damaged: delete it$"),
        ('{"n": 1, "crc32": "00000000"}', r"a\.json has changed .*: delete it$"),
    ],
)
def test_read_json_names_file_and_remedy(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", "delete it")


def test_read_json_notices_flipped_digits(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"success": 0.125})
    file.write_text(file.read_text().replace("0.125", "0.625"))
    with pytest.raises(UserError, match="its checksum is wrong"):
        read_json(file, "delete it")
