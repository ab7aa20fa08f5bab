"""The strict reader under bit flips and truncation: a selection or one InputError, nothing else.

`SEAL_FUZZ=20000 pytest tests/test_artefact_fuzz.py` runs that many examples (default 300).
"""

import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seal.errors import InputError
from seal.selection.artefact import read_selection, selection_meta, write_selection

EXAMPLES = int(os.environ.get("SEAL_FUZZ", "300"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES == 300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The bytes of a selection of 200 lines."""
    rng = np.random.default_rng(0)
    columns = {
        "id": [rng.bytes(16).hex() for _ in range(200)],
        "occurrence": np.zeros(200, np.int32),
        "row": np.arange(200),
        "score": rng.standard_normal(200),
        "loss": rng.random(200),
    }
    meta = selection_meta(
        method="penalty",
        arguments={"lr": 5e-3},
        fingerprint="0",
        raw=200,
        skipped={},
        model="m",
        tokenizer="t",
        max_len=2048,
        seed=0,
    )
    path = tmp_path_factory.mktemp("fuzz") / "whole.parquet"
    write_selection(path, columns, meta)
    return path.read_bytes()


def read_or_refuse(path, data: bytes) -> bool:
    """Whether the reader took the bytes; anything but a selection or an InputError escapes."""
    path.write_bytes(data)
    try:
        selection = read_selection(path)
    except InputError as error:
        assert "\n" not in str(error)
        return False
    assert np.isfinite(selection.score).all() and len(selection) == 200
    return True


@fuzz
@given(data=st.data())
def test_bit_flips(tmp_path, whole, data):
    damaged = bytearray(whole)
    footer = len(whole) - 8 - struct.unpack("<i", whole[-8:-4])[0]
    start = data.draw(st.sampled_from([0, footer]))  # half of the flips go to the footer
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(start, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    read_or_refuse(tmp_path / "x.parquet", bytes(damaged))


@fuzz
@given(data=st.data())
def test_truncation(tmp_path, whole, data):
    cut = data.draw(st.integers(0, len(whole) - 1))
    tail = data.draw(st.binary(max_size=16))
    assert not read_or_refuse(tmp_path / "x.parquet", whole[:cut] + tail[: len(whole) - cut - 1])


def test_a_flip_in_any_column_is_noticed(tmp_path, whole):
    """Every data page carries a checksum, so no flipped bit there becomes another score."""
    footer = len(whole) - 8 - struct.unpack("<i", whole[-8:-4])[0]
    taken = 0
    for place in range(64, footer, 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        taken += read_or_refuse(tmp_path / "x.parquet", bytes(damaged))
    assert read_or_refuse(tmp_path / "x.parquet", whole)
    assert taken <= 3, "only page headers hold bytes that do not matter"
