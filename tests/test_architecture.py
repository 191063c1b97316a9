"""The arrows between modules, and what no module may do, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAGES = {"data", "embedding", "clustering", "curation", "baselines", "train_eval"}
# Stages map work over jobs and shards; which engine does it, they do not know.
SEAM = {"engine.base", "engine.shards", "engine.room"}
# What each room (a file in the root or a package) may import of the project; main.py may import
# anything. `room.module` allows one module of a room alone.
ARROWS: dict[str, set[str]] = {
    "artifacts": set(),
    "engine": {"artifacts"},
    "sources": {"artifacts"},
    "learner": {"artifacts", *SEAM},
    "encoders": {"artifacts", "sources.online", "sources.pixels"},
    "attribution": {"artifacts", "encoders.joint_map", *SEAM, "learner"},
    "data": {"artifacts", *SEAM, "sources"},
    "intake": {"artifacts", "data", "encoders", *SEAM, "sources"},
    "embedding": {"artifacts", "data", "encoders", "intake", *SEAM, "sources"},
    "clustering": {"artifacts", "embedding", *SEAM, "learner", "sources.captions"},
    "influence": {"artifacts", "attribution", "curation", "embedding", *SEAM, "learner"},
    "curation": {
        *("artifacts", "attribution.keep_curve", "attribution.results", "attribution.scores"),
        "learner",
    },
    "rivals": {"attribution", "curation", "encoders.joint_map", "learner"},
    "baselines": {"artifacts", "curation", "learner", "rivals"},
    "train_eval": {
        *("artifacts", "baselines", "embedding", *SEAM, "learner", "sources.captions"),
    },
    "exporting": {"artifacts", *SEAM, "sources"},
    "cli": {
        *("artifacts", "attribution", "encoders", "engine", "exporting", "intake", "learner"),
        *("rivals", "sources", *STAGES),
        "reporting.report.settings",
    },
    "reporting": {"artifacts", "attribution", "learner", "sources", *STAGES},
    "visualize": {"reporting"},
}
# No package may ask for these: they tell the story that packages are parts of.
STORIES = {"influence", "main", "visualize"}


def modules() -> list[str]:
    """Every module of the project, dotted, those of packages in packages included."""
    paths = [*ROOT.glob("*.py")]
    for package in ROOT.glob("*/__init__.py"):
        if package.parent.name != "tests":
            paths += package.parent.rglob("*.py")
    names = (path.relative_to(ROOT).with_suffix("").parts for path in paths)
    return sorted(".".join(parts).removesuffix(".__init__") for parts in names)


PRESENT = modules()
ROOMS = {name.partition(".")[0] for name in PRESENT}

PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NO_PICKLE = {"from joblib import cpu_count"}
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
WRITERS = {"artifacts.arrays", "artifacts.lock", "artifacts.store"}  # the lock is one file, its own
WRITING_METHODS = {"write_bytes", "write_text", "mkdir", "touch", "unlink", "rmdir", "rmtree"}


def tree(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(module: ast.Module) -> set[str]:
    """Every module that is imported anywhere, functions included, dotted."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the room: `from sources.paths import ...`"
            of_package = {f"{node.module}.{alias.name}" for alias in node.names} & set(PRESENT)
            names |= of_package or {node.module or ""}
    return names


def forbidden(room: str, module: ast.Module) -> set[str]:
    """What a module imports of the project beyond its room and the room's arrows."""
    allowed = {room, *ARROWS.get(room, ROOMS)}
    return {
        name
        for name in imported(module)
        if name.partition(".")[0] in ROOMS
        and name not in allowed
        and name.partition(".")[0] not in allowed
    }


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


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_room_has_its_place(room: str) -> None:
    assert room in {*ARROWS, "main"}, f"{room} is not in the design; add its arrows to ARROWS"


def test_no_room_is_empty() -> None:
    assert set(ARROWS) < ROOMS
    assert "reporting.figures.style" in PRESENT, "packages in packages are looked into"


@pytest.mark.parametrize("module", PRESENT)
def test_imports_follow_the_arrows(module: str) -> None:
    assert not forbidden(module.partition(".")[0], tree(module))


def test_a_forbidden_import_in_a_package_within_a_package_is_seen() -> None:
    parsed = tree("reporting.figures.style")
    assert not forbidden("reporting", parsed)
    for line in ("from cli.run import Run", "from cli import run", "import visualize"):
        inner = ast.parse(f"def f():\n    {line}\n")
        parsed.body += inner.body
        assert forbidden("reporting", parsed)
        parsed.body.pop()


def test_one_module_of_a_room_may_be_all_that_is_allowed() -> None:
    allowed = ast.parse(
        "from encoders.joint_map import fit_joint_map\nfrom encoders import joint_map"
    )
    assert not forbidden("attribution", allowed)
    assert forbidden("attribution", ast.parse("from encoders.base import Encoder"))
    assert forbidden("attribution", ast.parse("from encoders import base"))


def test_packages_do_not_import_stories() -> None:
    for module in PRESENT:
        if "." in module:
            assert not {name.partition(".")[0] for name in imported(tree(module))} & STORIES


def test_the_arrows_have_no_cycle() -> None:
    placed: set[str] = set()
    while placed != set(ARROWS):
        free = {
            room
            for room, needs in ARROWS.items()
            if room not in placed and {need.partition(".")[0] for need in needs} <= placed
        }
        assert free, f"a cycle among {sorted(set(ARROWS) - placed)}"
        placed |= free


@pytest.mark.parametrize("module", PRESENT)
def test_nothing_is_pickled(module: str) -> None:
    parsed = tree(module)
    kinds = (ast.Import, ast.ImportFrom)
    statements = {ast.unparse(node) for node in ast.walk(parsed) if isinstance(node, kinds)}
    others = imported(ast.parse("\n".join(sorted(statements - NO_PICKLE))))
    assert not {name.partition(".")[0] for name in others} & PICKLES
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


@pytest.mark.parametrize("module", sorted(set(PRESENT) - WRITERS))
def test_the_store_alone_writes(module: str) -> None:
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
        "    from learner.model import train\n"
        "    path.open('wb'); open(path, mode='a'); open(path); path.open(); open(path, 'rb')\n"
        "    torch.manual_seed(1); torch.Generator().manual_seed(1)\n"
    )
    assert imported(source) == {"pickle.whichmodule", "learner.model"}
    found = calls(source)
    assert [ast.unparse(c) for n, c in found if opened_for_writing(n, c)] == [
        "path.open('wb')",
        "open(path, mode='a')",
    ]
    assert {n for n, _ in found} & GLOBAL_SEEDING == {"torch.manual_seed"}
