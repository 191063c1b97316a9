"""How many processor cores there are to use."""

from __future__ import annotations

# In the environment of a process that is yet to start: read when the libraries are imported.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def n_cores() -> int:
    """Processor cores that this process may use: its affinity and its container's limit count."""
    from joblib import cpu_count  # not in processes that decode, which would wait for it

    return int(cpu_count())
