"""What the refined masks of a run depend on, so that a journal is only gone on with by the run it belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from transfiner_refine._version import __version__
from transfiner_refine.errors import InputError
from transfiner_refine.pipeline.batches import AnyRefiner
from transfiner_refine.pipeline.prepare import Selection

_CHUNK = 1 << 20


def file_entries(files: Mapping[str, str | Path | None]) -> dict[str, str]:
    """The part of files whose content counts, by the names of the options, and of this package."""
    contents = {
        name: "none" if path is None or not Path(path).exists() else content_digest(Path(path))
        for name, path in files.items()
    }
    return {"the version of transfiner-refine": __version__, **contents}


def input_entries(
    images: Path, contents: Mapping[str, str], choices: Mapping[str, str], selection: Selection
) -> dict[str, str]:
    """The part that the input and the options have in a fingerprint, by the names of the options.

    Of the folder of images the path counts: the journal looks at each when it comes to it.
    """
    categories = selection.categories
    return {
        **contents,
        "--images": str(images.absolute()),
        **choices,
        "--min-area": str(selection.min_area),
        "--score-threshold": str(selection.score_threshold).lower(),
        "--category": "all" if categories is None else " ".join(map(str, sorted(categories))),
    }


def refiner_entries(refiner: AnyRefiner, weights: Path | None) -> dict[str, str]:
    """The part of a refiner: its weights, or its class where it was handed over, and how it uses them."""
    kind = type(refiner)
    name = f"{kind.__module__}.{kind.__qualname__}" if weights is None else content_digest(weights)
    entries = {"--weights": name}
    for name in ("device", "engine", "precision", "tiles"):
        value = getattr(refiner, name, None)
        if value is not None:
            value = str(value).lower()  # which of several cards does not matter
            entries[f"--{name.replace('_', '-')}"] = value.partition(":")[0] if name == "device" else value
    library = {"torch": "torch", "onnx": "onnxruntime"}.get(getattr(refiner, "engine", ""))
    if library is not None and weights is not None:
        entries[f"the version of {library}"] = version(library)
    return entries


def content_digest(path: Path) -> str:
    """A digest of a file's bytes, or of a folder's file names, sizes and times; hidden files do not count.

    Raises:
        InputError: it cannot be read.
    """
    digest = sha256()
    try:
        if path.is_dir():
            for line in _listing(path):
                digest.update(line.encode(errors="surrogateescape"))
        else:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check the path") from error
    return f"sha256:{digest.hexdigest()}"


def _listing(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                state = (here / name).lstat()  # a link that leads nowhere is that one file's fault
                yield f"{(here / name).relative_to(folder).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\n"
