"""Folders that take their place as a whole: after a kill at any moment, the next run finds what there was and no remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_mpruner.storage import new_folder, runs_beside

GONE = """
import os, signal, sys
from pathlib import Path
from hf_mpruner import storage
folder, moment = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)
def rename_or_die(self, target):
    if moment == "before the folder moves aside" and self == folder:
        die()
    if moment == "before the draft moves in" and self.name.endswith(".tmp"):
        die()
    return rename(self, target)
Path.rename = rename_or_die
if moment == "before the old one is removed":
    storage.shutil.rmtree = die
with storage.new_folder(folder) as draft:
    (draft / "a").write_text("new")
    if moment == "while it is written":
        die()
"""
MOMENTS = (
    "while it is written",
    "before the folder moves aside",
    "before the draft moves in",
    "before the old one is removed",
)


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_loses_nothing_and_disturbs_no_later_run(tmp_path, moment):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_text("old")
    (tmp_path / ".out.mine.old").mkdir()
    done = subprocess.run([sys.executable, "-c", GONE, str(folder), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    remains = [entry for entry in tmp_path.iterdir() if entry != folder and entry.name != ".out.mine.old"]
    assert remains
    assert all(entry.name.startswith(".out.") for entry in remains)
    seen = [entry / "a" for entry in (folder, *remains) if entry.name.endswith(("out", ".old"))]
    wanted = "new" if moment == "before the old one is removed" else "old"
    assert wanted in [file.read_text() for file in seen if file.exists()]
    with new_folder(folder) as draft:
        assert (folder / "a").read_text() == wanted, "what was moved aside is back"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([".out.mine.old", draft.name, "out"])
        (draft / "a").write_text("newer")
    assert (folder / "a").read_text() == "newer"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".out.mine.old", "out"]


def test_what_may_be_in_use_is_left_alone(tmp_path):
    with new_folder(tmp_path / "out") as draft:
        name = draft.name
        mine = str(os.getpid())
        parent = name.replace(mine, str(os.getppid()))  # a process that lives
        elsewhere = f".out.00000000.{2**22 + 1}.tmp"
        another = name.replace(".out.", ".other.").replace(mine, str(2**22 + 1))
        dead = name.replace(mine, str(2**22 + 1))  # more than Linux counts to
        for entry in (parent, elsewhere, another, dead):
            (tmp_path / entry).mkdir()
        with new_folder(tmp_path / "out.x"):
            pass
        assert (tmp_path / dead).is_dir(), "not of that folder"
        assert draft.is_dir()
    with new_folder(tmp_path / "out"):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["out", "out.x", parent, elsewhere, another])


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")

    def fail() -> None:
        with new_folder(tmp_path / "out") as draft:
            (draft / "a").write_text("new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_which_processes_run():
    assert not runs_beside(os.getpid())
    assert runs_beside(os.getppid())
    assert not runs_beside(2**22 + 1)
    assert not runs_beside(10**30)


def test_a_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("out")), new_folder(Path("out2")):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out2"]
