"""Writing: the final name appears whole or not at all."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transfiner_refine.errors import OutputError
from transfiner_refine.output import (
    atomic_file,
    atomic_folder,
    atomic_output,
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


@pytest.fixture(params=["at one stroke", "in two steps"])
def swapping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of swapping folders."""
    if request.param == "in two steps":
        monkeypatch.setattr(sys, "platform", "darwin")


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_exists_is_replaced_as_a_whole(tmp_path: Path, linked: bool) -> None:
    output = tmp_path / "out"
    output.mkdir(mode=0o700)
    (output / "a.png").write_text("old")
    (output / "old.txt").write_text("old")
    if linked:
        (tmp_path / "link").symlink_to(output)
    with atomic_folder(tmp_path / "link" if linked else output) as draft:
        (draft / "sub").mkdir()
        (draft / "a.png").write_text("new")
        (draft / "sub" / "b.png").write_text("new")
        assert (output / "a.png").read_text() == "old"
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        "a.png",
        "sub/b.png",
    ]
    assert (output / "a.png").read_text() == "new"
    assert output.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == [*["link"] * linked, "out"]


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("writer", [atomic_folder, partial(atomic_output, overwrite=True)])
@pytest.mark.parametrize("names", ["rename", "rename replace", "renameat2", "rmdir unlink"])
def test_a_process_that_is_killed_while_it_swaps_folders_leaves_the_old_or_the_new_one(
    tmp_path: Path, names: str, writer: Any
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "old.png").touch()
    child = os.fork()
    if child == 0:  # dies after the first call of one of these names
        import ctypes
        import pathlib

        def dying(original: Any) -> Any:
            def call(*arguments: Any, **keywords: Any) -> None:
                original(*arguments, **keywords)
                os.kill(os.getpid(), 9)

            return call

        for name in names.split():
            if name == "renameat2":
                library = SimpleNamespace(renameat2=dying(ctypes.CDLL(None).renameat2))
                ctypes.CDLL = lambda _, library=library: library  # type: ignore[assignment,misc]
            else:
                setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
                setattr(os, name, dying(getattr(os, name)))
        with suppress(BaseException), writer(output) as draft:
            draft.mkdir(exist_ok=True)
            (draft / "new.png").touch()
        os._exit(0)
    os.waitpid(child, 0)
    remove_drafts(output)  # as the next run does
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in output.iterdir()] in (["old.png"], ["new.png"])


def test_what_appears_at_the_name_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    file, folder = tmp_path / "out.json", tmp_path / "out"

    def write_file() -> None:
        with atomic_file(file) as new:
            new.write("[]")
            file.write_text("mine")

    def write_folder() -> None:
        with atomic_folder(folder) as draft:
            (draft / "a.png").touch()
            folder.mkdir()
            (folder / "mine.png").touch()

    with pytest.raises(OutputError, match=r"out\.json: has appeared .* or --overwrite"):
        write_file()
    with pytest.raises(OutputError, match="out: has appeared"):
        write_folder()
    with pytest.raises(OutputError, match="out2: has appeared"), atomic_folder(tmp_path / "out2"):
        (tmp_path / "out2").touch()
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.png", "out", "out.json", "out2"]


def test_drafts_follow_no_link_and_their_names_cannot_be_guessed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    number = os.getpid()
    names = []
    for _ in range(2):
        with atomic_file(tmp_path / "out.json") as file:
            file.write("[]")
            names += [path.name for path in tmp_path.glob(".out.json.*")]
    assert len(set(names)) == 2
    assert all(re.fullmatch(rf"\.out\.json\.{number}-[0-9a-f]{{12}}\.part", name) for name in names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", bytes)
        planted = tmp_path / f".out.json.{number}-{'0' * 12}.part"
        patch.setattr("transfiner_refine.output.remove_drafts", lambda _: planted.symlink_to("victim"))
        with (
            pytest.raises(OutputError, match="cannot be written"),
            atomic_file(tmp_path / "out.json") as file,
        ):
            file.write("[1]")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "out.json").read_text() == "[]"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("data/images", "is an input"),
        ("data/masks/../images/", "is an input"),
        ("link", "is an input"),
        ("data", "holds an input of this run, .*/images"),
        (".", "holds an input"),
        ("data/images/out", "lies inside an input"),
        ("link/deep/out", "lies inside an input"),
        ("pool", "holds what an input of this run links to, .*/masks/a.png"),
    ],
)
def test_an_output_that_is_holds_or_lies_inside_an_input_is_refused(
    tmp_path: Path, output: str, reason: str
) -> None:
    for folder in ("data/images", "data/masks", "pool"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pool" / "a.png").touch()
    (tmp_path / "data" / "masks" / "a.png").symlink_to(tmp_path / "pool" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "data" / "images")
    inputs = [tmp_path / "data" / "images", tmp_path / "data" / "masks"]
    for check in (check_output_folder, check_output_file):
        with pytest.raises(OutputError, match=reason):
            check(tmp_path / output, inputs, overwrite=True)
    check_output_folder(tmp_path / "data" / "out", inputs, overwrite=True)


def test_a_file_and_the_folder_beside_it_get_their_names_together(tmp_path: Path) -> None:
    output, beside = tmp_path / "out.json", tmp_path / "out"

    def write(text: str, *, overwrite: bool) -> None:
        with atomic_output(output, beside, overwrite=overwrite) as draft:
            draft.with_suffix("").mkdir()
            (draft.with_suffix("") / f"{text}.png").touch()
            draft.write_text(text)

    write("1", overwrite=False)
    write("2", overwrite=True)
    assert output.read_text() == "2"
    assert [path.name for path in beside.iterdir()] == ["2.png"]
    with pytest.raises(OutputError, match=r"out\.json: has appeared"):
        write("3", overwrite=False)
    with (
        pytest.raises(OutputError, match=f"^{re.escape(str(output))}: cannot be written"),
        atomic_output(output, beside, overwrite=True) as draft,
        atomic_file(draft),
    ):
        raise OSError("the disk refused")
    assert output.read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.json"]


def test_a_name_as_long_as_names_may_be_can_be_written(tmp_path: Path) -> None:
    with atomic_file(tmp_path / ("ü" * 127)) as file:
        file.write("[]")
    assert (tmp_path / ("ü" * 127)).read_text() == "[]"


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
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is no plain file"):
        check_output_file(tmp_path / "pipe", [], overwrite=True)
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(OutputError, match="exists already"):
        check_output_file(tmp_path / "link", [], overwrite=False)
    with pytest.raises(OutputError, match="is a file"):
        check_output_folder(tmp_path / "link", [], overwrite=True)


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
    (tmp_path / f".out.json.{gone}-0123456789ab.part").write_text("half")
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
