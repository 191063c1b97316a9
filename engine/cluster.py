"""Ray: the same work on all cores of a machine, or on the machines of a cluster.

Work goes as Ray's tasks, work that needs a GPU to actors that have one each; what a worker or a
node that dies leaves undone, Ray does again elsewhere (Moritz et al. 2018, OSDI). Summaries and
jobs alone are in its object store.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from artifacts.cores import ONE_THREAD, n_cores
from artifacts.settings import InputError
from artifacts.store import Store
from engine.base import Call, Engine
from engine.settings import EngineConfig
from engine.travel import check_travels, send_mapped_files_by_path
from engine.worker import Worker, do_job, process_id, read_probe

logger = logging.getLogger(__name__)
ROOT = str(Path(__file__).parents[1])
MAX_RETRIES = 4  # of a job whose worker died
MAX_RESTARTS = 20  # of a worker with a GPU, whose jobs wait meanwhile
STORE_BYTES = 200 * 2**20  # of a Ray of our own, on a machine: jobs and summaries are small
CONNECT_SECONDS, ANSWER_SECONDS = 5, 20  # that an address has
PROBE_SECONDS = 60  # that a node has to import the program and read a file
LOOK_SECONDS = 5  # without a finished job, after which the cluster is looked at


class RayEngine(Engine):
    """Works on a Ray cluster: one that is joined, or one of its own on this machine.

    It starts with the first map; whether a cluster answers is asked at once.

    Args:
        config: workers, address, patience.
        store: the output folder, which all workers have to see.

    Raises:
        InputError: Ray is not installed, or the address does not answer.
    """

    def __init__(self, config: EngineConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.ray = _import_ray()
        if config.ray_address is not None:
            _check_answers(config.ray_address)
        self._is_started = False
        self._nodes = set[str]()

    def close(self) -> None:
        """Leave the cluster; a Ray of our own ends."""
        if self._is_started:
            self.ray.shutdown()
            self._is_started = False

    def workers_a_machine(self, on_gpu: bool = False) -> int:
        """See `Engine`; nodes of a cluster are taken to be like this machine."""
        if on_gpu:
            return 1
        return min(self.config.workers or sys.maxsize, n_cores())

    def finished(self, call: Call) -> Iterator[tuple[int, Any]]:
        """See `Engine`."""
        if not call.jobs:
            return
        try:
            self._start()
            self._await_worker("GPU" if call.on_gpu else "CPU")
            yield from self._finished(call)
        except self.ray.exceptions.RayError as error:
            raise _as_input_error(error, self.ray) from error

    def _finished(self, call: Call) -> Iterator[tuple[int, Any]]:
        ray, pending, ahead = self.ray, dict[Any, int](), iter(range(len(call.jobs)))
        watch = _Watch(self, "GPU" if call.on_gpu else "CPU")
        lanes = _Actors(self, call) if call.on_gpu else _Tasks(self, call)
        try:
            while True:
                for number in islice(ahead, max(lanes.room() - len(pending), 0)):
                    job = call.jobs[number]
                    check_travels(job, "a job")
                    pending[lanes.submit(job)] = number
                if not pending:
                    return
                done, _ = ray.wait(list(pending), timeout=LOOK_SECONDS)
                watch.look(bool(done))
                for one in done:
                    summary = ray.get(one)
                    yield pending.pop(one), summary
                    lanes.has_done(one)
        finally:
            lanes.end(list(pending))

    # --- Start ------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._is_started:
            return
        address = self.config.ray_address
        send_mapped_files_by_path()
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Ray warns of a change to come in what workers see that ask for no GPU.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            self.ray.init(**self._arguments(address))
        except (Exception, SystemExit) as error:
            where = "" if address is None else f" --ray_address {address}"
            raise InputError(
                f"--engine ray{where} does not start ({_line(error)}); "
                + ("use --engine local" if address is None else "start the run on one of its nodes")
            ) from error
        self._is_started = True
        self._check_nodes()
        resources = self.ray.cluster_resources()
        logger.info(
            "ray        %d nodes, %d processor cores, %d GPUs; its object store holds jobs and "
            "summaries alone",
            *(len(self._nodes), resources.get("CPU", 0), resources.get("GPU", 0)),
        )

    def _arguments(self, address: str | None) -> dict[str, Any]:
        path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
        arguments: dict[str, Any] = {
            "configure_logging": False,
            "log_to_driver": False,  # what work has to say is in its summary
            "runtime_env": {"env_vars": {"PYTHONPATH": path, **ONE_THREAD}},
        }
        if address is not None:
            return {**arguments, "address": address}
        return {
            **arguments,
            "address": "local",
            "num_cpus": self.config.workers or n_cores(),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            # By default Ray starts work anew for ever that takes more memory than there is.
            "_system_config": {"task_oom_retries": MAX_RETRIES},
        }

    def _check_nodes(self) -> None:
        """Raise unless every node has the program and sees the output folder.

        Raises:
            InputError: one does not; the text names it.
        """
        ray, nodes = self.ray, self.alive()
        token = f"{socket.gethostname()} {os.getpid()}".encode()
        name = f".ray_probe.{socket.gethostname()}.{os.getpid()}"
        path = self.store.write_bytes(name, token).resolve()
        task = ray.remote(read_probe)
        on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        try:
            probes = {
                task.options(
                    num_cpus=0, max_retries=0, scheduling_strategy=on_node(node, soft=False)
                ).remote(str(path)): address
                for node, address in nodes.items()
            }
            ready, late = ray.wait(list(probes), num_returns=len(probes), timeout=PROBE_SECONDS)
            for probe in ready:
                self._check_probe(probe, probes[probe], path, token)
            if late:
                raise InputError(
                    f"--engine ray: node {probes[late[0]]} has started no worker within "
                    f"{PROBE_SECONDS} s; look at its logs in /tmp/ray/session_latest/logs"
                )
        finally:
            self.store.remove_files(".", [name])
        self._nodes = set(nodes)

    def _check_probe(self, probe: Any, address: str, path: Path, token: bytes) -> None:
        try:
            host, found = self.ray.get(probe)
        except self.ray.exceptions.RayError as error:
            raise InputError(
                f"--engine ray: node {address} cannot run the program ({_line(error)}); it needs "
                f"this checkout under the same path, {ROOT}, and the same packages"
            ) from error
        if found != token:
            why = found if isinstance(found, str) else "other content"
            raise InputError(
                f"--engine ray: node {address} ({host}) cannot read {path} ({why}); all workers "
                "need --output_dir and the data under the same path, on shared storage"
            )

    def _await_worker(self, kind: str) -> None:
        """Raise unless a worker with a CPU, or a GPU, starts in time.

        Raises:
            InputError: none does; the text says what the cluster has.
        """
        ray, timeout = self.ray, self.config.ray_timeout
        n_gpus = 1 if kind == "GPU" else 0
        options = {"num_cpus": 1, "num_gpus": n_gpus, "max_retries": MAX_RETRIES}
        first = ray.remote(process_id).options(**options).remote()
        ready, _ = ray.wait([first], timeout=min(LOOK_SECONDS, timeout))
        if not ready:
            logger.info("ray        waits up to %d s for a free %s", timeout, kind)
            ready, _ = ray.wait([first], timeout=max(timeout - LOOK_SECONDS, 0))
        if not ready:
            raise self.lacks(kind, "no worker has started")
        ray.get(first)

    # --- What the cluster has ---------------------------------------------------------------------

    def alive(self) -> dict[str, str]:
        """Addresses of the nodes that are there, by their ids."""
        nodes = self.ray.nodes()
        return {n["NodeID"]: str(n["NodeManagerAddress"]) for n in nodes if n["Alive"]}

    def count(self, kind: str) -> int:
        """CPUs or GPUs of the cluster, free or not."""
        return int(self.ray.cluster_resources().get(kind, 0))

    def lacks(self, kind: str, what: str) -> InputError:
        """The error of a cluster without CPUs, or GPUs, for us."""
        has, free = self.ray.cluster_resources(), self.ray.available_resources()
        told = ", ".join(
            f"{free.get(name, 0):g} of {has.get(name, 0):g} {name}s free" for name in ("CPU", "GPU")
        )
        other = " or use --device cpu" if kind == "GPU" else ""
        return InputError(
            f"--engine ray: {what} within {self.config.ray_timeout} s, one {kind} is needed and "
            f"the cluster has {told}; add nodes, raise --ray_timeout{other}; what is saved stays"
        )


class _Watch:
    """Sees that nodes leave, and that none is left."""

    def __init__(self, engine: RayEngine, kind: str) -> None:
        self.engine, self.kind = engine, kind
        self.nodes = engine.alive()
        self.lost_since: float | None = None
        self.next_look = 0.0

    def look(self, has_done: bool) -> None:
        """Raise when the cluster has had no resources of the kind for too long."""
        now = time.monotonic()
        if has_done and now < self.next_look:
            return
        self.next_look = now + LOOK_SECONDS
        nodes = self.engine.alive()
        for node in self.nodes.keys() - nodes.keys():
            logger.warning(
                "ray: node %s has left; what it worked on is done elsewhere", self.nodes[node]
            )
        self.nodes = nodes
        if self.engine.count(self.kind):
            self.lost_since = None
        elif self.lost_since is None:
            self.lost_since = now
        elif now - self.lost_since > self.engine.config.ray_timeout:
            raise self.engine.lacks(self.kind, "no node has come back")


class _Tasks:
    """Jobs as tasks: Ray decides where, and again where a worker died."""

    def __init__(self, engine: RayEngine, call: Call) -> None:
        self.engine, self.ray = engine, engine.ray
        self.task = engine.ray.remote(do_job).options(num_cpus=1, max_retries=MAX_RETRIES)
        self.common = [engine.ray.put(call.work), engine.ray.put(call.setup)]
        self.most, self.next_look = 0, 0.0

    def room(self) -> int:
        """How many jobs may be unfinished: workers do not wait, a million does not queue up."""
        workers = self.engine.config.workers
        if workers is not None and self.engine.config.ray_address is not None:
            return workers
        if (now := time.monotonic()) >= self.next_look:  # a cluster may grow
            self.most = 2 * max(self.engine.count("CPU"), 1)
            self.next_look = now + LOOK_SECONDS
        return self.most

    def submit(self, job: Any) -> Any:
        """Hand over a job."""
        return self.task.remote(*self.common, job)

    def has_done(self, future: Any) -> None:
        """Note that a job is done."""

    def end(self, pending: list[Any]) -> None:
        """Give up what is not done: nobody waits for it, and it ends with the run at the latest.

        Ray can cancel tasks, but ends this process without a word where one is done meanwhile.
        """


class _Actors:
    """Jobs for actors with a GPU each; one whose node died starts again where a GPU is free."""

    def __init__(self, engine: RayEngine, call: Call) -> None:
        self.ray = engine.ray
        n_actors = min(engine.count("GPU"), engine.config.workers or sys.maxsize, len(call.jobs))
        actor = engine.ray.remote(Worker).options(
            num_cpus=1, num_gpus=1, max_restarts=MAX_RESTARTS, max_task_retries=-1
        )
        self.actors = [actor.remote() for _ in range(max(n_actors, 1))]
        self.common = [engine.ray.put(call.work), engine.ray.put(call.setup)]
        self.busy: dict[Any, Any] = {}  # actor by its future
        self.n_left = len(call.jobs)

    def room(self) -> int:
        """One an actor and one to go on with."""
        return 2 * len(self.actors)

    def submit(self, job: Any) -> Any:
        """Hand a job to the actor with the least to do."""
        given = list(self.busy.values())
        actor = min(self.actors, key=given.count)
        future = actor.do_job.remote(*self.common, job)
        self.busy[future] = actor
        self.n_left -= 1
        return future

    def has_done(self, future: Any) -> None:
        """Let an actor go that has nothing left to do: its GPU may be what another waits for."""
        actor = self.busy.pop(future)
        if self.n_left == 0 and actor not in self.busy.values():
            self.actors.remove(actor)
            self.ray.kill(actor)

    def end(self, pending: list[Any]) -> None:
        """Give up what is not done."""
        for actor in self.actors:
            self.ray.kill(actor)


# --- Words ----------------------------------------------------------------------------------------


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise InputError(
            "--engine ray needs Ray; run python -m pip install -r requirements-ray.txt, or use "
            "--engine local"
        ) from error
    return ray


def _check_answers(address: str) -> None:
    """Raise unless a Ray cluster answers; asked by another process, as Ray waits for minutes.

    Raises:
        InputError: nothing does, in time.
    """
    way_out = "start one with ray start --head, or leave --ray_address out"
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--ray_address {address} does not answer ({error}); {way_out}"
            ) from error
        command += ["--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"--ray_address {address} gives no answer of Ray's within {ANSWER_SECONDS} s; {way_out}"
        ) from None
    if answer.returncode != 0:
        told = answer.stderr.decode("utf-8", "replace").strip() or "no cluster is running"
        last = told.splitlines()[-1][:300].rstrip(".")
        raise InputError(f"--ray_address {address}: {last}; {way_out}")


def _line(error: BaseException) -> str:
    """What an error says in a line: the first, or the last where it tells of another error."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    is_traceback = any(line.startswith("Traceback") for line in lines)
    return lines[-1 if is_traceback else 0][:500].rstrip(".")


def _as_input_error(error: Exception, ray: Any) -> BaseException:
    """What to raise for an error of Ray's: the one that work raised, or one line."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(cause, Exception):
        if not isinstance(cause, ray.exceptions.RayError):
            return cause
        error = cause
    text = _line(error)
    _, is_ours, told = text.partition(f"{InputError.__module__}.{InputError.__qualname__}: ")
    if is_ours:  # raised while a job was unpacked
        return InputError(told)
    if isinstance(error, ray.exceptions.RaySystemError):
        return InputError(
            f"--engine ray: {text}; all nodes need this checkout under the same path, {ROOT}, and "
            "the same packages"
        )
    return InputError(
        f"--engine ray: {type(error).__name__}: {text}; a job failed {MAX_RETRIES + 1} "
        "times or its cluster is gone: mind the memory of a worker; what is saved stays, continue "
        "with --load_saved"
    )
