"""The README and the pages beside it say what is true: of commands, flags, files and constants."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attribution import (
    agreement,
    cluster_scores,
    cross_fitting,
    fault_share,
    guard,
    joined_views,
    keep_curve,
    metagradient,
    relevance,
    reliability,
    topic_faults,
    trust,
)
from attribution.curvature import MAX_CURVATURE_PAIRS
from cli import config
from cli.config import GROUPS
from curation import SMALLEST_SHARE
from encoders.joint_map import N_FOLDS
from exporting.webdataset import MAX_BUCKETS, WEIGHT_TOLERANCE
from learner.stacked import ADAM_EPSILON
from reporting.estimate import EXPLAINS_LITTLE
from reporting.explain import ID_DIGITS
from reporting.words import method_label
from sources.base import SPLIT_NAMES
from sources.captions import MAX_CAPTION_CHARACTERS
from sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, SPLIT_COLUMNS
from sources.hub import N_LOOKED_AT
from sources.images import MIN_SIDE
from sources.splits import CARVED_SHARE
from tests.test_architecture import ARROWS

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
README, FLAGS = PAGES["README.md"], PAGES["docs/flags.md"]
METHOD, DATA, RESULTS = (PAGES[f"docs/{name}.md"] for name in ("method", "data", "results"))
FOREIGN_FLAGS = {"check", "help", "jaxtyping-packages"}  # of ruff, every program and pytest
FOREIGN_FLAGS |= {"x", "y", "neighbors", "text", "image"}  # of embedding-atlas
FOREIGN_FLAGS |= {"head", "port", "autoscaling-config", "address", "min-nodes"}  # of Ray
FOREIGN_FLAGS |= {"ntasks-per-node"}  # of SLURM
FRACTIONS = {0.8: "four fifths", 0.2: "a fifth", 0.1: "a tenth", 0.05: "twentieth", 0.5: "half"}


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


# --- The README -----------------------------------------------------------------------------------


def test_the_two_commands_are_what_ci_runs() -> None:
    run, test = re.findall(r"```bash\n(pip install .*)\n```", README)[:2]
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert test in ci
    assert f"{run} --debug" in ci


def test_the_readme_is_for_people_in_a_hurry() -> None:
    assert len(README.splitlines()) < 200
    assert {f"docs/{name}.md" for name in ("data", "flags", "method", "results")} <= {
        link.partition("#")[0] for link, _ in links("README.md")
    }


def test_the_owner_of_a_gpu_is_told_what_to_do() -> None:
    (told,) = (line for line in README.splitlines() if "CUDA GPU" in line)
    assert "`--device auto`" in told
    assert "(docs/scaling.md#a-gpu)" in told
    # What is said of PyPI's build is said of this version.
    assert "torch==2.13.0\n" in (ROOT / "requirements.txt").read_text()


def test_every_module_is_described() -> None:
    """Every file of the root and every package, packages in packages included."""
    described = set(re.findall(r"[\w/]+\.py\b|\b[a-z_/]+/(?=[\s`)])", section(README, "Code")))
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in ROOT.glob("*/__init__.py")
        if package.parent.name != "tests"
        for path in package.parent.rglob("__init__.py")
    }
    assert {path.name for path in ROOT.glob("*.py")} <= described
    assert packages <= described
    for name in described:
        assert (ROOT / name).exists(), name


def test_the_picture_shows_arrows_that_there_are() -> None:
    shown = re.findall(r"(\w+)\.py .*◄─ +([a-z_]+)/", section(README, "Code"))
    assert len(shown) >= 5
    for room, used in shown:
        assert used in ARROWS[room]


# --- Links, files and flags -----------------------------------------------------------------------


def links(name: str) -> Iterator[tuple[str, str]]:
    """Path from the root and heading of every link of a page into the project."""
    folder = (ROOT / name).parent
    for link in re.findall(r"\]\(((?!http)[^)\s]+)\)", prose(PAGES[name])):
        path, _, heading = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / name
        yield str(target.relative_to(ROOT)), heading


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_files_exist(name: str) -> None:
    found = list(links(name))
    assert found
    for path, heading in found:
        assert (ROOT / path).exists(), path
        assert not heading or heading in anchors(PAGES[path]), f"{path}#{heading}"
    for file in re.findall(r"`([\w./]+\.py)`", PAGES[name]):
        assert (ROOT / file).exists(), file
    for file in re.findall(r"\b(?:docs|benchmarks|tests)/[\w/]+\.\w+", PAGES[name]):
        assert (ROOT / file).exists(), file


def test_links_are_looked_at_as_a_reader_follows_them() -> None:
    assert ("docs/data.md", "the-ledger") in set(links("README.md"))
    assert ("README.md", "") in set(links("docs/data.md"))
    assert "my-data-is-" in anchors(README)
    assert "my-data-is" not in anchors(README)


@pytest.mark.parametrize("name", PAGES)
def test_flags_that_pages_name_exist(name: str) -> None:
    own = config.parse_arguments([]).flat().keys()
    named = set(re.findall(r"--(\w[\w-]*)", PAGES[name])) - own - FOREIGN_FLAGS
    benchmarks = {path.name: path.read_text() for path in ROOT.glob("benchmarks/*.py")}
    for command in re.findall(r"python benchmarks/([^`]*)", PAGES[name]):
        source = benchmarks[command.split()[0]]
        of_command = set(re.findall(r"--(\w+)", command))
        assert all(f'"--{flag}"' in source for flag in of_command), command
    everywhere = set(re.findall(r'"--(\w+)"', "".join(benchmarks.values())))
    assert named <= everywhere


def listed_flags() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `--(\w+)` \| `([^`]*)` \| (.*) \|$", FLAGS, re.MULTILINE)
    assert len(rows) == FLAGS.count("| `--")
    return {name: (default, meaning) for name, default, meaning in rows}


def test_every_flag_is_listed_with_its_default() -> None:
    listed, flat = listed_flags(), config.parse_arguments([]).flat()
    assert listed.keys() == flat.keys()
    words = {False: "off", None: "none", (): "none"}
    for name, default in flat.items():
        shown = "all but the controls" if name == "methods" else str(words.get(default, default))
        assert listed[name][0] == shown


@pytest.mark.parametrize(
    "setting", [f for part in GROUPS.values() for f in fields(part)], ids=lambda f: f.name
)
def test_every_flag_is_explained_as_by_the_program(setting: Field[Any]) -> None:
    meaning = listed_flags()[setting.name][1]
    text = setting.metadata["help"].replace("%%", "%")
    assert meaning.startswith(text), setting.name
    choices, named = setting.metadata["choices"], re.findall(r"`(\w+)`", meaning[len(text) :])
    if setting.name == "methods":  # a rival is added in one place; the page may follow
        assert set(named) <= set(choices)
    elif choices and isinstance(choices[0], str):
        assert named == list(choices)


def test_flags_stand_in_the_groups_of_the_program() -> None:
    titles = re.findall(r"^\*\*(.*)\*\*$", FLAGS, re.MULTILINE)
    assert [title.lower() for title in titles] == list(GROUPS)
    for title, part in zip(titles, GROUPS.values(), strict=True):
        rows = FLAGS.split(f"**{title}**")[1].split("\n**")[0]
        assert set(re.findall(r"^\| `--(\w+)`", rows, re.MULTILINE)) == {
            f.name for f in fields(part)
        }


# --- Constants ------------------------------------------------------------------------------------

STATES = metagradient.STATES_AT_ONCE
SAID = [
    (METHOD, f"holds {STATES} states of it"),
    (METHOD, f"one level up to {STATES} steps, two up to {STATES**2:,}, three up to {STATES**3:,}"),
    (METHOD, f"epsilon is {ADAM_EPSILON:.0e}".replace("e-0", "e-")),
    (METHOD, f"`--removal_folds` ({cluster_scores.InfluenceConfig().removal_folds})"),
    (METHOD, f"The damping comes from the training run: {cluster_scores.DAMPING_MULTIPLE:g} times"),
    (METHOD, f"over at most {MAX_CURVATURE_PAIRS:,} pairs"),
    (
        METHOD,
        f"at most {FRACTIONS[trust.MOST_TRUSTED]}; training pairs in {trust.JUDGING_FOLDS} fol",
    ),
    (METHOD, f"right with a probability of {trust.CERTAINTY}"),
    (METHOD, f"and {trust.FEWEST_TRUSTED} pairs at least"),
    (METHOD, f"but no more than {100 * agreement.MOST_TRUSTED:g} % of them"),
    (METHOD, f"in {agreement.REFINED_FOLDS} folds, none judging"),
    (METHOD, f"hardly ever behind {100 * fault_share.BEYOND:g} % of them, so"),
    (METHOD, f"how many are, over {1 - fault_share.BEYOND:.1f} ("),
    (METHOD, f"From {cross_fitting.FEWEST_ASKED} validation pairs on"),
    (METHOD, f"fewer than {2 * reliability.FEWEST_EACH} evaluated pairs"),
    (METHOD, f"the common scale of the two views is fitted to {joined_views.MOST_JOINED:,} pairs"),
    (METHOD, f"at {', '.join(f'{100 * s:g}' for s in keep_curve.SHARES[:-1])} and 100 % ask"),
    (METHOD, f"validation pairs, {({2: 'two'})[keep_curve.N_SEEDS]} seeds each"),
    (METHOD, f"Beside the share of {100 * keep_curve.CHECKED:g} % stand"),
    (METHOD, f"Fewer than {keep_curve.FEWEST_ASKED} trusted validation pairs have no say"),
    (METHOD, f"both are as small, but no less than {100 * keep_curve.SHARES[0]:g} %"),
    (METHOD, {4: "counting like four pairs of it"}[int(topic_faults.PRIOR_PAIRS)]),
    (RESULTS, f"With fewer than {keep_curve.FEWEST_ASKED} trusted validation pairs the curve"),
    (METHOD, {3: "A cubic is fitted"}[keep_curve.DEGREE]),
    (METHOD, f"at least {100 * guard.FEWEST_WRONG:g} % of the captions"),
    (METHOD, f"at least {FRACTIONS[guard.TELLS]} of the time"),
    (METHOD, f"not at all below {100 * guard.MISLEADS:g} %"),
    (METHOD, f"explains less than {FRACTIONS[EXPLAINS_LITTLE]} of how"),
    (METHOD, f"({relevance.N_FOLDS} folds over images)"),
    (METHOD, f"2 (AUC - {relevance.CLEAR:g} standard errors) - 1"),
    (METHOD, f"zero below an AUC of {relevance.NARROW_AUC}"),
    (METHOD, f"the best {FRACTIONS[SMALLEST_SHARE]} of every cluster"),
    (DATA, f"longer than {MAX_CAPTION_CHARACTERS:,} characters"),
    (DATA, f"at most {FRACTIONS[CARVED_SHARE]} of the images each"),
    (DATA, f"hexdigest()[:{ID_DIGITS}]"),
    (DATA, f"map fitted in {N_FOLDS} folds"),
    (DATA, f"at most {MAX_BUCKETS}, like weights together (within {100 * WEIGHT_TOLERANCE:g} %"),
    (DATA, {2: "with a side of one pixel"}[MIN_SIDE]),
    (DATA, f"Images: {', '.join(f'`{name}`' for name in IMAGE_COLUMNS)};"),
    (DATA, f"Captions: {', '.join(f'`{name}`' for name in CAPTION_COLUMNS)}."),
    (DATA, f"`{SPLIT_COLUMNS[0]}` ({', '.join(f'`{name}`' for name in SPLIT_COLUMNS[1:])})"),
    *((DATA, ", ".join(f"`{name}`" for name in names)) for names in SPLIT_NAMES.values()),
    (DATA, f"first {N_LOOKED_AT:,} rows tell which splits"),
]


@pytest.mark.parametrize(("page", "words"), SAID, ids=lambda value: value[:40])
def test_constants_are_those_of_the_code(page: str, words: str) -> None:
    assert words in page


# --- Numbers --------------------------------------------------------------------------------------


def spreads(text: str) -> set[str]:
    return {found.lstrip("+") for found in re.findall(r"[-+]?\d+\.\d+ ± \d+\.\d+", text)}


def tables(page: str) -> str:
    return "\n".join(line for line in page.splitlines() if line.startswith("|"))


@pytest.mark.parametrize(
    ("text", "files", "at_least"),
    [
        (section(README, "What it reaches"), ("regimes.md", "protocol.md", "end_to_end.md"), 20),
        (tables(section(RESULTS, "Who wins where")), ("regimes.md",), 20),
        (tables(section(RESULTS, "Noisy pools and narrow targets")), ("validation.md",), 20),
        (section(RESULTS, "Seeds that were set apart"), ("protocol.md",), 9),
        (section(RESULTS, "Groups of which one was thinned"), ("group_gaps.md",), 30),
        (section(RESULTS, "Towers that are trained"), ("end_to_end.md",), 10),
    ],
    ids=["README", "regimes", "validation", "protocol", "groups", "towers"],
)
def test_recalls_are_those_of_the_committed_results(
    text: str, files: tuple[str, ...], at_least: int
) -> None:
    folder = ROOT / "benchmarks/results"
    committed = "\n".join((folder / file).read_text(encoding="utf-8") for file in files)
    assert len(spreads(text)) >= at_least
    assert spreads(text) <= spreads(committed)


def test_what_the_weights_of_faulty_pairs_bring_is_that_of_the_committed_rows() -> None:
    rows = pd.read_csv(ROOT / "benchmarks/results/faulty_weight.csv")
    recalls = rows.pivot(index=["keep", "regime", "seed"], columns="method", values="mean_recall")
    gains = (recalls["influencespace"] - recalls["faults_count"]).groupby(["keep", "regime"])
    regimes = ("clean", "wrong_20", "wrong_40", "wrong_60", "mixture", "boilerplate_20")
    for keep in (0.8, 0.6, 0.4):
        found = [(gains.mean()[keep, name], gains.sem()[keep, name]) for name in regimes]
        cells = [f"{100 * keep:.0f} % kept"]
        for mean, error in found:
            told = f"{mean:+.2f}" if round(mean, 2) else "0.00"
            cells.append(f"{told} ± {error:.2f}" if mean or error else "0")
        assert f"| {' | '.join(cells)} |" in section(RESULTS, "Pairs that look faulty")


def test_every_method_stands_with_its_recall_in_both_data_sets() -> None:
    rows = {
        cells[0].strip("* "): [cell.strip() for cell in cells[1:]]
        for line in tables(section(RESULTS, "Two data sets, every method")).splitlines()
        for cells in [line.strip("|").split("|")]
    }
    n_cells = 0
    for place, name in ((0, "flickr8k"), (2, "synthetic")):
        path = ROOT / f"benchmarks/results/{name}_methods.csv"
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            column = place + (row["comparison"] == "same_steps")
            mean, std = float(row["mean_recall_mean"]), float(row["mean_recall_std"])
            assert rows[method_label(row["method"])][column] == f"{mean:.2f} ± {std:.2f}"
            n_cells += 1
    told = [cell for cells in list(rows.values())[2:] for cell in cells if cell != "–"]
    assert n_cells == len(told) > 50
