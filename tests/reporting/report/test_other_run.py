"""Another run's folder: what is taken of it, and every way in which it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from artifacts.provenance import CURATION, EVALUATION, LEDGER, Provenance
from artifacts.settings import InputError
from artifacts.store import Store
from cli import config
from reporting.report.changes import IRRELEVANT
from reporting.report.other_run import check_comparable, read_other


@dataclass(frozen=True)
class Nothing:
    """A stage's result whose content does not matter."""


@dataclass(frozen=True)
class OldLedger:
    ledger: pd.DataFrame


def pair_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def pair(
    name: str,
    decision: str,
    reason: str = "",
    value: float | None = None,
    weight: float | None = None,
    cluster: int | None = None,
    split: str = "train",
) -> dict[str, Any]:
    """A row of a ledger."""
    return {
        "id": pair_id(name) if name else "",
        "split": split,
        "decision": decision,
        "decision_reason": reason,
        "value": value,
        "weight": weight,
        "cluster": cluster,
    }


def ledger_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"value": float, "weight": float, "cluster": "Int64"})


ROWS = [pair("a", "kept", value=1.0), pair("b", "dropped", value=-1.0)]
METRICS = {"same_epochs": {"random": {"mean_recall": {"mean": 30.0, "std": 0.4}}}}


def run_of(**settings: Any) -> dict[str, Any]:
    """What run.json says."""
    return {
        "dataset": "folder",
        "encoder": "embedded",
        "settings": {"output_dir": "there", "n_seeds": 3, "target_size_ratio": 0.8} | settings,
    }


def save_run(
    root: Path,
    ledger: pd.DataFrame,
    run: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] = METRICS,
) -> str:
    """The folder of a finished run; its name."""
    store, ratio = Store.open(str(root)), {"target_size_ratio": 0.8}
    curation = Provenance(1, ratio, {})
    fingerprint = curation.fingerprint(CURATION)
    store.save(CURATION, curation, Nothing(), 0.0)
    store.save(LEDGER, Provenance(1, {}, {"curation": fingerprint}), OldLedger(ledger), 0.0)
    evaluation = Provenance(1, {"n_seeds": 3}, {"influencespace": fingerprint})
    store.save(EVALUATION, evaluation, Nothing(), 0.0)
    store.write_json("run.json", run_of() if run is None else run)
    store.write_json("evaluation/method_metrics.json", metrics)
    return str(root)


@pytest.fixture
def other(tmp_path: Path) -> str:
    return save_run(tmp_path / "other", ledger_of(ROWS))


def refused(folder: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        check_comparable(folder, "somewhere/else")
    assert str(error.value).startswith(f"--compare {folder} ")
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)  # what to do about it


def test_a_finished_run_is_read(other: str) -> None:
    check_comparable(other, "somewhere/else")
    check_comparable(None, other)
    found = read_other(other)
    assert found.run["encoder"] == "embedded"
    assert found.metrics == METRICS
    assert found.ledger["value"].tolist() == [1.0, -1.0]


def test_the_folder_that_is_written_is_refused(other: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(other)
    for same in (other, f"{other}/../other/", str(tmp_path / "link")):
        with pytest.raises(InputError, match=r"is the --output_dir of this run.* another --output"):
            check_comparable(other, same)
    new = str(tmp_path / "new")  # neither is there yet
    with pytest.raises(InputError, match="is the --output_dir"):
        check_comparable(new, f"{new}/")


def test_what_is_no_folder_of_a_run(tmp_path: Path) -> None:
    refused(str(tmp_path / "nowhere"), "does not exist; give the --output_dir of a run that has fi")
    (tmp_path / "file").write_text("")
    refused(str(tmp_path / "file"), "is a file")
    refused(str(tmp_path), r"holds no finished run: no run\.json")


@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "stage3/ledger.parquet", "evaluation/method_metrics.json"),
        *("stage3/manifest.json", "stage3/ledger_manifest.json", "evaluation/manifest.json"),
    ],
)
def test_a_run_that_lacks_a_file_has_not_finished(other: str, name: str) -> None:
    (Path(other) / name).unlink()
    refused(other, f"holds no finished run: no {name}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", "{", "has a damaged run.json; run it again or leave --compare out"),
        ("run.json", "\x00", "has a damaged run.json"),
        ("run.json", "[]", "has a damaged run.json"),
        ("run.json", '{"settings": 3}', "has a damaged run.json"),
        ("evaluation/method_metrics.json", "{", "damaged method_metrics.json"),
        ("evaluation/method_metrics.json", "[]", "without mean recalls"),
        ("evaluation/method_metrics.json", '{"a": {"b": {}}}', "without mean recalls"),
        (
            "evaluation/method_metrics.json",
            '{"a": {"b": {"mean_recall": {"mean": NaN, "std": null}}}}',
            "without mean recalls",
        ),
        (
            "evaluation/method_metrics.json",
            '{"a": {"b": {"mean_recall": {"mean": "1", "std": null}}}}',
            "without mean recalls",
        ),
        ("stage3/ledger.parquet", "PAR1", "has a damaged ledger.parquet"),
        ("stage3/ledger_manifest.json", "{}", "has a damaged ledger_manifest.json"),
    ],
)
def test_damaged_files_are_told(other: str, name: str, content: str, words: str) -> None:
    (Path(other) / name).write_text(content)
    refused(other, words)


@pytest.mark.parametrize("change", [{"inputs": []}, {"files": {"ledger.parquet": 3}}, {"files": 1}])
def test_a_manifest_of_another_shape_is_told(other: str, change: dict[str, Any]) -> None:
    path = Path(other) / "stage3/ledger_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(other, r"is damaged \(\w+Error: ")


def test_a_ledger_that_is_no_table_is_told(other: str) -> None:
    path = Path(other) / "stage3/ledger_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["ledger.parquet"]["sha256"] = hashlib.sha256(b"PAR1").hexdigest()
    path.write_text(json.dumps(manifest))
    (Path(other) / "stage3/ledger.parquet").write_bytes(b"PAR1")
    refused(other, r"is damaged \(Arrow")


def test_files_of_several_runs_are_told(other: str) -> None:
    store, run = Store(Path(other)), run_of(target_size_ratio=0.5)
    store.write_json("run.json", run)
    refused(other, "run.json and the saved stages differ in --target_size_ratio")
    run["settings"]["target_size_ratio"] = "auto"  # saved is what was found
    store.write_json("run.json", run)
    assert read_other(other).run["settings"]["target_size_ratio"] == "auto"
    store.write_json("run.json", run_of())
    store.save(CURATION, Provenance(2, {"target_size_ratio": 0.8}, {}), Nothing(), 0.0)
    refused(other, "stage 3, ledger and evaluation are of different runs")


def test_a_ledger_of_an_earlier_program_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    old = ledger_of(ROWS).drop(columns=["value", "weight", "cluster"])
    found = read_other(save_run(tmp_path / "old", old)).ledger
    assert found["decision"].tolist() == ["kept", "dropped"]
    assert found[["value", "weight", "cluster"]].isna().all(axis=None)
    older = save_run(tmp_path / "older", old.drop(columns="id"))
    refused(older, "has a ledger without id, of an earlier program; run it again")


def test_settings_that_do_not_matter_are_settings() -> None:
    flat = config.parse_arguments([]).flat()
    assert flat.keys() >= IRRELEVANT
    for part in config.GROUPS.values():
        for f in fields(part):
            # What a file of overrides says is in no setting; that there was one is worth a line.
            assert f.metadata["affects_result"] or f.name in IRRELEVANT | {"overrides"}
