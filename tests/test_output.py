"""Writing: the final name appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from transfiner_refine.errors import OutputError
from transfiner_refine.output import (
    atomic_file,
    atomic_folder,
    check_output_file,
    check_output_folder,
    remove_drafts,
)


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.json"
    with atomic_file(output) as file:
        file.write("[]")
        assert not output.exists()
    assert output.read_text() == "[]"
    assert [path.name for path in output.parent.iterdir()] == ["out.json"]


def test_an_interrupted_file_leaves_the_old_one_and_no_trace(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    output.write_text("old")

    def interrupted() -> None:
        with atomic_file(output) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_an_interrupted_folder_leaves_no_trace(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_folder(tmp_path / "out") as draft:
            (draft / "a.png").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_gets_the_new_files_and_keeps_its_others(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "a.png").write_text("old")
    (output / "notes.txt").write_text("mine")
    with atomic_folder(output) as draft:
        (draft / "sub").mkdir()
        (draft / "a.png").write_text("new")
        (draft / "sub" / "b.png").write_text("new")
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        "a.png",
        "notes.txt",
        "sub/b.png",
    ]
    assert (output / "a.png").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_the_disk_refuses_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), atomic_file(tmp_path / "file" / "out.json"):
        pass


def test_folders_and_files_are_not_taken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a folder, but the result is one file"):
        check_output_file(tmp_path, [], overwrite=True)
    with pytest.raises(OutputError, match="is a file, but the result is a folder"):
        check_output_folder(tmp_path / "file", [], overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        check_output_file(tmp_path / "file" / "out.json", [], overwrite=True)


def test_an_empty_folder_counts_as_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_output_folder(tmp_path / "empty", [], overwrite=False)
    (tmp_path / "empty" / "a.png").touch()
    with pytest.raises(OutputError, match="exists already and is not empty"):
        check_output_folder(tmp_path / "empty", [], overwrite=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_known_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="is not writable"):
        check_output_file(tmp_path / "out.json", [], overwrite=False)


def test_drafts_of_processes_that_are_gone_are_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = 999_999_999
    (tmp_path / f".out.json.{gone}.part").write_text("half")
    (tmp_path / f".out.json.{gone + 1}.part").mkdir()
    (tmp_path / f".out.json.{gone + 1}.part" / "a.png").write_text("half")
    kept = [
        f".other.json.{gone}.part",
        ".out.json.1.part",  # of a process that lives
        ".out.json.mine.part",
        "out.json",
    ]
    for name in kept:
        (tmp_path / name).touch()
    remove_drafts(tmp_path / "out.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_drafts_are_found_whatever_letters_the_name_has(tmp_path: Path) -> None:
    (tmp_path / ".[a]*?.json.999999999.part").touch()
    (tmp_path / ".a.json.999999999.part").touch()
    remove_drafts(tmp_path / "[a]*?.json")
    assert [path.name for path in tmp_path.iterdir()] == [".a.json.999999999.part"]
