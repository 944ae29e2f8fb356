"""The log of records: whatever happens to its end, what stands before it can be read."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from transfiner_refine.pipeline.record_log import RecordLog

RECORDS = st.lists(st.binary(min_size=1, max_size=6000), max_size=6)


def written(records: list[bytes]) -> bytes:
    file = io.BytesIO()
    log = RecordLog(file)
    for record in records:
        log.append(record)
    log.flush()
    return file.getvalue()


@settings(max_examples=50)
@given(RECORDS, st.data())
def test_a_log_cut_anywhere_keeps_its_whole_records_and_can_be_gone_on_with(
    records: list[bytes], data: st.DataObject
) -> None:
    content = written(records)
    cut = data.draw(st.integers(0, len(content)))
    file = io.BytesIO(content[:cut])
    log = RecordLog(file)
    kept = [record for _, record in log.scan()]
    assert kept == records[: len(kept)]
    assert len(written(records[: len(kept) + 1])) > cut or kept == records
    log.append(b"new")
    log.flush()
    assert [record for _, record in RecordLog(file).scan()] == [*kept, b"new"]


@settings(max_examples=50)
@given(RECORDS.filter(bool), st.data())
def test_damage_ends_the_log_and_is_never_read_as_a_record(records: list[bytes], data: st.DataObject) -> None:
    content = bytearray(written(records))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    kept = [record for _, record in RecordLog(io.BytesIO(content)).scan()]
    assert kept == records[: len(kept)]
    assert len(kept) < len(records)


@settings(max_examples=50)
@given(RECORDS)
def test_zeros_that_a_power_cut_leaves_are_no_records(records: list[bytes]) -> None:
    file = io.BytesIO(written(records) + bytes(5000))
    assert [record for _, record in RecordLog(file).scan()] == records


@settings(max_examples=50)
@given(RECORDS)
def test_records_are_found_at_their_places_before_and_after_they_are_in_the_file(
    records: list[bytes],
) -> None:
    log = RecordLog(io.BytesIO())
    places = [log.append(record) for record in records]
    assert [log.read(place) for place in reversed(places)] == records[::-1]


def test_a_log_that_nobody_flushes_holds_little_back() -> None:
    file = io.BytesIO()
    log = RecordLog(file)
    for _ in range(3000):
        log.append(bytes([1]) * 152)
    assert 0 < log.end - len(file.getvalue()) < 100_000
    assert len(list(RecordLog(io.BytesIO(file.getvalue())).scan())) > 2000
