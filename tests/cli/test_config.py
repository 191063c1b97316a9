"""What a run says of its settings; how flags are read is tested by whole runs."""

from __future__ import annotations

from cli.config import DEBUG_SETTINGS, parse_arguments


def test_only_what_differs_from_its_default_has_changed() -> None:
    assert parse_arguments([]).changed() == {}
    assert parse_arguments(["--rank", "10", "--rho", "2", "--methods", "full"]).changed() == {
        "rho": 2.0,
        "methods": ("full",),
    }
    assert parse_arguments(["--debug"]).changed() == {"debug": True, **DEBUG_SETTINGS}
