"""Files that others could change are found, wherever on the path the weakness is; and root refuses them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from supervisor.config import check
from supervisor.daemon.state_dir import UnsafeError, hold, pid_file
from supervisor.trust import weakness

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    path = folder / "file"
    path.write_text("[jobs.a]\ncommand = 'true'\n")
    path.chmod(0o644)
    return path


def test_a_file_of_ours_is_safe_and_one_that_is_not_there_too(file: Path) -> None:
    assert weakness(str(file)) is None
    assert weakness(str(file.parent / "missing")) is None


@pytest.mark.parametrize("mode", [0o666, 0o646])
def test_a_file_that_others_can_write_is_not(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert f"{file} can be written by others" in str(weakness(str(file)))


def test_a_folder_above_it_that_others_can_write_is_not_unless_it_is_sticky(file: Path) -> None:
    file.parent.chmod(0o777)
    assert f"{file.parent} can be written" in str(weakness(str(file)))
    file.parent.chmod(0o1777)
    assert weakness(str(file)) is None


def test_the_folder_that_a_link_leads_to_counts(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert weakness(str(link)) is None
    file.parent.chmod(0o777)
    assert f"{file.parent} can be written" in str(weakness(str(link)))


def test_steps_up_and_links_in_a_circle_do_no_harm(file: Path, tmp_path: Path) -> None:
    assert weakness(f"{tmp_path}/folder/../folder/./file") is None
    assert weakness(f"{tmp_path}//folder//../folder//file") is None
    (tmp_path / "circle").symlink_to("circle")
    assert weakness(str(tmp_path / "circle")) is None
    file.chmod(0o666)
    (tmp_path / "down").symlink_to("folder/../folder")
    assert "can be written by others" in str(weakness(f"{tmp_path}/down/../folder/file"))


@needs_root
def test_every_link_on_the_way_counts_with_its_folder(file: Path, tmp_path: Path) -> None:
    """top -> theirs/middle -> file: who has the folder of the middle one can have it lead elsewhere."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "middle").symlink_to(file)
    (tmp_path / "top").symlink_to(theirs / "middle")
    assert weakness(str(tmp_path / "top")) is None
    os.chown(theirs, 5, 5)
    assert f"{theirs} belongs to user 5" in str(weakness(str(tmp_path / "top")))


@needs_root
def test_a_link_of_someone_else_is_not_safe_even_in_a_sticky_folder(file: Path, tmp_path: Path) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "link").symlink_to(file)
    assert weakness(str(sticky / "link")) is None
    os.chown(sticky / "link", 5, 5, follow_symlinks=False)
    assert f"{sticky}/link belongs to user 5, who could change it: chown -h it" in str(weakness(str(sticky / "link")))


@needs_root
def test_root_trusts_no_group_not_even_its_own(file: Path) -> None:
    """With an access control list, the bits of the group stand for everyone on the list."""
    file.chmod(0o664)
    assert f"{file} can be written by others" in str(weakness(str(file)))


@needs_root
def test_a_file_of_someone_else_is_not(file: Path) -> None:
    os.chown(file, 65534, 65534)
    assert "belongs to user 65534" in str(weakness(str(file)))


@needs_root
def test_root_refuses_a_configuration_that_others_can_write(file: Path) -> None:
    assert check(file).config is not None
    file.chmod(0o666)
    [problem] = check(file).errors
    assert "not safe to read as root" in problem.message


def test_a_state_directory_that_others_can_write_or_with_links_in_it_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    os.close(hold(state))
    state.chmod(0o777)
    with pytest.raises(UnsafeError, match="can be written by others"):
        hold(state)
    state.chmod(0o750)
    (state / "logs").symlink_to("/etc")
    with pytest.raises(UnsafeError, match="is a link"):
        hold(state)


@pytest.mark.parametrize("name", ["attempts", "fifos", "logs", "lock", "jobd.db", "jobd.db-wal", "shims.log"])
def test_a_part_of_the_state_that_others_can_change_is_refused(tmp_path: Path, name: str) -> None:
    part = state_with(tmp_path, name)
    os.close(hold(part.parent))
    part.chmod(0o777)
    with pytest.raises(UnsafeError, match=f"{part} can be written by others"):
        hold(part.parent)
    if os.getuid() == 0:
        part.chmod(0o750)
        os.chown(part, 5, 5)
        with pytest.raises(UnsafeError, match=f"{part} belongs to user 5"):
            hold(part.parent)


@pytest.mark.parametrize("name", ["attempts", "fifos", "logs", "lock", "jobd.db", "jobd.db-wal", "shims.log"])
def test_a_part_of_the_state_that_is_something_else_is_refused(tmp_path: Path, name: str) -> None:
    part = state_with(tmp_path, name)
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    os.mkfifo(part)
    with pytest.raises(UnsafeError, match=f"{part} is not a (folder|regular file)"):
        hold(part.parent)


def state_with(folder: Path, name: str) -> Path:
    """A part of a state directory."""
    part = folder / "state" / name
    part.parent.mkdir(0o750)
    if name in {"attempts", "fifos", "logs"}:
        part.mkdir(0o750)
    else:
        part.touch(0o640)
    return part


def test_the_pid_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "pid"
    target.write_text("someone's")
    path.symlink_to(target)
    with pid_file(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert not path.is_symlink()
    assert target.read_text() == "someone's"
    assert sorted(tmp_path.iterdir()) == [target]


def test_a_fifo_in_place_of_the_pid_file_does_not_hold_us_up(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    os.mkfifo(path)
    with pid_file(path):
        assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("text", ["1\n", ""])
def test_a_pid_file_of_another_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pid"
    with pid_file(path):
        path.write_text(text)
    assert path.read_text() == text


def test_a_pid_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.mkdir()
    with pid_file(path):
        pass
    assert list(tmp_path.iterdir()) == [path]
    with pid_file(tmp_path / "missing" / "pid"):
        pass
