"""Arrays in .npz files; the truth is what NumPy wrote, and what zipfile says of damage."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.settings import InputError
from sources import npz
from sources.npz import NpzArray, array_names
from tests.sources.embedding_files import Trap, draw

SAVERS = {"stored": np.savez, "deflated": np.savez_compressed}
saving = pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)


def npy_bytes(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def zip_of(root: Path, data: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    """A file with one member, whatever it is."""
    path = root / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("b32_img.npy", data)
    return path


def read(root: Path) -> np.ndarray:
    return NpzArray.open(root, "a.npz", "b32_img").checked_rows()


def problem(root: Path) -> str:
    """The one line that refuses an array."""
    with pytest.raises(InputError) as caught:
        read(root)
    message = str(caught.value)
    assert message.startswith(f"--embeddings_dir {root}: b32_img of a.npz ")
    assert "\n" not in message
    return message


# --- What is read ---------------------------------------------------------------------------------


@saving
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_rows_are_those_that_were_saved(tmp_path: Path, save: Any, order: Any, dtype: type) -> None:
    rows = np.asarray(draw(50, 1, dtype), order=order)
    save(tmp_path / "a.npz", other=np.arange(3), b32_img=rows, b32_txt=rows[::-1])
    assert array_names(tmp_path, "a.npz") == ["other", "b32_img", "b32_txt"]
    for array, expected in (("b32_img", rows), ("b32_txt", rows[::-1])):
        found = NpzArray.open(tmp_path, "a.npz", array)
        assert found.name == f"{array} of a.npz"
        assert found.shape == rows.shape
        for values in (found.rows(), found.checked_rows()):
            np.testing.assert_array_equal(values, expected)
            assert values.dtype == dtype
            assert isinstance(values, np.memmap) == (save is np.savez), (
                "only stored rows stay there"
            )
        assert found.held_bytes == (0 if save is np.savez else rows.nbytes)


@pytest.mark.parametrize("comment", [b"", b"c" * 4096])
@pytest.mark.parametrize("shift", range(4))
def test_rows_anywhere_in_the_file(tmp_path: Path, shift: int, comment: bytes) -> None:
    """Also where no value is at a multiple of its size, and after what is no part of the zip."""
    rows = draw(20, 1, np.float32)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x" * (1 + shift), b"")
        archive.writestr("b32_img.npy", npy_bytes(rows))
        archive.comment = comment
    (tmp_path / "a.npz").write_bytes(b"#!" + buffer.getvalue())
    np.testing.assert_array_equal(read(tmp_path), rows)


@saving
def test_no_rows(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", b32_img=draw(0, 1))
    assert read(tmp_path).shape == (0, draw(0, 1).shape[1])


# --- What is refused ------------------------------------------------------------------------------


@saving
def test_objects_are_never_unpickled(tmp_path: Path, save: Any) -> None:
    sprung, root = tmp_path / "sprung", tmp_path / "in"
    root.mkdir()
    save(root / "a.npz", b32_img=np.array([[Trap(sprung)]] * 3, dtype=object))
    assert "(Python objects, which are never unpickled); download" in problem(root)
    assert not sprung.exists()
    np.load(root / "a.npz", allow_pickle=True)["b32_img"]
    assert sprung.exists(), "it was no trap"


def test_a_bare_pickle_is_never_unpickled(tmp_path: Path) -> None:
    sprung, root = tmp_path / "sprung", tmp_path / "in"
    root.mkdir()
    data = np.array([Trap(sprung)], dtype=object).dumps()
    zip_of(root, data)
    assert "is damaged or no plain array (the magic string is not correct" in problem(root)
    (root / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz is damaged or no plain array"):
        array_names(root, "a.npz")
    assert not sprung.exists()
    np.load(root / "a.npz", allow_pickle=True)
    assert sprung.exists(), "it was no trap"


NO_TABLE = {
    "one dimension": np.ones(3, np.float32),
    "three dimensions": np.ones((3, 2, 6), np.float32),
    "whole numbers": np.ones((3, 6), np.int8),
    "complex": np.ones((3, 6), np.complex64),
    "no width": np.ones((3, 0), np.float32),
    "words": np.array([["a"], ["b"], ["c"]]),
}


@saving
@pytest.mark.parametrize("rows", NO_TABLE.values(), ids=NO_TABLE)
def test_arrays_that_are_no_tables_of_floats(tmp_path: Path, rows: np.ndarray, save: Any) -> None:
    save(tmp_path / "a.npz", b32_img=rows)
    found = f"holds an array of {rows.dtype} with shape {rows.shape}, not one row of floats a pair"
    assert found in problem(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    zip_of(tmp_path, npy_bytes(draw(3, 1)), method)
    assert f"compressed by method {method}, which NumPy does not use" in problem(tmp_path)


METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
by_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
HEADERS = {
    "more rows than there are": (b"(300, 6)", b"(301, 6)"),
    "fewer": (b"(300, 6)", b"(299, 6)"),
    "wider": (b"(300, 6)", b"(300, 7)"),
    "a bomb": (b"(300, 6), }          ", b"(300000000000, 6), } "),
    "negative": (b"(300, 6), }  ", b"(-300, -6), }"),
    "a call": (b"(300, 6), }", b"exit(1),  }"),
    "a newer version": (b"NUMPY\1\0", b"NUMPY\4\0"),
}


@by_method
@pytest.mark.parametrize(("old", "new"), HEADERS.values(), ids=HEADERS)
def test_headers_of_arrays_that_lie(tmp_path: Path, old: bytes, new: bytes, method: int) -> None:
    data = npy_bytes(draw(300, 1))
    assert len(old) == len(new)
    assert old in data
    zip_of(tmp_path, data.replace(old, new), method)
    message = problem(tmp_path)
    assert "download it again, or save float16 or float32 arrays with np.savez" in message


def directory_entry(data: bytearray) -> int:
    """Where a zip file of one member says what it is."""
    return data.rindex(b"PK\1\2")


@by_method
@pytest.mark.parametrize("field", [20, 24], ids=["compressed size", "size"])
@pytest.mark.parametrize("change", [-100, 1, 10**6, 2 * 10**9])
def test_sizes_in_the_directory_that_lie(
    tmp_path: Path, method: int, field: int, change: int
) -> None:
    path = zip_of(tmp_path, npy_bytes(draw(300, 1)), method)
    data = bytearray(path.read_bytes())
    at = directory_entry(data) + field
    size = int.from_bytes(data[at : at + 4], "little") + change
    data[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    if method == zipfile.ZIP_DEFLATED and field == 20 and change > 0:
        # What is deflated tells its end itself, and its checksum is right.
        np.testing.assert_array_equal(read(tmp_path), draw(300, 1))
    else:
        problem(tmp_path)


def test_a_bomb_that_tells_its_size_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.zeros((1000, 500), np.float32)
    zip_of(tmp_path, npy_bytes(rows), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.npz").stat().st_size < rows.nbytes / 100
    monkeypatch.setattr(npz, "MAX_DECODED_BYTES", rows.nbytes)
    monkeypatch.setattr(NpzArray, "_decoded", lambda array: pytest.fail("decoded"))
    assert "is compressed and has 2,000,128 bytes; save it with np.savez" in problem(tmp_path)


@by_method
def test_a_bit_that_fell_over(tmp_path: Path, method: int) -> None:
    path = zip_of(tmp_path, npy_bytes(draw(300, 1)), method)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    assert "is damaged or no plain array (" in problem(tmp_path)


@saving
def test_files_that_end_early_or_are_gone(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "a.npz"
    save(path, b32_img=draw(300, 1), b32_txt=draw(300, 2))
    array = NpzArray.open(tmp_path, "a.npz", "b32_img")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 4])
    with pytest.raises(InputError, match=r"b32_img of a\.npz (is damaged|cannot be read)"):
        array.checked_rows()
    with pytest.raises(
        InputError, match=r"a\.npz is damaged or no plain array \(File is not a zip"
    ):
        array_names(tmp_path, "a.npz")
    path.unlink()
    with pytest.raises(InputError, match=r"b32_img of a\.npz cannot be read \(No such file"):
        array.rows()


def test_an_array_that_is_not_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", l14_img=draw(3, 1))
    assert "There is no item named 'b32_img.npy'" in problem(tmp_path)


@given(
    at=st.integers(0, 10**6),
    value=st.integers(0, 255),
    cut=st.integers(0, 3000),
    is_stored=st.booleans(),
)
@settings(
    max_examples=150,
    deadline=None,  # opening takes files, and the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_damage_is_refused_or_changes_no_value(
    tmp_path: Path, at: int, value: int, cut: int, is_stored: bool
) -> None:
    rows = draw(50, 1, np.float32)
    (np.savez if is_stored else np.savez_compressed)(tmp_path / "a.npz", b32_img=rows)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[at % len(data)] = value
    (tmp_path / "a.npz").write_bytes(data if cut > 500 else data[: len(data) - cut])
    try:
        array_names(tmp_path, "a.npz")
        found = read(tmp_path)
    except InputError as error:
        assert str(error).startswith(f"--embeddings_dir {tmp_path}: ")  # noqa: PT017 - either is right
        assert "a.npz" in str(error)  # noqa: PT017
        return
    np.testing.assert_array_equal(found, rows)
