"""What a run says of its settings; how flags are read is tested by whole runs."""

from __future__ import annotations

import pytest

from artifacts.settings import InputError
from cli.config import DEBUG_SETTINGS, parse_arguments
from engine.settings import EngineConfig
from sources.base import NO_LIMIT


def test_only_what_differs_from_its_default_has_changed() -> None:
    assert parse_arguments([]).changed() == {}
    assert parse_arguments(["--rank", "10", "--rho", "2", "--methods", "full"]).changed() == {
        "rho": 2.0,
        "methods": ("full",),
    }
    assert parse_arguments(["--debug"]).changed() == {"debug": True, **DEBUG_SETTINGS}


def test_all_bounds_no_number_of_clusters() -> None:
    config = parse_arguments(["--max_train_samples", "all", "--n_clusters", "6000"])
    assert config.data.limits()["train"] == NO_LIMIT
    assert config.changed() == {"max_train_samples": "all", "n_clusters": 6000}
    with pytest.raises(InputError, match="--n_clusters 6000 is more than --max_train_samples 5000"):
        parse_arguments(["--n_clusters", "6000"])
    with pytest.raises(InputError, match=r"--max_train_samples.*neither a whole number nor the"):
        parse_arguments(["--max_train_samples", "every"])


def test_the_engine_has_flags_of_its_own() -> None:
    given = "--engine ray --workers 8 --ray_address head:6379 --ray_timeout 600".split()
    assert parse_arguments(given).engine == EngineConfig("ray", 8, "head:6379", 600)
    assert parse_arguments([]).engine == EngineConfig("local", None, None)
    with pytest.raises(InputError, match="--ray_address auto goes with --engine ray"):
        parse_arguments(["--ray_address", "auto"])


def test_no_method_is_a_choice_of_its_own() -> None:
    assert parse_arguments(["--methods", "none"]).evaluation.methods == ()
    for given in (["none", "random"], ["random,none"]):
        with pytest.raises(InputError, match=r"^--methods none stands alone; leave it or random"):
            parse_arguments(["--methods", *given])
    with pytest.raises(InputError, match=r"--methods must be one of full, .*; got 'some'"):
        parse_arguments(["--methods", "some"])
