"""How a setting is declared: its name, default, help and permitted values, in one place.

Every stage has one frozen dataclass derived from `Settings`; `cli.config` makes the command-line
flags from its fields, `provenance` the fingerprint, so that no flag is declared twice.
"""

from __future__ import annotations

import argparse
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

ALL = "all"  # the word for a number without an end
AUTO = "auto"  # the word for a number that the run finds
# Of the names of settings that hold a path.
PATH_ENDINGS = ("_dir", "_file", "_data", "compare", "overrides")


class InputError(ValueError):
    """A wrong flag, file or model. Shown as one line, without a traceback; exit status 2."""


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word argparse uses
    *,
    choices: Sequence[Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    affects_result: bool = True,
    added_later: bool = False,
    or_all: bool = False,
    or_auto: bool = False,
    type: type | None = None,  # noqa: A002 - the word argparse uses
) -> Any:
    """A dataclass field that carries everything the command line and the checks need.

    Args:
        default: value without the flag.
        help: one or two lines for `--help`.
        choices: permitted values.
        at_least: smallest permitted number.
        at_most: largest permitted number.
        above: the number must be larger than this.
        below: the number must be smaller than this.
        affects_result: False for what changes speed or presentation only; such a setting does
            not make a saved result stale.
        added_later: left out of the fingerprint at its default, so that results saved before the
            setting existed stay current; the default must mean what was done then.
        or_all: the word `all` is permitted in a number's place and means that there is no limit.
        or_auto: the word `auto` is permitted in a number's place: the run finds the number.
        type: the value's type where the default (None, say) does not tell it.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "at_least": at_least,
        "at_most": at_most,
        "above": above,
        "below": below,
        "affects_result": affects_result,
        "added_later": added_later,
        "or_all": or_all,
        "or_auto": or_auto,
        "type": type,
    }
    if isinstance(default, list):
        raise TypeError("a setting's default must be immutable; use a tuple")
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base of every stage's configuration; checks its fields when it is made."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: a value is outside what its `setting` permits.
        """
        for f in fields(self):
            values = getattr(self, f.name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None:
                    _check(f.name, value, f.metadata)

    def fingerprint_settings(self) -> dict[str, Any]:
        """Every setting that can change the stage's result, by name."""
        left_out = self.left_out_defaults()
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata.get("affects_result", True)
            and not (f.name in left_out and getattr(self, f.name) == left_out[f.name])
        }

    @classmethod
    def left_out_defaults(cls) -> dict[str, Any]:
        """Defaults at which a setting is left out of the fingerprint, by name."""
        return {f.name: f.default for f in fields(cls) if f.metadata.get("added_later", False)}


SomeSettings = TypeVar("SomeSettings", bound=Settings)


def add_flags(group: argparse._ArgumentGroup, settings_type: type[Settings]) -> None:
    """Add one flag a field; flags not given are absent from the parsed arguments."""
    for f in fields(settings_type):
        _add_flag(group, f)


def from_flags(settings_type: type[SomeSettings], given: Mapping[str, Any]) -> SomeSettings:
    """The settings with the given values, which may name fields of other settings too.

    Raises:
        InputError: a value is outside what its `setting` permits.
    """
    values = {f.name: given[f.name] for f in fields(settings_type) if f.name in given}
    return settings_type(**{n: _split(v) if isinstance(v, list) else v for n, v in values.items()})


def number_or(word: str, kind: type[int] | type[float]) -> Callable[[str], int | float | str]:
    """What makes a number, or the word that is permitted in its place, of a flag's text.

    It raises an `argparse.ArgumentTypeError` where the text is neither.
    """

    def parse(text: str) -> int | float | str:
        if text == word:
            return word
        try:
            return kind(text)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            problem = f"{text!r} is neither {name} nor the word {word}"
            raise argparse.ArgumentTypeError(problem) from None

    return parse


def _split(values: list[Any]) -> tuple[Any, ...]:
    """Each value once; words may also be separated by commas."""
    words = [
        word
        for value in values
        for word in (filter(None, value.split(",")) if isinstance(value, str) else [value])
    ]
    return tuple(dict.fromkeys(words))


def _add_flag(group: argparse._ArgumentGroup, f: Field[Any]) -> None:
    default, choices = f.default, f.metadata["choices"]
    if isinstance(default, bool):
        group.add_argument(f"--{f.name}", action="store_true", help=f.metadata["help"])
        return
    many = isinstance(default, tuple)
    value_type = f.metadata["type"] or (str if many else type(default))
    text = f.metadata["help"]
    if choices and value_type is str:
        text += f"; one of {', '.join(choices)}"
    if default is not None and default != ():
        listed = many and choices
        text += f" (default: {_in_words(default, choices) if listed else default})"
    names = {int: "N", float: "X", str: "PATH" if f.name.endswith(PATH_ENDINGS) else "NAME"}
    group.add_argument(
        f"--{f.name}",
        type=_parser_of(f, value_type),
        metavar=names[value_type],
        help=text,
        nargs=("+" if default else "*") if many else None,
    )


def _parser_of(f: Field[Any], value_type: Any) -> Any:
    if f.metadata["or_auto"]:
        return number_or(AUTO, int if value_type is int else float)
    return number_or(ALL, int) if f.metadata["or_all"] else value_type


def _in_words(default: Any, choices: Sequence[Any]) -> str:
    """Some of the choices: all of them, or all but those that are named."""
    left = [str(choice) for choice in choices if choice not in default]
    return f"all but {', '.join(left)}" if left else "all"


def _check(name: str, value: Any, rules: Any) -> None:
    choices = rules.get("choices")
    if choices and value not in choices:
        raise InputError(f"--{name} must be one of {', '.join(map(str, choices))}; got {value!r}")
    if rules.get("or_all") and isinstance(value, str) and value != ALL:
        raise InputError(f"--{name} must be a whole number or the word {ALL}; got {value!r}")
    if rules.get("or_auto") and isinstance(value, str) and value != AUTO:
        raise InputError(f"--{name} must be a number or the word {AUTO}; got {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise InputError(f"--{name} must be a finite number; got {value}")
    for rule, symbol, holds in (
        ("at_least", ">=", operator.ge),
        ("at_most", "<=", operator.le),
        ("above", ">", operator.gt),
        ("below", "<", operator.lt),
    ):
        bound = rules.get(rule)
        if bound is not None and not holds(value, bound):
            raise InputError(f"--{name} must be {symbol} {bound:g}; got {value:g}")
