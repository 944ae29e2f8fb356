"""One output from the shards of a run.

A shard's file is the journal of its run. Merging is to resume a run of which nothing is left to do, so it writes what
one run would have written, in any format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from transfiner_refine.errors import InputError
from transfiner_refine.formats.records import ImageRecord
from transfiner_refine.pipeline.job import Job, system_faults
from transfiner_refine.pipeline.journal import FOREIGN, RUN, SHARD, Journal, Recalled, differences
from transfiner_refine.pipeline.journal_file import last_record, sound_lines
from transfiner_refine.pipeline.run import Ahead, Run
from transfiner_refine.pipeline.shards import Shard, items_of
from transfiner_refine.pipeline.staging import at_urls, fetched
from transfiner_refine.pipeline.summary import Summary
from transfiner_refine.remote import place

_AGAIN = "refine that shard again"
_MERGED = "number of shards"
_OWN = ("--shard", "--images")  # what may differ between shards: machines have their own names for a folder


@system_faults()
@at_urls
def merge_shards(
    shards: Sequence[str | Path],
    output: str | Path,
    *,
    masks: str | Path | None = None,
    images: str | Path | None = None,
    image_info: str | Path | None = None,
    class_names: str | Path | None = None,
    to: str | None = None,
    keep_boxes: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Writes one output from the shards of a run, byte for byte that of one run. Images are not opened for it.

    Args:
        shards: outputs of ``refine_files`` with ``shard``, or folders of them.
        output: the file or folder to write.
        masks, images, image_info, class_names: where they are now, if they are not where the shards had them.
        to, keep_boxes, overwrite, progress: as for ``refine_files``.

    Returns:
        The summary of the one run; its seconds are those of all shards together.

    Raises:
        InputError: a shard is missing, there twice, damaged, unfinished or of another run, or the masks have changed.
        OutputError: as from ``refine_files``.
    """
    paths = [Path(path) for path in shards]
    found, output = _read_shards(paths), Path(output)
    now = {"masks": masks, "images": images, "image_info": image_info, "class_names": class_names}
    reading = {**found[0].reading, **{name: path for name, path in now.items() if path is not None}}
    reading |= {name: fetched(reading[name]) for name in ("masks", "image_info", "class_names")}
    where = place(reading.pop("images")), reading.pop("masks")
    job = Job(*where, output, reading, to, keep_boxes)
    job.inputs += paths
    job.check(overwrite=overwrite)
    if words := differences(
        job.contents(), {name: found[0].fingerprint.get(name, "") for name in job.contents()}
    ):
        remedy = "give the masks that the shards were refined from"
        raise InputError(
            f"shards and inputs do not belong together: {', '.join(words)}", file=output, remedy=remedy
        )
    with closing(Journal(job.source.num_instances, output)) as journal:
        journal.refuse_unfinished(resume=journal.is_of({_MERGED: str(len(found))}), overwrite=overwrite)
        journal.begin({_MERGED: str(len(found))}, resume=False)
        _absorb(journal, found)

        def recalled() -> Iterator[Ahead]:
            for position, item in items_of(job.source):
                known = Recalled(0)
                if isinstance(item, ImageRecord):
                    known = journal.recall(item)
                    if not known.done.issuperset(item.indexes):
                        raise _not_in_any(found, item)
                yield Ahead(position, item, known)

        run = Run(journal, job.source, progress=progress)
        with run:
            run.recall(recalled())
        outcome = run.outcome()
        job.write(outcome, journal, overwrite=overwrite)
    return outcome.summary


class ShardFile(NamedTuple):
    """A finished shard."""

    path: Path
    shard: Shard
    fingerprint: Mapping[str, str]
    reading: Mapping[str, Any]  # how the run had opened its masks: keyword arguments of ``refine_files``


def _read_shards(paths: Sequence[Path]) -> list[ShardFile]:
    """The shards of one run, all of them, in their order.

    Raises:
        InputError: a file is no finished shard, or of another run; a shard is missing or there twice.
    """
    found = sorted((_opened(path) for path in _listed(paths)), key=lambda each: each.shard)
    first = found[0]
    for before, each in zip([first, *found], found, strict=False):
        if each.shard.of != first.shard.of:
            reason = f"is shard {each.shard}, but {first.path} is shard {first.shard}"
            raise InputError(reason, file=each.path, remedy="give shards of one division")
        if each is not before and each.shard == before.shard:
            reason = f"is shard {each.shard}, and so is {before.path}"
            raise InputError(reason, file=each.path, remedy="give each shard once")
        if words := differences(_shared(first.fingerprint), _shared(each.fingerprint)):
            reason = f"is a shard of another run than {first.path}: {', '.join(words)}"
            raise InputError(reason, file=each.path, remedy=_AGAIN)
    there = {each.shard.number for each in found}
    missing = [str(Shard(n, first.shard.of)) for n in range(1, first.shard.of + 1) if n not in there]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        verb = "shards {} are" if len(missing) > 1 else "shard {} is"
        reason = f"{verb.format(', '.join(missing[:8]) + more)} missing, of {first.shard.of}"
        raise InputError(reason, remedy="give them, or refine them with --shard")
    return found


def _absorb(journal: Journal, shards: Sequence[ShardFile]) -> None:
    """Takes what shards have refined into the journal of the merged run.

    Raises InputError where one is damaged.
    """

    for each in shards:
        kinds = Counter[str]()

        def lines(file: BinaryIO, kinds: Counter[str] = kinds) -> Iterator[bytes]:
            for line, kind, _ in sound_lines(file):
                kinds[kind] += 1
                yield line

        try:
            with each.path.open("rb") as file:
                journal.absorb(lines(file), are_own=False)
        except FOREIGN:
            raise _no_shard(each.path) from None
        if not kinds[SHARD]:  # the last one
            reason = f"is damaged after record {kinds.total()}"
            raise InputError(reason, file=each.path, remedy=_AGAIN)
    journal.trusts_images = True


def _not_in_any(shards: Sequence[ShardFile], image: ImageRecord) -> InputError:
    """What to say of an image that its shard has not refined."""
    own = next(each for each in shards if each.shard.holds(image))
    reason = (
        f"{image.name} was not refined in shard {own.shard}; its file was not there, or the masks are others"
    )
    return InputError(reason, file=own.path, remedy=_AGAIN)


def _shared(fingerprint: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in fingerprint.items() if name not in _OWN}


def _listed(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in folders."""
    found = list[Path]()
    for path in paths:
        inside = (
            sorted(each for each in path.iterdir() if not each.name.startswith("."))
            if path.is_dir()
            else [path]
        )
        found += inside
    if not found:
        raise InputError("no shards are given", remedy="give the outputs of the runs with --shard")
    return found


def _opened(path: Path) -> ShardFile:
    try:
        with path.open("rb") as file:
            _, kind, fingerprint = next(sound_lines(file))
            last, about = last_record(file)
        if kind != RUN or last != SHARD:
            raise ValueError(kind)
        return ShardFile(path, Shard(*about["shard"]), dict(fingerprint), dict(about["reading"]))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="check the path") from error
    except (StopIteration, *FOREIGN):
        raise _no_shard(path) from None


def _no_shard(path: Path) -> InputError:
    reason = "is no finished shard of this version"
    return InputError(reason, file=path, remedy="give the outputs of runs with --shard")
