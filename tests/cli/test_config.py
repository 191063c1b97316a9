"""What a run says of its settings; how flags are read is tested by whole runs."""

from __future__ import annotations

import dataclasses

import pytest

from artifacts.settings import InputError
from attribution.cluster_scores import ESTIMATORS, HEEDED_BY, InfluenceConfig
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", []),
        ("--debug --estimator step", []),  # what --debug sets is nobody's wish
        ("--estimator step --removal_folds 5", []),  # as the default
        ("--removal_folds 3 --rank 4", ["--rank 4: --estimator metagradient does not heed it"]),
        ("--estimator step --hessian cg --damping 0.1", []),
        (
            "--debug --estimator step --removal_folds 9 --samples_per_cluster 8",
            [
                "--removal_folds 9: --estimator step does not heed it; it is of "
                "--estimator metagradient",
                "--samples_per_cluster 8: --estimator step does not heed it; it is of "
                "--estimator first_order",
            ],
        ),
    ],
)
def test_a_flag_without_effect_is_said(given: str, said: list[str]) -> None:
    found = parse_arguments(given.split()).unheeded()
    assert len(found) == len(said)
    assert all(text.startswith(part) for text, part in zip(found, said, strict=True))


def test_what_only_some_estimators_heed_is_a_setting_of_theirs() -> None:
    fields = {field.name for field in dataclasses.fields(InfluenceConfig)}
    assert set(HEEDED_BY) <= fields
    assert {e for of in HEEDED_BY.values() for e in of} <= set(ESTIMATORS)
