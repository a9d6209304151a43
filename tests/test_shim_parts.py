"""The small parts of the shim, each by itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from supervisor import environment, mounts, process_tree, program, record
from supervisor.capture import Fifo
from supervisor.order import UnstartableError


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("load --full", "load"),
        ("  ./load.sh 'a b' > out", "./load.sh"),
        ("python3 -c 'print(1)'", None),  # a bracket might mean anything
        ("load; other", None),
        ("load && other", None),
        ("load\nother", None),
        ("A=1 load", None),
        ("'load' x", None),
        ("$LOAD x", None),
        ("~/load x", None),
        ("load () { true; }", None),
        ("{ load", None),
        ("! load", None),
        ("[ -e x ]", None),
        ("exit 7", None),
        (". ./settings", None),
        ("source x", None),
        ("if true", None),
        ("# nothing", None),
        ("", None),
        ("   ", None),
    ],
)
def test_first_word_of_a_simple_command(text: str, word: str | None) -> None:
    assert program.first_word(text) == word


def test_a_program_is_found_in_the_jobs_own_path(tmp_path: Path) -> None:
    for folder, mode in (("a", 0o644), ("b", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("#!/bin/sh\n")
        (tmp_path / folder / "tool").chmod(mode)
    path = f"{tmp_path}/none:{tmp_path}/a:{tmp_path}/b"
    assert program.find(["tool", "x"], path) == (f"{tmp_path}/b/tool", ["tool", "x"])
    with pytest.raises(UnstartableError, match=r"not executable: .*/a/tool"):
        program.find(["tool"], f"{tmp_path}/a")
    with pytest.raises(UnstartableError, match="no such command: tool: not in PATH"):
        program.find("tool", f"{tmp_path}/none")


def test_env_file(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("# c\n\n A = 1 \nexport B='two  words' \nC=\"x=y\"\nD=\nE=it's\nF=' '\nA=last\n")
    assert environment.read_env_file(str(path)) == {
        "A": "last",
        "B": "two  words",
        "C": "x=y",
        "D": "",
        "E": "it's",
        "F": " ",
    }


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"A=1\nsecret word\n", "line 2: not NAME=VALUE"),
        (b"1A=secret\n", "line 1"),
        (b"A=\0secret\n", "line 1"),
        (b"A=\xff\n", "not UTF-8"),
        (b"A=" + b"x" * 70_000, "over 65536 bytes"),
    ],
)
def test_a_bad_env_file_is_named_without_its_content(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "settings"
    path.write_bytes(content)
    with pytest.raises(UnstartableError, match=what) as caught:
        environment.read_env_file(str(path))
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_env_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnstartableError, match="not a file"):
        environment.read_env_file(str(tmp_path / "pipe"))


def test_a_fifo_is_used_again_unless_somebody_keeps_it(tmp_path: Path) -> None:
    fifo = Fifo(str(tmp_path / "fifo"))
    fifo.open()
    first = os.fstat(fifo.read_fd).st_ino
    fifo.close(reuse=True)
    fifo.open()
    assert os.fstat(fifo.read_fd).st_ino == first
    kept = os.open(fifo.path, os.O_RDWR)
    fifo.close(reuse=True)
    assert not Path(fifo.path).exists()
    fifo.open()
    assert os.fstat(fifo.read_fd).st_ino != os.fstat(kept).st_ino
    os.close(kept)
    fifo.close(reuse=False)
    assert not Path(fifo.path).exists()


def test_a_record_can_be_taken_once(tmp_path: Path) -> None:
    one, two = record.Slot(str(tmp_path / "1-1")), record.Slot(str(tmp_path / "2-2"))
    path = str(tmp_path / "5.json")
    assert record.read(path) is None
    assert one.take(path, {"attempt": 5})
    assert not two.take(path, {"attempt": 5})
    assert not record.claim(path, "why")
    assert Path(path).stat().st_size == record.FILE_BYTES
    one.rewrite({"attempt": 5, "text": "ä\udc80" * 250})
    assert record.read(path) == {"attempt": 5, "text": "ä?" * 250, "begun": False}
    # A record that is still needed is not overwritten by the next one.
    assert one.take(str(tmp_path / "6.json"), {"attempt": 6})
    assert (record.read(path) or {})["attempt"] == 5
    assert record.claim(str(tmp_path / "7.json"), "why")
    assert not one.take(str(tmp_path / "7.json"), {"attempt": 7})
    one.close()
    two.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5.json", "6.json", "7.json"]


def test_descendants_are_found_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 1000 & echo; wait"], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    listed = process_tree.descendants(child.pid)
    monkeypatch.setattr(process_tree, "_KERNEL_LISTS_CHILDREN", False)
    scanned = process_tree.descendants(child.pid)
    process_tree.signal_all(lambda: process_tree.descendants(os.getpid()), (9,))
    child.wait()
    child.stdout.close()
    assert len(listed) == 1
    assert listed == scanned
    assert not process_tree.descendants(child.pid)


def test_a_process_is_its_pid_and_its_start() -> None:
    pid, start = process_tree.myself()
    pidfd = process_tree.open_process((pid, start))
    assert pidfd is not None
    assert not process_tree.has_ended(pidfd)
    os.close(pidfd)
    assert process_tree.open_process((pid, start - 1)) is None
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    while not process_tree.has_ended(pidfd):
        os.sched_yield()
    os.close(pidfd)
    child.wait()
    assert process_tree.identity(child.pid) is None


@pytest.mark.parametrize(
    ("line", "remote"),
    [
        (b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw", False),
        (b"23 22 0:5 / /proc rw - proc proc rw", False),
        (b"24 22 0:6 / /data rw shared:2 master:1 - nfs4 host:/data rw", True),
        (b"25 22 0:7 / /home/x/cloud rw - fuse.sshfs x@host: rw", True),
        (b"26 23 0:8 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw", False),
        (b"27 22 0:9 / /net rw - autofs /etc/auto.net rw", True),
        (b"28 22 0:9 / /a\\040-\\040nfs rw - tmpfs x rw", False),
    ],
)
def test_remote_disks_are_told_from_local_ones(line: bytes, remote: bool) -> None:
    assert mounts._is_remote(line) is remote


def test_the_mounts_of_this_machine_can_be_read() -> None:
    kinds = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    expected = any(kind.partition(".")[0].encode() in mounts.REMOTE_TYPES for kind in kinds - {"autofs"})
    watched = mounts.Mounts()
    assert [watched.any_remote(), watched.any_remote()] in ([expected] * 2, [True] * 2)
