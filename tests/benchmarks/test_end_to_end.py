"""Trained towers: what they see, that they learn, that rows are made once, the table by hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
SIDE, STORED = 32, 36
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128,) * 3}
PLACES = ("top", "bottom")
N_EACH = 5


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    names = ("end_to_end", "end_to_end_report", "trained_towers")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(BENCHMARKS)


@pytest.fixture
def bench(modules: dict[str, Any]) -> Any:
    return modules["end_to_end"]


@pytest.fixture
def report(modules: dict[str, Any]) -> Any:
    return modules["end_to_end_report"]


@pytest.fixture
def towers(modules: dict[str, Any]) -> Any:
    return modules["trained_towers"]


@pytest.fixture
def tiny(towers: Any) -> Any:
    return towers.Setting(12, 16, SIDE, STORED, 1, 64, 3e-4, 1e-3)


@pytest.fixture
def drawn() -> tuple[torch.Tensor, list[str]]:
    """Photographs of a coloured half above or below black, and what they show."""
    rng, pixels, captions = np.random.default_rng(0), [], []
    for color, values in COLORS.items():
        for place in PLACES:
            for _ in range(N_EACH):
                one = rng.integers(30, size=(STORED, STORED, 3))
                half = slice(STORED // 2) if place == "top" else slice(STORED // 2, None)
                one[half] += np.array(values)
                pixels.append(one.clip(0, 255).astype(np.uint8))
                captions.append(f"a {color} field at the {place}")
    return torch.from_numpy(np.stack(pixels)), captions


def all_pairs(towers: Any, captions: list[str]) -> Any:
    return towers.Pairs(np.arange(len(captions)), captions, np.ones(len(captions)))


def one_of_each(towers: Any, captions: list[str]) -> Any:
    rows = np.arange(0, len(captions), N_EACH)
    return towers.Unseen(rows, [captions[row] for row in rows], np.arange(len(rows)))


def test_crops_are_parts_of_the_photographs_mirrored_or_not(towers: Any) -> None:
    photographs = torch.arange(2 * 5 * 5 * 3, dtype=torch.uint8).reshape(2, 5, 5, 3)
    rows = np.array([1] * 40)
    middle = towers.crops(photographs, rows[:1], 3, None)
    np.testing.assert_allclose(
        middle[0].permute(1, 2, 0).numpy(), photographs[1, 1:4, 1:4].numpy() / 127.5 - 1, atol=1e-6
    )
    possible = {
        part.tobytes()
        for y in range(3)
        for x in range(3)
        for cut in (photographs[1, y : y + 3, x : x + 3].numpy(),)
        for part in (cut.copy(), np.ascontiguousarray(cut[:, ::-1]))
    }
    found = towers.crops(photographs, rows, 3, np.random.default_rng(0)).permute(0, 2, 3, 1)
    back = np.round((found.numpy() + 1) * 127.5).astype(np.uint8)
    seen = {np.ascontiguousarray(one).tobytes() for one in back}
    assert seen <= possible
    assert len(seen) > len(possible) / 2


def test_padding_and_the_captions_beside_it_change_no_embedding(towers: Any, tiny: Any) -> None:
    captions = ["a dog", "two men walk through the snow with a red sled", ""]
    vocabulary = towers.Vocabulary(captions)
    made = towers.Towers(vocabulary.embeddings, tiny, np.random.default_rng(0))
    with torch.inference_mode():
        together = made.embed_texts(vocabulary.encode(captions))
        alone = torch.cat([made.embed_texts(vocabulary.encode([c])) for c in captions])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[:2].norm(dim=1), torch.ones(2))


def test_the_rate_rises_and_falls_to_nothing(towers: Any) -> None:
    rates = [towers.rate_at(step, 20) for step in range(21)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])  # up within a tenth, then from the top
    assert rates[11] == pytest.approx(0.5)  # half of the cosine
    assert rates[20] == pytest.approx(0.0)
    assert all(np.diff(rates[2:]) < 0)


def test_training_lowers_the_loss_and_a_seed_decides_everything(
    towers: Any, tiny: Any, drawn: tuple[torch.Tensor, list[str]]
) -> None:
    photographs, captions = drawn
    pairs, unseen = all_pairs(towers, captions), one_of_each(towers, captions)
    one, same, other = (
        towers.fine_tuned_recalls(photographs, pairs, unseen, tiny, np.random.default_rng(seed))
        for seed in (0, 0, 1)
    )
    assert one["last_loss"] < 0.8 * one["first_loss"]
    assert one == same
    assert one["last_loss"] != other["last_loss"]
    chance = 100 * (1 / 8 + 5 / 8 + 1) / 3  # of eight images with a caption each
    assert one["mean_recall"] > chance + 5


def test_a_pair_without_weight_teaches_nothing(
    towers: Any, tiny: Any, drawn: tuple[torch.Tensor, list[str]]
) -> None:
    photographs, captions = drawn
    pairs = all_pairs(towers, captions)
    short, unseen = tiny._replace(n_steps=1), one_of_each(towers, captions)
    weights = np.where(np.arange(len(captions)) < 20, 0.0, 1.0)
    wrong = [f"{c} {captions[0]}" if w == 0 else c for c, w in zip(captions, weights, strict=True)]

    def measured(captions: list[str], weights: np.ndarray) -> dict[str, float]:
        given = pairs._replace(captions=captions, weights=weights)
        rng = np.random.default_rng(0)
        found: dict[str, float] = towers.fine_tuned_recalls(photographs, given, unseen, short, rng)
        return found

    right = measured(captions, weights)
    assert measured(wrong, weights)["first_loss"] == pytest.approx(right["first_loss"], abs=1e-4)
    assert measured(wrong, np.ones(40))["first_loss"] != pytest.approx(
        right["first_loss"], abs=1e-2
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_cuda(towers: Any, tiny: Any, drawn: tuple[torch.Tensor, list[str]]) -> None:
    photographs, captions = drawn
    pairs, unseen = all_pairs(towers, captions), one_of_each(towers, captions)
    found = [
        towers.fine_tuned_recalls(
            photographs.to(device),
            pairs,
            unseen,
            tiny._replace(n_steps=1),
            np.random.default_rng(0),
        )
        for device in ("cuda", "cpu")
    ]
    assert found[0]["first_loss"] == pytest.approx(found[1]["first_loss"], abs=0.1)
    assert 0 <= found[0]["mean_recall"] <= 100


# --- Choices and rows -------------------------------------------------------------------------


class MadeUp:
    """A regime of which every method keeps the first pairs."""

    captions = tuple(f"a dog number {i}" for i in range(8))
    faults = np.array(["", "wrong caption"] * 4)
    image_rows = np.arange(8)[::-1].copy()


@pytest.fixture
def chosen(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was chosen, method by method, with made-up choices."""
    asked: list[str] = []

    def method(name: str, **more: Any) -> Any:
        def choose(problem: Any, keep: float, seed: int) -> Any:
            asked.append(f"{name} {keep:g} {seed}")
            m = round(8 * keep)
            weights = None if name == "random" else np.linspace(0.5, 1.5, m)
            given = {"rows": np.arange(m), "weights": weights, "seconds": 2.5}
            return bench.regimes.Chosen(**given, pairs_evaluated=0, **more)

        return bench.METHODS[name]._replace(choose=choose)

    monkeypatch.setitem(bench.METHODS, "random", method("random"))
    monkeypatch.setitem(bench.METHODS, "no_influence", method("no_influence"))
    drawn = method("weights_drawn", weighting="sample")
    monkeypatch.setitem(bench.METHODS, "weights_drawn", drawn)
    monkeypatch.setattr(bench, "pool_of", lambda _: None)
    monkeypatch.setattr(bench, "test_set_of", lambda *_: None)
    monkeypatch.setattr(bench, "make_regime", lambda *_: MadeUp)
    monkeypatch.setattr(bench, "make_problem", lambda *_: None)
    return asked


def test_a_choice_is_kept_with_all_that_a_training_needs(
    bench: Any, chosen: list[str], tmp_path: Path
) -> None:
    jobs = [bench.Job("wrong_40", 3, 0.5, m) for m in ("random", "no_influence")]
    bench.choose(jobs, tmp_path / "pool.npz", tmp_path)
    assert chosen == ["random 0.5 3", "no_influence 0.5 3"]
    kept = [bench.read_chosen(job.file(tmp_path)) for job in jobs]
    for one in kept:
        assert one.image_rows.tolist() == [7, 6, 5, 4]
        assert one.captions.tolist() == list(MadeUp.captions[:4])
        assert (float(one.faults_left), float(one.seconds)) == (0.5, 2.5)
    assert kept[0].weights.tolist() == [1.0] * 4
    assert kept[1].weights == pytest.approx(np.linspace(0.5, 1.5, 4))
    assert not list(tmp_path.rglob("*.part.npz"))
    with pytest.raises(SystemExit, match="--methods weights_drawn: weights count in the loss"):
        bench.choose([bench.Job("clean", 0, 0.5, "weights_drawn")], tmp_path, tmp_path)


@pytest.mark.usefixtures("chosen")
def test_pairs_without_photographs_are_refused(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MadeUp, "image_rows", np.array([3, 2, 1, -1, -1, 0, 4, 5]))
    with pytest.raises(SystemExit, match="--cells near_copies: its near copies have no photo"):
        bench.choose([bench.Job("near_copies", 0, 0.5, "random")], tmp_path, tmp_path)


@pytest.mark.usefixtures("chosen")
def test_rows_are_computed_once_and_anew_in_another_version(
    bench: Any, towers: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.SETTINGS, "small", tiny._replace(n_steps=2, batch_size=4))
    photographs = torch.from_numpy(
        np.random.default_rng(0).integers(256, size=(8, STORED, STORED, 3)).astype(np.uint8)
    )
    unseen = towers.Unseen(np.array([0, 1]), ["a dog", "a cat", "a man"], np.array([0, 0, 1]))
    trainer = bench.Trainer(photographs, unseen, "small", tmp_path)
    jobs = [bench.Job("wrong_40", 3, 0.5, m) for m in ("random", "no_influence")]
    bench.choose(jobs, tmp_path / "pool.npz", tmp_path)
    file = tmp_path / "out" / "end_to_end.csv"
    assert bench.compute(jobs[:1], trainer, file) == 1
    assert bench.compute(jobs, trainer, file) == 1
    whole = file.read_bytes()
    file.write_bytes(whole + b"wrong_40,0.5,ran")  # killed as it wrote
    assert bench.compute(jobs, trainer, file) == 0
    assert file.read_bytes() == whole
    frame = bench.read_rows(file)
    assert frame["method"].tolist() == ["random", "no_influence"]
    assert frame["mean_recall"].between(0, 100).all()
    assert frame["seconds"].tolist() == [2.5, 2.5]
    assert frame["faults_left"].tolist() == [0.5, 0.5]
    assert frame["n_steps"].tolist() == [2, 2]

    monkeypatch.setitem(bench.METHODS, "random", bench.METHODS["random"]._replace(version="next"))
    assert bench.read_rows(file)["method"].tolist() == ["no_influence"]
    assert not bench.jobs_of(bench.arguments(["--table_only"]))[0].file(tmp_path).exists()


def test_what_is_asked_for(bench: Any) -> None:
    asked = ["--table_only", "--seeds", "1", "--first_seed", "7", "--methods", "full", "oracle"]
    jobs = bench.jobs_of(bench.arguments([*asked, "--cells", "clean:0.4", "wrong_40:0.6"]))
    assert [tuple(job) for job in jobs] == [
        ("clean", 7, 1.0, "full"),  # without faults the oracle is `random`
        ("wrong_40", 7, 1.0, "full"),
        ("wrong_40", 7, 0.6, "oracle"),
    ]
    assert bench.cell_of("boilerplate_20:0.8") == ("boilerplate_20", 0.8)
    for wrong in ("wrong_40", "nothing:0.5", "clean:1.5", "clean:x"):
        with pytest.raises(SystemExit, match=f"--cells {wrong}: a regime and a share kept"):
            bench.cell_of(wrong)
    assert bench.chosen_device("cpu") == torch.device("cpu")


def test_photographs_are_decoded_once(towers: Any, tmp_path: Path) -> None:
    import PIL.Image

    (tmp_path / "Images").mkdir()
    for name, value in (("b.png", 200), ("a.png", 10)):
        PIL.Image.new("RGB", (20, 10), (value, 0, 0)).save(tmp_path / "Images" / name)
    pd.DataFrame({"image": ["b.png", "a.png"], "split": "train"}).to_csv(tmp_path / "splits.csv")
    kept = tmp_path / "kept" / "photographs_8.npz"
    pixels = towers.load_photographs(tmp_path, kept, 8)
    assert pixels.shape == (2, 8, 8, 3)
    assert pixels[:, 4, 4, 0].tolist() == [10, 200]  # by name
    for file in (tmp_path / "Images").iterdir():
        file.unlink()
    np.testing.assert_array_equal(towers.load_photographs(tmp_path, kept, 8), pixels)
    with pytest.raises(SystemExit, match="holds other photographs"):
        towers.load_photographs(tmp_path, kept, 9)


def test_unseen_images_come_with_all_their_captions(towers: Any, tmp_path: Path) -> None:
    splits = {"image": ["c.png", "a.png", "b.png"], "split": ["validation", "validation", "train"]}
    pd.DataFrame(splits).to_csv(tmp_path / "splits.csv", index=False)
    pairs = [("c.png", "a  cat"), ("b.png", "a bus"), ("a.png", "an ant"), ("c.png", "a car")]
    table = pd.DataFrame(pairs, columns=["image", "caption"])
    table.to_csv(tmp_path / "captions.txt", index=False)
    unseen = towers.load_unseen(tmp_path)
    assert unseen.image_rows.tolist() == [0, 2]
    assert unseen.captions == ["an ant", "a cat", "a car"]
    assert unseen.caption_image.tolist() == [0, 1, 1]


# --- The table --------------------------------------------------------------------------------


def rows_by_hand(bench: Any) -> pd.DataFrame:
    """Two seeds of one cell; negCLIPLoss is the best rival, 1 and 2 below InfluenceSpace."""
    recalls = {
        "random": (4.0, 5.0),
        "neg_clip_loss": (8.0, 9.0),
        "no_influence": (9.5, 11.5),
        "influencespace": (9.0, 11.0),
        "oracle": (10.0, 12.0),
        "full": (6.0, 6.5),
    }
    rows = []
    for method, values in recalls.items():
        for seed, value in enumerate(values):
            row = {**dict.fromkeys(bench.COLUMNS, 1.0), "regime": "wrong_40", "seed": seed}
            row |= {"method": method, "mean_recall": value, "faults_left": 0.25, "threads": 1}
            row |= {"keep": 1.0 if method == "full" else 0.6, "setting": "small"}
            rows.append({**row, "device": "x CPU", "dtype": "fp32", "seconds": 57.0})
    return pd.DataFrame(rows)


def test_the_table_by_hand(bench: Any, report: Any, towers: Any, tmp_path: Path) -> None:
    frame = rows_by_hand(bench)
    report.write_table(frame, tmp_path)
    page = (tmp_path / "end_to_end.md").read_text()
    (line,) = [row for row in page.splitlines() if "| 0.6 | 4.50" in row]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        *("40 % wrong captions", "0.6", "4.50 ± 0.50", "8.50 ± 0.50", "10.50 ± 1.00"),
        *("10.00 ± 1.00", "11.00 ± 1.00", "6.25 ± 0.25"),
        "negCLIPLoss +1.50 ± 0.50 (2)",  # 1 and 2
        "-0.50 ± 0.00 (2)",
    ]
    assert f"`--setting small`: {towers.SETTINGS['small']}, fp32, x CPU, threads: 1" in page
    assert "| 40 % wrong captions | 1 | Full data | 2 | 25.0 % | 1.00 | 57.0 | 1.0 |" in page
    assert report.COMMAND in page

    one_seed = frame[(frame["seed"] == 0) | (frame["method"] == "random")]
    assert "negCLIPLoss +1.00 (1)" in report.table_of(one_seed)
    no_rival = frame[frame["method"] == "oracle"]
    assert "| – | – |" in report.table_of(no_rival)
