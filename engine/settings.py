"""Which engine maps work over shards, and how wide."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.settings import InputError, Settings, setting

LOCAL, RAY = ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EngineConfig(Settings):
    """Where the work of a run is done; the results are the same bytes anywhere."""

    engine: str = setting(
        LOCAL,
        "what works on shards and trainings: threads of this process, or Ray on one machine or "
        "many (requirements-ray.txt)",
        choices=ENGINES,
        affects_result=False,
    )
    workers: int | None = setting(
        None,
        "shards and trainings that are worked on at once; without it, as many as there are "
        "processor cores here, or in the Ray cluster",
        at_least=1,
        affects_result=False,
        type=int,
    )
    ray_address: str | None = setting(
        None,
        "Ray cluster to join, HOST:PORT, or auto for the one that this machine is a node of; "
        "without it --engine ray starts a Ray of its own here",
        affects_result=False,
        type=str,
    )
    ray_timeout: int = setting(
        120,
        "seconds that a Ray cluster has to start the first worker, or to get back nodes that it "
        "has lost",
        at_least=1,
        affects_result=False,
    )

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: a wrong value, or an address without the engine that it is for.
        """
        super().__post_init__()
        if self.ray_address is None:
            return
        if self.engine != RAY:
            raise InputError(f"--ray_address {self.ray_address} goes with --engine ray; add that")
        host, _, port = self.ray_address.rpartition(":")
        if self.ray_address != "auto" and not (host and "/" not in host and port.isdigit()):
            raise InputError(
                f"--ray_address must be auto or HOST:PORT, got {self.ray_address}; start the run "
                "on a node of the cluster"
            )
