"""Folders that cannot be shared are refused at the start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from deploycompress.errors import EnvironmentMissing
from deploycompress.sweep import sharing


def test_a_folder_with_locks_is_good_and_left_as_it_was(tmp_path):
    with sharing.probed(tmp_path) as place:
        code = "import sys; from deploycompress.sweep.sharing import look; print(look(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True)
        assert done.stdout.strip() == ""
    assert list(tmp_path.iterdir()) == []


# A file system without locks, as the kernel shows it to a process: NFS without its lock service gives ENOLCK, and one
# that is mounted with locks of each machine's own lets everybody in.
SHIM = """
#include <errno.h>
int flock(int fd, int operation) { %s }
"""


@pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is not installed, so that no flock of our own can be made"
)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("errno = ENOLCK; return -1;", "locks and renames do not work there"),
        ("return 0;", "a lock there keeps nobody out"),
    ],
    ids=["no locks", "locks that hold nobody"],
)
def test_a_file_system_without_locks_is_refused(tmp_path, body, words):
    (tmp_path / "flock.c").write_text(SHIM % body)
    library = tmp_path / "flock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "flock.c"], check=True)
    code = "import sys; from pathlib import Path; from deploycompress.sweep.sharing import probed\n"
    code += "with probed(Path(sys.argv[1])): pass"
    words_of = [sys.executable, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(
        words_of, env={"LD_PRELOAD": str(library), **os.environ}, capture_output=True, text=True
    )
    assert f"EnvironmentMissing: {tmp_path / 'store'}" in done.stderr, done.stderr
    assert words in done.stderr and "NFS version 4" in done.stderr


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentMissing, match="locks and renames do not work there"):
        with sharing.probed(tmp_path / "file" / "store"):
            pass


def test_another_machines_view_is_told(tmp_path):
    assert "No such file" in sharing.look(str(tmp_path / "not there"))
    with sharing.probed(tmp_path) as place:
        (place / "token").write_text("another")
        assert sharing.look(str(place)) == "another folder is there"
