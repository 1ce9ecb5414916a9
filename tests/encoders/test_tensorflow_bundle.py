"""A checkpoint that TensorFlow wrote (``make_reference.py``), read without it."""

from pathlib import Path

import numpy as np
import pytest
from encoders.make_reference import SMALL

from mgc.core.errors import InputError
from mgc.encoders.tensorflow_bundle import crc32c, read_bundle

DATA = Path(__file__).parent / "data"
INDEX, CONTENT = (DATA / f"small.{suffix}" for suffix in ("index", "data-00000-of-00001"))


@pytest.fixture(scope="module")
def small() -> tuple[bytes, bytes]:
    return INDEX.read_bytes(), CONTENT.read_bytes()


def test_tensors_are_what_tensorflow_wrote(small):
    tensors = read_bundle(*small, "small")
    assert tensors.keys() == SMALL.keys()
    for name, value in SMALL.items():
        assert (tensors[name].dtype, tensors[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(tensors[name], value)


def test_a_flipped_bit_is_found_or_changes_nothing(small):
    """In the index every byte counts but the padding of its footer and the checksum of its empty statistics."""
    index, data = small
    unnoticed = 0
    for file, content in enumerate(small):
        for at in range(0, len(content), 41 if file else 1):
            spoilt = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
            try:
                tensors = read_bundle(*((index, spoilt) if file else (spoilt, data)), "small")
            except InputError as error:
                assert str(error).startswith("small: ")  # noqa: PT017
            else:
                unnoticed += 1
                assert all(np.array_equal(tensors[name], value) for name, value in SMALL.items())
    assert unnoticed < 60


@pytest.mark.parametrize("kept", [0, 10, 100])
def test_a_cut_file_is_an_error_that_names_it(small, kept):
    index, data = small
    for files in ((index[:kept], data), (index, data[:kept])):
        with pytest.raises(InputError, match=r"^small: "):
            read_bundle(*files, "small")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 5000])
def test_the_checksum_is_that_of_bit_by_bit_division(size):
    data = bytes(np.arange(size, dtype=np.int64) * 7919 >> 3 & 0xFF)
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    assert crc32c(data) == crc ^ 0xFFFFFFFF
