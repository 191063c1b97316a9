"""The README says what is true: its commands are those of CI, its flags those of the program."""

from __future__ import annotations

import re
from pathlib import Path

from cli import config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_what_ci_runs() -> None:
    run, test = re.findall(r"```bash\n(pip install .*)\n```", README)[:2]
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert test in ci
    assert f"{run} --debug" in ci


def test_every_flag_is_listed_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `--(\w+)` \| `([^`]*)` \|", README, re.MULTILINE))
    flat = config.parse_arguments([]).flat()
    assert listed.keys() == flat.keys()
    words = {False: "off", None: "none", (): "none"}
    for name, default in flat.items():
        shown = "all" if name == "methods" else str(words.get(default, default))
        assert listed[name] == shown


def test_links_and_files_exist() -> None:
    for link in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"`(\w+\.py)`", README):
        assert (ROOT / name).exists(), name


def test_every_module_is_described() -> None:
    described = set(re.findall(r"`(\w+\.py)`", README.split("## Code")[1]))
    assert described == {path.name for path in ROOT.glob("*.py")}
