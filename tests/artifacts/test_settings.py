"""Settings: every rule with its message, tuples, and what a fingerprint leaves out."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import pytest

from artifacts.settings import InputError, Settings, add_flags, from_flags, setting


@dataclass(frozen=True)
class Example(Settings):
    kind: str = setting("a", "one of two", choices=("a", "b"))
    kinds: tuple[str, ...] = setting(("a",), "some of two", choices=("a", "b"))
    closed: int = setting(3, "from 1 to 5", at_least=1, at_most=5)
    opened: float = setting(0.5, "between 0 and 1, ends excluded", above=0, below=1)
    shares: tuple[float, ...] = setting(
        (0.5, 0.5), "each from 0 to 1", at_least=0, at_most=1, type=float
    )
    optional: float | None = setting(None, "above 0 if given", above=0, type=float)
    flag: bool = setting(False, "a switch")
    n_workers: int = setting(2, "speed only", at_least=1, affects_result=False)
    most: int | str = setting(9, "a number or all", at_least=2, or_all=True)
    ratio: float | str = setting(0.8, "a number or auto", above=0, at_most=1, or_auto=True)
    size: int | str = setting("auto", "whole or auto", at_least=1, or_auto=True, type=int)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "c"}, "--kind must be one of a, b; got 'c'"),
        ({"kinds": ("a", "c")}, "--kinds must be one of a, b; got 'c'"),
        ({"closed": 0}, "--closed must be >= 1; got 0"),
        ({"closed": 6}, "--closed must be <= 5; got 6"),
        ({"opened": 0.0}, "--opened must be > 0; got 0"),
        ({"opened": 1.0}, "--opened must be < 1; got 1"),
        ({"shares": (0.5, 1.5)}, "--shares must be <= 1; got 1.5"),
        ({"shares": (-0.25, 1.0)}, "--shares must be >= 0; got -0.25"),
        ({"optional": -1.0}, "--optional must be > 0; got -1"),
        ({"opened": math.nan}, "--opened must be a finite number; got nan"),
        ({"closed": math.inf}, "--closed must be a finite number; got inf"),
        ({"most": 1}, "--most must be >= 2; got 1"),
        ({"most": "any"}, "--most must be a whole number or the word all; got 'any'"),
        ({"ratio": 1.5}, "--ratio must be <= 1; got 1.5"),
        ({"ratio": "fast"}, "--ratio must be a number or the word auto; got 'fast'"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Example(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "b", "kinds": ("a", "b"), "closed": 1, "opened": 1e-9},
        {"closed": 5, "opened": 1 - 1e-9, "shares": (0, 1)},
        {"optional": None, "flag": True, "kinds": (), "shares": ()},
        {"optional": 0.1},
    ],
)
def test_values_at_the_bounds_are_taken(values: dict[str, Any]) -> None:
    example = Example(**values)
    assert {name: getattr(example, name) for name in values} == values


def test_replacing_a_field_checks_it_too() -> None:
    with pytest.raises(InputError, match="--closed must be >= 1; got 0"):
        dataclasses.replace(Example(), closed=0)


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match="must be immutable; use a tuple"):
        setting([1, 2], "a list")


def test_the_fingerprint_leaves_out_speed_settings_only() -> None:
    settings = Example(closed=4, n_workers=9).fingerprint_settings()
    assert settings == {
        "kind": "a",
        "kinds": ("a",),
        "closed": 4,
        "opened": 0.5,
        "shares": (0.5, 0.5),
        "optional": None,
        "flag": False,
        "most": 9,
        "ratio": 0.8,
        "size": "auto",
    }


@dataclass(frozen=True)
class Grown(Example):
    newer: float | None = setting(None, "was not there before", type=float, added_later=True)


def test_a_setting_added_later_changes_the_fingerprint_where_it_is_given() -> None:
    before = Example().fingerprint_settings()
    assert Grown().fingerprint_settings() == before
    assert Grown(newer=0.5).fingerprint_settings() == {**before, "newer": 0.5}
    assert Grown(newer=0.5).left_out_defaults() == {"newer": None}
    assert Example().left_out_defaults() == {}


# --- Flags ------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="example", argument_default=argparse.SUPPRESS, exit_on_error=False
    )
    add_flags(made.add_argument_group("example"), Example)
    return made


def parsed(*arguments: str) -> Example:
    return from_flags(Example, vars(parser().parse_args(arguments)))


def test_without_flags_everything_has_its_default() -> None:
    assert vars(parser().parse_args([])) == {}
    assert parsed() == Example()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--kind b", {"kind": "b"}),
        ("--kinds b a b", {"kinds": ("b", "a")}),  # said twice is said once
        ("--closed 2 --opened 0.25", {"closed": 2, "opened": 0.25}),
        ("--shares 0.5 1", {"shares": (0.5, 1.0)}),
        ("--optional 2", {"optional": 2.0}),
        ("--flag --n_workers 7", {"flag": True, "n_workers": 7}),
    ],
)
def test_flags_are_made_from_the_fields(arguments: str, expected: dict[str, Any]) -> None:
    example = parsed(*arguments.split())
    assert example == Example(**expected)
    for name, value in expected.items():
        assert type(getattr(example, name)) is type(value)


@pytest.mark.parametrize("arguments", ["--closed 2.5", "--opened x", "--kinds"])
def test_flags_of_the_wrong_type_are_refused_by_the_parser(arguments: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=arguments.split()[0]):
        parser().parse_args(arguments.split())


def test_flags_are_checked_by_the_settings() -> None:
    with pytest.raises(InputError, match="--kinds must be one of a, b; got 'c'"):
        parsed("--kinds", "c")


def test_values_of_other_settings_are_left_alone() -> None:
    assert from_flags(Example, {"closed": 4, "elsewhere": 1}) == Example(closed=4)


def test_help_names_choices_and_defaults() -> None:
    text = " ".join(parser().format_help().split())
    for part in (
        "--kind NAME one of two; one of a, b (default: a)",
        "--closed N from 1 to 5 (default: 3)",
        "--opened X between 0 and 1, ends excluded (default: 0.5)",
        "--optional X above 0 if given",
        "--flag a switch",
    ):
        assert part in text
    assert "(default: None)" not in text


def test_a_number_may_be_the_word_all() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False, argument_default=argparse.SUPPRESS)
    add_flags(parser.add_argument_group("example"), Example)
    for given, value in (("all", "all"), ("12", 12)):
        example = from_flags(Example, vars(parser.parse_args(["--most", given])))
        assert example.most == value
        assert example.fingerprint_settings()["most"] == value
    for wrong in ("every", "1.5", ""):
        with pytest.raises(argparse.ArgumentError, match="neither a whole number nor the word all"):
            parser.parse_args(["--most", wrong])


def test_a_number_may_be_the_word_auto() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False, argument_default=argparse.SUPPRESS)
    add_flags(parser.add_argument_group("example"), Example)
    for given, value in (("auto", "auto"), ("0.25", 0.25), ("1", 1.0)):
        example = from_flags(Example, vars(parser.parse_args(["--ratio", given])))
        assert example.ratio == value
        assert example.fingerprint_settings()["ratio"] == value
    for wrong in ("fast", "AUTO", ""):
        with pytest.raises(argparse.ArgumentError, match="neither a number nor the word auto"):
            parser.parse_args(["--ratio", wrong])


def test_a_whole_number_or_auto() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser.add_argument_group("example"), Example)
    for given, size in (("auto", "auto"), ("64", 64)):
        found = from_flags(Example, vars(parser.parse_args(["--size", given]))).size
        assert (found, type(found)) == (size, type(size))
    with pytest.raises(SystemExit):
        parser.parse_args(["--size", "6.5"])
