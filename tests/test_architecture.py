"""The arrows between modules, and what no module may do, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each module may import of the project; main.py may import anything.
ARROWS: dict[str, set[str]] = {
    "settings": set(),
    "synthetic": set(),
    "visualize": set(),
    "artifacts": {"settings"},
    "cells": set(),
    "agreement": {"model"},
    "clustering": {"cells", "settings"},
    "curation": {"scores", "settings"},
    "model": set(),
    "ledger": {"settings", "trust"},
    "export_folder": {"artifacts", "data", "settings"},
    "export_images": {"data", "settings"},
    "export_shards": {"export_folder", "export_images", "settings"},
    "export_webdataset": {"export_folder", "export_images", "export_shards"},
    "export_tables": {"export_folder", "export_images", "export_shards"},
    "export": {
        *("artifacts", "data", "export_folder", "export_shards", "export_tables"),
        *("export_webdataset", "settings"),
    },
    "data": {"settings"},
    "candidates": {"data"},
    "files": {"data"},
    "combined": {"candidates", "data", "settings"},
    "folders": {"candidates", "data", "files", "settings"},
    "hub": {"candidates", "data", "files", "settings"},
    "shards": {"candidates", "data", "files", "settings"},
    "parquet_files": {"candidates", "data", "files", "settings"},
    "precomputed": {"candidates", "combined", "data", "files", "settings"},
    "sources": {
        *("candidates", "combined", "data", "folders", "hub", "parquet_files", "precomputed"),
        *("settings", "shards", "synthetic"),
    },
    "encoders": {"data", "settings"},
    "joint": {"settings"},
    "embedding": {"data", "encoders", "joint", "settings"},
    "training": {"model", "settings"},
    "metagradient": {"model", "training"},
    "curvature": {"model"},
    "pair_influence": {"curvature", "model"},
    "retraining": {"model", "training"},
    "leave_out": {"curvature", "model"},
    "removal": {"model"},
    "cross_fitting": {"curvature", "model", "pair_influence", "retraining", "training"},
    "pooling": set(),
    "scores": set(),
    "fault_share": set(),
    "relevance": {"scores"},
    "guard": {"fault_share", "scores"},
    "trust": {"agreement", "cells", "fault_share", "joint", "relevance", "settings"},
    "refined_agreement": {"agreement", "joint", "model"},
    "cell_influence": {
        *("agreement", "cross_fitting", "guard", "model", "pooling", "refined_agreement", "scores"),
        *("settings", "training", "trust"),
    },
    "influence": {
        *("curvature", "leave_out", "metagradient", "model", "pair_influence", "removal"),
        *("retraining", "settings", "training"),
    },
    "influence_validation": {
        *("curvature", "influence", "model", "pair_influence", "retraining", "settings"),
        "training",
    },
    "baselines": {
        *("agreement", "curation", "curvature", "model", "pair_influence", "scores", "settings"),
    },
    "train_eval": {"model", "settings", "training"},
    "summary": {"visualize"},
    "findings": {"summary", "visualize"},
    "report": {"findings", "summary", "visualize"},
    "config": {
        *("cell_influence", "clustering", "curation", "data", "encoders", "export", "influence"),
        *("influence_validation", "settings", "train_eval", "training", "trust"),
    },
}
# The wiring: may import whatever stands below it.
ARROWS["stages"] = {*ARROWS} - {
    *("findings", "report", "summary", "visualize"),
    *("settings", "synthetic"),
}
ARROWS["results"] = {*ARROWS}
ARROWS["dry_run"] = {*ARROWS} - {"results"}
PROJECT = {*ARROWS, "main"}
PRESENT = sorted(path.stem for path in ROOT.glob("*.py"))

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
GLOBAL_SEEDING = {
    "np.random.seed",
    "np.random.set_state",
    "numpy.random.seed",
    "random.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.seed",
    "transformers.set_seed",
}
# `.save` on an in-memory buffer is no writing; these always touch the disk.
WRITING_FUNCTIONS = {
    "np.save",
    "np.savetxt",
    "np.savez",
    "np.savez_compressed",
    "os.makedirs",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.replace",
    "os.unlink",
    "safetensors.torch.save_file",
    "save_file",
    "torch.save",
}
WRITING_METHODS = {"write_bytes", "write_text", "mkdir", "touch", "unlink", "rmdir", "rmtree"}


def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))


def imported(module: ast.Module) -> set[str]:
    """Every module that is imported anywhere, functions included, by its first name."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the project is flat; relative imports have no meaning"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def calls(module: ast.Module) -> list[tuple[str, ast.Call]]:
    """Every call with the dotted text of what is called."""
    return [
        (ast.unparse(node.func), node) for node in ast.walk(module) if isinstance(node, ast.Call)
    ]


def keywords(call: ast.Call) -> dict[str, str]:
    return {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg is not None}


def opened_for_writing(name: str, call: ast.Call) -> bool:
    """Whether the call is `open(path, mode)` or `path.open(mode)` with a mode that writes."""
    if name != "open" and not name.endswith(".open"):
        return False
    position = 1 if name in ("open", "io.open", "gzip.open") else 0
    mode = keywords(call).get("mode")
    if mode is None and len(call.args) > position:
        mode = ast.unparse(call.args[position])
    return mode is not None and mode.startswith(("'", '"')) and bool(set("wax+") & set(mode))


def writes_a_path(name: str) -> bool:
    """Whether a method that writes is called, other than on the artifact store."""
    receiver, _, method = name.rpartition(".")
    return method in WRITING_METHODS and receiver.rpartition(".")[2] != "store"


@pytest.mark.parametrize("module", PRESENT)
def test_every_module_has_its_place(module: str) -> None:
    assert module in PROJECT, f"{module}.py is not in the design; add its arrows to ARROWS"


@pytest.mark.parametrize("module", sorted(ARROWS))
def test_imports_follow_the_arrows(module: str) -> None:
    if not (ROOT / f"{module}.py").exists():
        pytest.skip(f"there is no {module}.py")
    assert imported(tree(module)) & PROJECT <= ARROWS[module]


def test_the_arrows_have_no_cycle() -> None:
    placed: set[str] = set()
    while placed != set(ARROWS):
        free = {m for m, needs in ARROWS.items() if m not in placed and needs <= placed}
        assert free, f"a cycle among {sorted(set(ARROWS) - placed)}"
        placed |= free


@pytest.mark.parametrize("module", PRESENT)
def test_nothing_is_pickled(module: str) -> None:
    parsed = tree(module)
    assert not imported(parsed) & PICKLES
    for name, call in calls(parsed):
        given = keywords(call)
        assert given.get("allow_pickle", "False") == "False", ast.unparse(call)
        assert not name.endswith(("read_pickle", "to_pickle")), ast.unparse(call)
        assert name != "torch.load" or given.get("weights_only") == "True", ast.unparse(call)


@pytest.mark.parametrize("module", PRESENT)
def test_no_remote_code_is_trusted(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False"
        if isinstance(node, ast.Dict):  # options that are passed on with **
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                    assert ast.unparse(value) == "False"


@pytest.mark.parametrize("module", PRESENT)
def test_no_global_seeding(module: str) -> None:
    assert not {name for name, _ in calls(tree(module))} & GLOBAL_SEEDING


@pytest.mark.parametrize("module", sorted(set(PRESENT) - {"artifacts"}))
def test_artifacts_alone_writes(module: str) -> None:
    writers = [
        ast.unparse(call)
        for name, call in calls(tree(module))
        if name in WRITING_FUNCTIONS or writes_a_path(name) or opened_for_writing(name, call)
    ]
    assert not writers


def test_the_checks_see_what_they_look_for() -> None:
    source = ast.parse(
        "def f(path):\n"
        "    import pickle.whichmodule\n"
        "    from model import train\n"
        "    path.open('wb'); open(path, mode='a'); open(path); path.open(); open(path, 'rb')\n"
        "    torch.manual_seed(1); torch.Generator().manual_seed(1)\n"
    )
    assert imported(source) == {"pickle", "model"}
    found = calls(source)
    assert [ast.unparse(c) for n, c in found if opened_for_writing(n, c)] == [
        "path.open('wb')",
        "open(path, mode='a')",
    ]
    assert {n for n, _ in found} & GLOBAL_SEEDING == {"torch.manual_seed"}
