"""How a run ends that does not end well: the journal stays, and one line says how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transfiner_refine.errors import MaskRefineError, OutputError
from transfiner_refine.pipeline.journal import Journal

__all__ = ["Interrupted", "kept_run"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the text says what is kept and how to go on."""


@contextmanager
def kept_run(output: Path, num_instances: int) -> Iterator[Journal]:
    """The journal of a run to ``output``. It stays if the block fails and there is something to go on with.

    Raises:
        OutputError: from opening the journal.
        MaskRefineError: errors of the block, with a word on how to go on.
        Interrupted: for Ctrl-C in the block.
    """
    journal = Journal(output, num_instances)
    try:
        try:
            yield journal
        finally:
            with suppress(OSError):  # a full disk, of which there is word already
                journal.ledger.flush()
    except KeyboardInterrupt:
        raise Interrupted("; ".join(("interrupted", *_way_on(journal)))) from None
    except MaskRefineError as error:
        raise _with_way_on(error, journal) from error
    except OSError as error:  # whoever reads inputs or writes the output has errors of his own
        refused = OutputError(
            f"cannot be written ({error.strerror or error})",
            file=journal.path,
            remedy="check the space on the disk and the rights on the folder",
        )
        raise _with_way_on(refused, journal) from error
    finally:
        journal.close()


def _way_on(journal: Journal) -> list[str]:
    if not (journal.has_begun and journal.is_worth_keeping):
        return []
    count = journal.ledger.num_masks
    kept = f"{count} refined mask is" if count == 1 else f"{count} refined masks are"
    return [f"{kept} kept, repeat the command with --resume to go on"]


def _with_way_on(error: MaskRefineError, journal: Journal) -> MaskRefineError:
    way_on = _way_on(journal)
    if not way_on:
        return error
    remedy = "; ".join((*([error.remedy] if error.remedy else []), *way_on))
    return type(error)(error.reason, file=error.file, record=error.record, remedy=remedy)
