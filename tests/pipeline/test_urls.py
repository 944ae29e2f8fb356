"""Images, masks and results in an object store (an S3 server on this machine) and behind a web server."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transfiner_refine.errors import InputError, MaskRefineError, OutputError
from transfiner_refine.pipeline import merge_shards, refine_files
from transfiner_refine.remote import RemotePath, place, url_of

pytest.importorskip("fsspec", reason="the cloud extra is not installed")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server that was started for this session."""
    pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and server.poll() is None:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket of that server, as fsspec sees it."""
    import fsspec

    from transfiner_refine import remote

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    remote._file_system.cache_clear()
    fsspec.filesystem("s3").clear_instance_cache()
    files = fsspec.filesystem("s3", use_listings_cache=False)
    if files.exists("s3://bucket"):
        files.rm("s3://bucket", recursive=True)
    files.mkdir("s3://bucket")
    yield files
    remote._file_system.cache_clear()


def store(files: Any, job: Any, *names: str) -> None:
    for name in names:
        path = job.folder / name
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                files.put_file(str(file), f"s3://bucket/{file.relative_to(job.folder).as_posix()}")


def refine(quick_run: Any, output: Any, masks: str = "s3://bucket/masks.json", **options: Any) -> Any:
    options = {"workers": 0, **options}
    return refine_files("s3://bucket/images", masks, output, refiner=quick_run.Stripes(), **options)


def objects(files: Any, folder: str) -> dict[str, bytes]:
    files.invalidate_cache()
    return {
        name.partition(f"{folder}/")[2]: files.cat_file(name) for name in files.find(f"s3://bucket/{folder}")
    }


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_in_a_store_is_byte_for_byte_that_on_this_machine(
    job: Any, quick_run: Any, s3: Any, tmp_path: Path, workers: int
) -> None:
    job.spoil()
    store(s3, job, "images", "masks.json")
    output, summary, errors = job.whole()
    found = refine(quick_run, "s3://bucket/out/refined.json", workers=workers)
    assert s3.cat_file("s3://bucket/out/refined.json") == output
    assert found.lines()[1:] == [*summary[1:-1], "Written: s3://bucket/out/refined.json (coco-results)."]
    wanted = errors.replace(str(job.folder), "s3://bucket").splitlines()
    assert [str(error) for error in found.errors] == wanted
    assert not list((tmp_path / "cache").rglob("*.json"))  # nothing is left on this machine
    assert list(objects(s3, "out")) == ["refined.json"]


@pytest.mark.slow
def test_folders_come_from_and_go_to_a_store_as_a_whole(job: Any, quick_run: Any, s3: Any) -> None:
    job.as_folder()
    (job.folder / "masks" / "notes.txt").write_text("kept")
    store(s3, job, "images", "masks")
    refine_files(
        job.folder / "images",
        job.folder / "masks",
        job.folder / "out",
        refiner=quick_run.Stripes(),
        workers=0,
    )
    wanted = {path.name: path.read_bytes() for path in (job.folder / "out").iterdir()}
    s3.pipe_file("s3://bucket/out/old.png", b"old")
    with pytest.raises(
        OutputError, match=r"s3://bucket/out: exists already; give another --output, or --overwrite"
    ):
        refine(quick_run, "s3://bucket/out", "s3://bucket/masks")
    refine(quick_run, "s3://bucket/out", "s3://bucket/masks", overwrite=True)
    assert objects(s3, "out") == wanted


@pytest.mark.slow
def test_shards_are_merged_in_a_store(job: Any, quick_run: Any, s3: Any, tmp_path: Path) -> None:
    store(s3, job, "images", "masks.json")
    output, *_ = job.whole()
    for number in (1, 2):
        refine(quick_run, f"s3://bucket/shards/{number}", shard=f"{number}/2")
    merge_shards(["s3://bucket/shards"], "s3://bucket/merged.json")
    assert s3.cat_file("s3://bucket/merged.json") == output
    merge_shards(["s3://bucket/shards/1", "s3://bucket/shards/2"], tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_bytes() == output


@pytest.mark.slow
def test_a_killed_run_in_a_store_leaves_nothing_there_and_can_be_resumed(
    job: Any, quick_run: Any, s3: Any
) -> None:
    store(s3, job, "images", "masks.json")
    output, *_ = job.whole()
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import quick_run\n"
        "from transfiner_refine.pipeline import refine_files\n"
        "class Killed(quick_run.Stripes):\n"
        "    calls = 0\n"
        "    def refine_windows(self, *given):\n"
        "        Killed.calls += 1\n"
        "        if Killed.calls == 4: os.kill(os.getpid(), 9)\n"
        "        return super().refine_windows(*given)\n"
        "Killed.__module__, Killed.__qualname__ = 'quick_run', 'Stripes'\n"
        "refine_files('s3://bucket/images', 's3://bucket/masks.json', 's3://bucket/out.json', refiner=Killed(1),"
        " workers=0)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=False)
    assert killed.returncode == -9
    assert not s3.exists("s3://bucket/out.json")

    class Watched(quick_run.Stripes):  # type: ignore[misc]
        seen = 0

        def refine_windows(self, images: Any, masks: Any, image_index: Any) -> Any:
            Watched.seen += len(masks)
            return super().refine_windows(images, masks, image_index)

    Watched.__module__, Watched.__qualname__ = quick_run.Stripes.__module__, "Stripes"
    where = "s3://bucket/images", "s3://bucket/masks.json", "s3://bucket/out.json"
    with pytest.raises(OutputError, match="an interrupted run has left"):
        refine_files(*where, refiner=Watched(1), workers=0)
    refine_files(*where, refiner=Watched(1), workers=0, resume=True)
    assert 0 < Watched.seen < 21
    assert s3.cat_file("s3://bucket/out.json") == output


def test_what_is_not_there_or_in_the_way_is_one_line(job: Any, quick_run: Any, s3: Any) -> None:
    store(s3, job, "images", "masks.json")
    with pytest.raises(InputError, match=r"s3://bucket/none.json: there is no such file; check the URL"):
        refine(quick_run, "s3://bucket/out.json", "s3://bucket/none.json")
    with pytest.raises(
        OutputError, match=r"is, holds or lies inside an input of this run, s3://bucket/images"
    ):
        refine(quick_run, "s3://bucket/images/out.json", overwrite=True)
    with pytest.raises(InputError, match=r"no known kind|cannot be read here"):
        refine(quick_run, "nonsense://bucket/out.json")


@pytest.mark.slow
def test_a_store_that_fails_is_the_systems_fault_and_the_run_can_be_resumed(
    make_job: Any, tmp_path: Path, quick_run: Any, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "job", images=20)
    store(s3, job, "images", "masks.json")
    monkeypatch.setattr("transfiner_refine.remote._PAUSE", 0.01)
    monkeypatch.setattr("transfiner_refine.pipeline.run._BATCHES_AHEAD", 0)
    endpoint = os.environ["AWS_ENDPOINT_URL"]

    class Cut(quick_run.Stripes):  # type: ignore[misc]
        def refine_windows(self, *given: Any) -> Any:
            from transfiner_refine.remote import _file_system

            monkeypatch.setattr(_file_system("s3"), "cat_file", refuse)
            return super().refine_windows(*given)

    def refuse(*_: Any, **__: Any) -> bytes:
        raise TimeoutError("the store does not answer")

    Cut.__module__, Cut.__qualname__ = quick_run.Stripes.__module__, "Stripes"
    where = "s3://bucket/images", "s3://bucket/masks.json", job.output
    with pytest.raises(MaskRefineError) as stopped:
        refine_files(*where, refiner=Cut(1), workers=0)
    assert re.fullmatch(
        r"the system refused \(.*the store does not answer\), which is no fault of the input; check the network "
        r"and the access to it; \d+ refined masks? (is|are) kept, repeat the command with --resume to go on",
        str(stopped.value),
    )
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")


def test_images_and_masks_are_read_from_a_web_server(job: Any, quick_run: Any, tmp_path: Path) -> None:
    output, *_ = job.whole()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(job.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        refine_files(
            f"{base}/images",
            f"{base}/masks.json",
            tmp_path / "out.json",
            refiner=quick_run.Stripes(),
            workers=0,
        )
        server.shutdown()
    assert (tmp_path / "out.json").read_bytes() == output


def test_memory_of_this_process_and_file_urls_are_places_too(
    job: Any, quick_run: Any, tmp_path: Path
) -> None:
    import fsspec

    output, *_ = job.whole()
    files = fsspec.filesystem("memory")
    for path in (job.folder / "images").iterdir():
        files.pipe_file(f"/job/images/{path.name}", path.read_bytes())
    files.pipe_file("/job/masks.json", (job.folder / "masks.json").read_bytes())
    options = {"refiner": quick_run.Stripes()}
    refine_files("memory://job/images", "memory://job/masks.json", "memory://job/out.json", **options)
    assert files.cat_file("/job/out.json") == output
    local = (
        (job.folder / "images").as_uri(),
        (job.folder / "masks.json").as_uri(),
        (tmp_path / "out.json").as_uri(),
    )
    refine_files(*local, **options, workers=0)
    assert (tmp_path / "out.json").read_bytes() == output
    assert json.loads(output)


def test_what_is_a_url() -> None:
    assert (
        url_of("s3://bucket/a b/c.json") == url_of(Path("s3://bucket/a b/c.json")) == "s3://bucket/a b/c.json"
    )
    assert url_of("C:/photos") is None
    assert url_of("photos/s3:/x") is None
    path = place("s3://bucket/images") / "a.jpg"
    assert isinstance(path, RemotePath)
    assert (str(path), path.name, path.suffix) == ("s3://bucket/images/a.jpg", "a.jpg", ".jpg")
