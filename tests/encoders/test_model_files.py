"""Where a model's files are found, and which weights are read; nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from artifacts.settings import InputError
from encoders.model_files import ModelFiles, find_model, load_restricted, read_tensors
from tests.encoders.weight_files import Planted, put_in_cache, save_shards

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([7]), "c": torch.tensor(0.5)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[name], TENSORS[name]) for name in TENSORS
    )


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_come_back_as_they_were_saved(tmp_path: Path, is_zip: bool) -> None:
    torch.save(TENSORS, tmp_path / "w.bin", _use_new_zipfile_serialization=is_zip)
    assert same(read_tensors([tmp_path / "w.bin"]))
    on_meta = load_restricted(tmp_path / "w.bin", "meta")
    assert on_meta["b"].is_meta
    assert on_meta["b"].shape == (2, 3)


def test_shards_are_put_together(tmp_path: Path) -> None:
    names = save_shards(TENSORS, tmp_path, 2)
    paths = ModelFiles(str(tmp_path), is_local=True).weights("pytorch_model.bin")
    assert paths == [tmp_path / name for name in names]
    assert same(read_tensors(paths))


def test_one_file_comes_before_shards(tmp_path: Path) -> None:
    save_shards(TENSORS, tmp_path, 2)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    paths = ModelFiles(str(tmp_path), is_local=True).weights("pytorch_model.bin")
    assert paths == [tmp_path / "pytorch_model.bin"]


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_planted_pickle_is_refused_unread(tmp_path: Path, is_zip: bool, device: str) -> None:
    path, marker = tmp_path / "w.bin", tmp_path / "marker"
    content = {**TENSORS, "planted": Planted(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"^w\.bin needs more than tensors \(posix\.system\)"):
        load_restricted(path, device)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # what it would have done
    assert marker.exists()


def test_what_else_is_no_table_of_tensors_is_refused_in_one_line(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.bin")
    torch.save([1, 2], tmp_path / "list.bin")
    torch.save({"a": 1}, tmp_path / "number.bin")
    (tmp_path / "pickle.bin").write_bytes(pickle.dumps(Planted(marker)))
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "text.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    save_file(TENSORS, tmp_path / "safe.bin")
    torch.save(TENSORS, tmp_path / "cut.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:-100])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants no new TorchScript
        torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.bin"))
    paths = sorted(tmp_path.glob("*.bin"))
    assert len(paths) == 9
    for path in paths:
        with pytest.raises(ValueError, match=rf"^{path.name} [^\n]+$") as caught:
            read_tensors([path])
        assert "weights_only" not in str(caught.value), "torch's advice is to trust the file"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "pytorch_model.bin.index.json is damaged"),
        ("[]", "pytorch_model.bin.index.json is damaged"),
        ('{"weight_map": {"a": "absent.bin"}}', "names absent.bin, which is not beside it"),
        ('{"weight_map": {"a": "../w.bin"}}', r"names \.\./w.bin, which is not beside it"),
    ],
)
def test_damaged_index(tmp_path: Path, content: str, message: str) -> None:
    torch.save(TENSORS, tmp_path / "w.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ModelFiles(str(folder), is_local=True).weights("pytorch_model.bin")


def test_files_in_a_cache(tmp_path: Path, no_hub: Path) -> None:
    (tmp_path / "model").mkdir()
    save_shards(TENSORS, tmp_path / "model", 2)
    snapshot = put_in_cache(tmp_path / "model", no_hub, "some/model")
    files = find_model(
        "some/model", lambda files: bool(files.weights("pytorch_model.bin")), flag=""
    )
    assert files == ModelFiles("some/model", is_local=True)
    paths = files.weights("pytorch_model.bin")
    assert {path.parent for path in paths} == {snapshot}
    assert same(read_tensors(paths))
    assert files.find("absent.json") is None
    index = json.loads((snapshot / "pytorch_model.bin.index.json").read_text())
    assert files.find_first(["absent", "pytorch_model.bin.index.json"]) == (
        snapshot / "pytorch_model.bin.index.json"
    )
    (snapshot / index["weight_map"]["a"]).unlink()
    with pytest.raises(ValueError, match="which is not beside it"):
        files.weights("pytorch_model.bin")


def test_model_of_nothing(no_hub: Path) -> None:
    with pytest.raises(InputError, match=r"^--encoder_model my:a/b is no folder, not in the local"):
        find_model("a/b", lambda _: False, flag="my:a/b")
