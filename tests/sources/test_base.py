"""Names of pairs and settings; the truth is `hashlib`'s, and written by hand."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.cores import n_cores
from artifacts.settings import InputError
from sources.base import DataConfig, datacomp_uid, pair_id


def half_sha256(image: bytes, caption: str) -> str:
    return hashlib.sha256(image + caption.encode("utf-8")).digest()[:16].hex()


def test_the_name_of_a_pair_is_half_a_sha256() -> None:
    assert pair_id(b"ab", "c") == "ba7816bf8f01cfea414140de5dae2223"  # FIPS 180's "abc"
    assert pair_id(b"", "") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert pair_id(b"\x00", "été") == hashlib.sha256(b"\0\xc3\xa9t\xc3\xa9").hexdigest()[:32]


@given(st.binary(max_size=100), st.text())
def test_the_name_of_any_pair(image: bytes, caption: str) -> None:
    assert pair_id(image, caption) == half_sha256(image, caption)


@pytest.mark.parametrize("value", ["0" * 31, "0" * 33, "g" * 32, "0" * 32 + "\n", "", None, 1])
def test_what_is_no_name_of_datacomp(value: object) -> None:
    assert datacomp_uid(value) == ""
    assert datacomp_uid("0123456789abcdefABCDEF0123456789") == "0123456789abcdefABCDEF0123456789"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_train_samples": 1}, "--max_train_samples must be >= 2"),
        ({"num_workers": -1}, "--num_workers must be >= 0"),
        ({"dataset": "imagenet"}, "--dataset must be one of auto"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataConfig(**settings)


def test_workers_do_not_make_results_stale() -> None:
    assert "num_workers" not in DataConfig().fingerprint_settings()


def test_workers_are_as_many_as_cores_unless_a_number_is_given() -> None:
    assert DataConfig().n_workers() == n_cores() >= 1
    assert [DataConfig(num_workers=n).n_workers() for n in (0, 3)] == [0, 3]
