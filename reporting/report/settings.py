"""What the report shows."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.settings import Settings, setting


@dataclass(frozen=True)
class ReportConfig(Settings):
    """What `results/report.html` shows."""

    no_report: bool = setting(False, "do not write results/report.html")
    report_images: int = setting(
        20_000,
        "photographs that the report shows at most: as many as fit lie in results/report.html, the "
        "rest in results/report_files/; 0 leaves them out, for data that must not travel",
        at_least=0,
    )
    compare: str | None = setting(
        None, "the output folder of another run, to show in the report what changed", type=str
    )
