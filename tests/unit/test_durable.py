"""Files that somebody else has made: read up to a limit, and never waited for."""

import os
from pathlib import Path

import pytest

from fedpipe_agent.durable import read_file, write_durably


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", "abcdef")
    assert read_file(tmp_path / "a", 4) == b"abcd"
    assert read_file(tmp_path / "a", 100) == b"abcdef"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="no file"):
            read_file(path, 10)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 10)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nothing", 10)
