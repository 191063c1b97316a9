"""A server on this machine that speaks S3, and the usual driver for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@contextmanager
def s3_bucket(folder: Path) -> Iterator[Any]:
    """The driver's view of an empty bucket called pool; skips where one of the two is missing."""
    moto_server = pytest.importorskip("moto.server", reason="needs moto[server], an S3 server")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs, the driver of s3://")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    nowhere = str(folder / "none")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", nowhere)
        patch.setenv("AWS_CONFIG_FILE", nowhere)
        for key in KEYS:
            patch.setenv(key, "any")
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        if files.exists("pool"):  # the server keeps what another one of this process was given
            files.rm("pool", recursive=True)
        files.mkdir("pool")
        yield files
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
