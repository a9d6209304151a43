"""Files that others could change are found, wherever on the path the weakness is; and root refuses them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.config import check
from supervisor.daemon.state_dir import UnsafeError, hold
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
