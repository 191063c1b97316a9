"""The benchmark of scale: what is planted, how memory is read, what is reckoned from it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from cli.config import parse_arguments
from sources.base import NO_LIMIT, DataConfig
from sources.embeddings import open_embeddings

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
MIB = 1024**2
HOLDING = """
import subprocess, sys, time
held = bytearray(b"x" * {n} * 2**20)
if {n} > 40:
    subprocess.Popen([sys.executable, "-c", {inner!r}])
    time.sleep(0.1)
print("held", flush=True)
time.sleep(60)
"""


class Bench(NamedTuple):
    """The benchmark's modules."""

    scale: Any
    data: Any
    report: Any


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    sys.path.append(BENCHMARKS)  # last: some of its files have the names of modules
    yield Bench(*(importlib.import_module(f"scale{name}") for name in ("", "_data", "_report")))
    sys.path.remove(BENCHMARKS)


# --- What is planted ------------------------------------------------------------------------------


def test_faults_are_planted_in_their_shares(bench: Bench) -> None:
    data = bench.data
    planting = data.Planting(20_000, width=512)
    shard = data.make_shard(planting, data.make_world(planting), 0)
    scores = (shard.images * shard.texts).sum(axis=1)
    assert np.abs(np.linalg.norm(shard.images, axis=1) - 1).max() < 1e-5
    for fault, share in data.SHARES.items():
        error = np.sqrt(share * (1 - share) / 20_000)
        assert abs((shard.faults == fault).mean() - share) < 5 * error
    lowest = np.zeros(20_000, dtype=bool)
    lowest[np.argsort(scores)[:4000]] = True
    caught = lowest[shard.faults == data.WRONG_CAPTION].mean()
    assert 0.997 <= caught < 1  # about 99.9 %, so that there is something to miss
    assert lowest[shard.faults == data.NEAR_COPY].mean() < 0.6  # it does not know of copies
    # The two sides lie apart: a pair's own cosine is far from one, any two images' is not zero.
    assert 0.2 < scores[shard.faults == data.GOOD].mean() < 0.4
    assert (shard.images[:1000] @ shard.images[1000:2000].T).mean() > 0.4


def test_faults_are_what_they_are_called(bench: Bench) -> None:
    data = bench.data
    planting = data.Planting(6000, width=64, shard_size=3000)
    world = data.make_world(planting)
    shard = data.make_shard(planting, world, 0)
    centred = shard.images - shard.images.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    alike = centred @ centred.T
    np.fill_diagonal(alike, -1)
    is_copy = shard.faults == data.NEAR_COPY
    assert alike[is_copy].max(axis=1).min() > 0.95
    assert np.median(alike[~is_copy].max(axis=1)) < 0.85

    plain = [c for c, f in zip(shard.captions, shard.faults, strict=True) if f == data.BOILERPLATE]
    assert len(set(plain)) <= data.N_BOILERPLATES < len(plain)
    other = data.make_shard(planting, world, 0)
    assert np.array_equal(other.texts, shard.texts)
    assert other.captions == shard.captions
    assert not np.array_equal(data.make_shard(planting, world, 1).texts[:10], shard.texts[:10])


def test_wrong_captions_are_those_of_other_pairs(bench: Bench) -> None:
    data = bench.data
    planting = data.Planting(4000, width=64)
    world = data.make_world(planting)
    shard = data.make_shard(planting, world, 0)
    by_word = {word: topic for topic, words in enumerate(world.words) for word in words}

    def topic(caption: str) -> int:
        return next(by_word[word] for word in caption.split() if word in by_word)

    # The text's embedding lies by the topic that its caption speaks of, wrong or not.
    texts = shard.texts - shard.texts.mean(axis=0)
    for fault in (data.GOOD, data.WRONG_CAPTION):
        rows = np.flatnonzero(shard.faults == fault)[:300]
        spoken = np.array([topic(shard.captions[row]) for row in rows])
        own = (texts[rows] * world.topics[spoken]).sum(axis=1).mean()
        assert own > 5 * abs((texts[rows] * world.topics[np.roll(spoken, 1)]).sum(axis=1).mean())
        images = shard.images[rows] - shard.images.mean(axis=0)
        seen = (images * world.topics[spoken]).sum(axis=1).mean()
        assert (seen > own / 2) == (fault == data.GOOD)


def test_the_layout_is_read_by_the_program(bench: Bench, tmp_path: Path) -> None:
    data = bench.data
    planting = data.Planting(70, width=16, shard_size=30)
    root = data.write_embeddings(planting, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(before) == 9  # three shards of images, texts and truth
    settings: dict[str, Any] = {"max_train_samples": "all", "max_val_samples": 5}
    config = DataConfig(embeddings_dir=str(root), max_test_samples=5, **settings)
    source = open_embeddings(config, rng=np.random.default_rng(0)).source
    records = list(source.records("train"))
    assert config.limits()["train"] == NO_LIMIT
    assert len(records) == 60
    rows = data.rows_of([record.key for record in records])
    assert sorted(rows) == rows.tolist()
    world, truth = data.make_world(planting), data.read_truth(tmp_path)
    shards = [data.make_shard(planting, world, number) for number in range(3)]
    captions = [caption for shard in shards for caption in shard.captions]
    assert [record.captions[0].text for record in records] == [captions[row] for row in rows]
    assert np.array_equal(truth, np.concatenate([shard.faults for shard in shards]))

    # What is there is kept; a shard whose truth is missing is made again; others are refused.
    (tmp_path / "truth/00001.npy").unlink()
    data.write_embeddings(planting, tmp_path)
    again = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert {path.name for path in again} == {"img_emb_00001.npy", "text_emb_00001.npy", "00001.npy"}
    with pytest.raises(SystemExit, match="holds other pairs"):
        data.write_embeddings(data.Planting(71, width=16, shard_size=30), tmp_path)


# --- Memory ---------------------------------------------------------------------------------------


def test_memory_is_that_of_a_process_and_its_children(bench: Bench) -> None:
    inner = HOLDING.format(n=30, inner="")
    code = HOLDING.format(n=50, inner=inner)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"held\n"] * 2
        alone = bench.scale.rss_anon(process.pid)
        assert alone is not None
        assert 50 * MIB < alone < 75 * MIB
        members = bench.scale.family(process.pid)
        assert len(members) == 2
        sampler = bench.scale.Sampler(process.pid, seconds=0.01)
        sampler.start()
        samples = sampler.finish()
        assert samples[0].n_processes == 2
        assert 80 * MIB < max(s.n_bytes for s in samples) < 125 * MIB
    finally:
        for member in reversed(bench.scale.family(process.pid)):
            os.kill(member, 9)
        process.communicate()
    assert bench.scale.rss_anon(process.pid) is None
    assert bench.scale.sample(process.pid).n_bytes == 0


def test_a_stage_lasts_from_the_end_of_the_one_before(bench: Bench, tmp_path: Path) -> None:
    scale = bench.scale
    seconds = {"embedding": 3.0, "clustering": 5.0, "trust": 0.5, "ledger": 1.0, "evaluation": 9.0}
    ends = {"embedding_manifest": 104.0, "manifest": 110.0}
    for name, end in ends.items():
        (tmp_path / "stage1").mkdir(exist_ok=True)
        path = tmp_path / f"stage1/{name}.json"
        path.write_text("{}")
        os.utime(path, (end, end))
    (tmp_path / "run.json").write_text(json.dumps({"seconds": seconds}))
    found = scale.phases(tmp_path, 100.0, 111.0)
    assert found == [
        ("embedding", 100.0, 104.0, 3.0),
        ("clustering", 104.0, 110.0, 5.0),
        ("results", 110.0, 111.0, None),
    ]
    samples = [scale.Sample(100 + i, (i + 1) * MIB, 1, 1.5 * i) for i in range(9)]
    assert scale.measured(found[1], samples) == {
        "stage": "clustering",
        "seconds": 6.0,
        "cpu_seconds": 6.0,
        "computing_seconds": 5.0,
        "peak_rss_anon_mib": 9.0,
    }
    assert scale.measured(found[2], samples)["peak_rss_anon_mib"] is None


# --- Runs -----------------------------------------------------------------------------------------


def make_job(bench: Bench, folder: Path, **changes: Any) -> Any:
    planting = bench.data.Planting(20, width=8)
    fields = {"folder": folder, "output": folder / "out", "n_clusters": 5, "engine": "local"}
    return bench.scale.Job(planting, **(fields | {"workers": None} | changes))


def test_the_program_knows_the_flags(bench: Bench, tmp_path: Path) -> None:
    command = make_job(bench, tmp_path).command("--load_saved")
    assert command[1].endswith("main.py")
    config = parse_arguments(command[2:])
    assert config.evaluation.methods == ()
    assert config.data.limits()["train"] == NO_LIMIT
    assert config.curation.target_size_ratio == bench.scale.KEPT_SHARE
    assert config.execution.load_saved
    ray = make_job(bench, tmp_path, engine="ray", workers=4).command()
    assert ray[-4:] == ["--engine", "ray", "--workers", "4"]


def test_faults_caught_beside_clip_score(bench: Bench, tmp_path: Path) -> None:
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 2, 3, 1], dtype=np.int8)
    job = make_job(bench, tmp_path)
    for name in ("truth", "out/stage3", "out/stage1"):
        (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / "truth/00000.npy", truth)
    rows = [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]  # the last one is held out
    dropped = {4, 5, 7}
    pd.DataFrame(
        {
            "key": [f"00000/{row:010d}.jpg" for row in rows],
            "split": ["test" if row == 9 else "train" for row in rows],
            "status": ["read"] * 10,
            "decision": ["dropped" if row in dropped else "kept" for row in rows],
        }
    ).to_parquet(tmp_path / "out/stage3/ledger.parquet")
    np.save(tmp_path / "out/stage1/clip_scores.npy", [5, 5, 5, 1, 2, 3, 9, 5, 5.0])
    found = bench.scale.caught(job)
    assert found["n_train"] == 9
    assert found["n_dropped"] == 3
    assert found["wrong_held_out"] == 1.0
    counts = {k: tuple(v.values()) for k, v in found["kinds"].items()}
    assert counts == {  # in the data, dropped, dropped by CLIP score, which are rows 3, 4 and 5
        "good": (4, 0, 1),
        "wrong caption": (3, 2, 2),
        "near copy": (1, 1, 0),
        "boilerplate": (1, 0, 0),
    }


def test_what_is_written_again_after_a_kill_is_seen(bench: Bench, tmp_path: Path) -> None:
    for name in ("stage1/manifest.json", "stage1/shards/0/manifest.json", "stage1/other.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    before = bench.scale.manifests(tmp_path)
    assert set(before) == {"stage1/manifest.json", "stage1/shards/0/manifest.json"}
    os.utime(tmp_path / "stage1/manifest.json", (1, 1))
    after = bench.scale.manifests(tmp_path)
    assert [name for name in before if after[name] != before[name]] == ["stage1/manifest.json"]
    stages = [{"stage": "a", "seconds": 3.0}, {"stage": "b", "seconds": 5.0}]
    running = [bench.scale.running_at(moment, stages) for moment in (0.0, 2.9, 3.1, 9.0)]
    assert running == ["a", "a", "b", "b"]


PROGRAM = """
import os, sys, time
out, again = sys.argv[1], "--load_saved" in sys.argv
os.makedirs(out + "/stage1", exist_ok=True)
os.makedirs(out + "/stage3", exist_ok=True)
if not again:
    open(out + "/stage1/manifest.json", "w").write("{}")
    time.sleep(60)
if REPEATS:
    os.utime(out + "/stage1/manifest.json", (1, 1))
open(out + "/stage3/curated_indices.npy", "w").write("the same")
"""


@pytest.mark.parametrize("repeats", [False, True])
def test_a_killed_run_is_started_again(
    bench: Bench, tmp_path: Path, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(job: Any, *more: str) -> list[str]:
        program = PROGRAM.replace("REPEATS", str(repeats))
        return [sys.executable, "-c", program, str(job.output), *more]

    monkeypatch.setattr(bench.scale.Job, "command", command)
    job = make_job(bench, tmp_path)
    (job.output / "stage3").mkdir(parents=True)
    (job.output / "stage3/curated_indices.npy").write_text("the same")
    undisturbed = {"total_seconds": 3.0, "stages": [{"stage": "a", "seconds": 3.0}]}
    found = bench.scale.kill_and_go_on(job, undisturbed, np.random.default_rng(4))
    assert 0.06 <= found["killed_after_seconds"] <= 2.94
    assert found["manifests_before"] == 1  # it was killed, not waited for
    assert found["second_start_seconds"] < 30
    assert found["written_again"] == (["stage1/manifest.json"] if repeats else [])
    assert found["same_curated_set"]
    assert found["was_running"] == "a"


# --- What is reckoned -----------------------------------------------------------------------------


def make_run(n: int, engine: str = "local", workers: int | None = None) -> dict[str, Any]:
    """Linear clustering, quadratic curation, 500 MiB and a kibibyte a pair."""
    stages = [("embedding", n / 1000), ("clustering", n / 500), ("curation", (n / 10_000) ** 2)]
    rows = [
        {
            **{"stage": name, "seconds": s, "cpu_seconds": 2 * s},
            **{"computing_seconds": s, "peak_rss_anon_mib": 100.0},
        }
        for name, s in [*stages, ("results", 0.25)]
    ]
    kinds = {"good": [9 * n // 10, n // 10], "wrong caption": [n // 10, n // 10 - 1]}
    return {
        **{"n": n, "engine": engine, "workers": workers, "width": 512, "n_clusters": 1000},
        "total_seconds": sum(row["seconds"] for row in rows),
        "peak_rss_anon_mib": 500 + n / 1024,
        "stages": rows,
        **{"input_bytes": 2000 * n, "output_bytes": 10_000 * n},
        "caught": {
            **{"n_train": n, "n_dropped": n // 5, "wrong_held_out": 0.1},
            "kinds": {
                kind: {"in_data": total, "dropped": dropped, "dropped_by_clip_score": dropped}
                for kind, (total, dropped) in kinds.items()
            },
        },
    }


def make_results(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "python benchmarks/scale.py --work_dir WORK",
        "machine": {"cpu_cores": 2, "memory_gib": 24.0},
        "runs": [*runs],
    }


def test_costs_and_exponents_are_those_put_in(bench: Bench) -> None:
    report = bench.report
    assert report.exponent(3.0, 30.0, 100, 1000) == pytest.approx(1.0)
    assert report.exponent(3.0, 3.0, 100, 1000) == pytest.approx(0.0)
    assert report.exponent(0.5, 30.0, 100, 1000) is None
    known = report.costs(make_results(make_run(1_000_000), make_run(100_000)))
    assert known.parallel_exponent == pytest.approx(1.0)
    assert known.bytes_a_pair == pytest.approx(1024)
    assert known.fixed_bytes == pytest.approx(500 * MIB)
    assert known.parallel_seconds == pytest.approx(3000)
    planned = report.plan(known, 10_000_000, cores=2)
    assert planned.core_hours == pytest.approx(2 * 30_000 / 3600)
    assert planned.hours[1] == pytest.approx(30_000 / 3600 + planned.serial_hours)
    assert planned.hours[16] == pytest.approx(30_000 / 16 / 3600 + planned.serial_hours)
    # 100.5 s at 100,000, 10,000.5 s at a million: two exponents, all but.
    assert planned.serial_hours == pytest.approx(1_000_000 / 3600, rel=0.02)
    assert planned.memory_bytes == pytest.approx(500 * MIB + 10_000_000 * 1024)
    assert planned.input_bytes == 2e10
    assert report.largest(known, 500 * MIB + 2**30) == 2**20
    for runs in ((), (make_run(10),), (make_run(10), make_run(20, "ray", 2))):
        with pytest.raises(ValueError, match="two sizes"):
            report.costs(make_results(*runs))


def test_the_page_and_the_plan_tell_what_was_measured(bench: Bench, tmp_path: Path) -> None:
    kill = {
        **{"killed_after_seconds": 40.0, "was_running": "trust", "second_start_seconds": 70.0},
        **{"repeated_seconds": 3.5, "manifests_before": 4, "written_again": []},
        "same_curated_set": True,
    }
    runs = [make_run(100_000), make_run(1_000_000) | {"kills": [kill]}, make_run(100_000, "ray", 2)]
    results = make_results(*runs)
    page = bench.report.render(results)
    assert "| clustering | 200 | 400 | 100 | 2,000 | 4,000 | 100 | 1.00 |" in page
    assert "| curation | 100 | 200 | 100 | 10,000 | 20,000 | 100 | 2.00 |" in page
    assert "| results | 0 | 0 | 100 | 0 | 0 | 100 | – |" in page
    assert "**Engine ray, 2 workers**" in page
    assert "| 1,000,000 | 1,000,000 | 80.0 % | 10.0 % |" in page
    assert "| 100.00 % | 100.00 % |" in page  # CLIP score and ours, of 100,000 less one
    assert "| 1,000,000 | 40 | trust | 70 | 3.5 | 0 of 4 | yes |" in page
    told = bench.report.plan_markdown(results)
    assert [line.split(" | ")[0] for line in told.splitlines()[2:5]] == [
        *("| 12,800,000", "| 128,000,000", "| 1,280,000,000"),
    ]
    assert "1,024 bytes of anonymous memory a pair" in told
    bench.report.draw(results, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_replaces_its_like(bench: Bench) -> None:
    rows = [make_run(100), make_run(1000), make_run(100, "ray", 2)]
    new = make_run(100, "ray", 2) | {"total_seconds": 1.0}
    found = bench.scale.put(rows, new)
    assert [(row["n"], row["engine"]) for row in found] == [
        *((100, "local"), (1000, "local"), (100, "ray")),
    ]
    assert found[-1] == new


def test_what_the_machine_is_names_nobody(bench: Bench) -> None:
    about = bench.scale.machine()
    assert about["cpu_cores"] >= 1
    assert about["memory_gib"] > 0
    assert os.uname().nodename not in json.dumps(about)
    assert asdict(bench.data.Planting(5))["n"] == 5


def test_the_document_has_its_sections_filled(bench: Bench) -> None:
    text = bench.scale.DOCUMENT.read_text(encoding="utf-8")
    sections = {"measured": "| a |\n", "plan": "some hours"}
    once = bench.report.filled(text, sections)
    assert "<!-- measured: begin -->\n| a |\n<!-- measured: end -->" in once
    assert "<!-- plan: begin -->\nsome hours\n<!-- plan: end -->" in once
    assert bench.report.filled(once, sections) == once
    assert once.count("## ") == text.count("## ")
    with pytest.raises(ValueError, match="there is no section other"):
        bench.report.filled(text, {"other": ""})
    assert "two sizes" in bench.scale.planned(make_results(make_run(10)))


def test_the_short_table_is_of_whole_stages(bench: Bench) -> None:
    run = make_run(100_000) | {"cpu_seconds": 600.0}
    told = bench.report.short_table([run])
    row = told.splitlines()[-1]
    assert row.startswith("| 100,000 | 100 s | 200 s | 0 s | 0 s | 0 s | 100 s | 6.7 min |")
    assert row.endswith("| 10.0 min | 0.6 GiB | 99.99 % | 99.99 % |")
