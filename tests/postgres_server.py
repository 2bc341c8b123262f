"""A real PostgreSQL server for tests: a private folder, a Unix socket, no port; gone when the tests are.

Not as root, which PostgreSQL refuses: then it runs as the user `postgres` that Debian's package makes.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

STARTS_IN_S = 60


def programs() -> Path | None:
    """The folder with initdb and postgres; None where PostgreSQL is not installed."""
    found = [Path(p).parent for p in [shutil.which("initdb")] if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


class Server:
    def __init__(self, bin_folder: Path):
        self.bin = bin_folder
        self.folder = Path(tempfile.mkdtemp(prefix="libremoe-pg-"))
        self.data = self.folder / "data"
        self._numbers = itertools.count()
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        subprocess.run([self.bin / "initdb", "-D", self.data, "-U", "libremoe", "-A", "trust", "-E", "UTF8",
                        "--locale=C.UTF-8", "--no-sync"], check=True, capture_output=True, cwd="/", **self._as)
        self.start()
        self.sql("CREATE ROLE plain LOGIN")

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, "-k", self.folder, "-c", "listen_addresses=",
                 "-c", "shared_buffers=16MB", "-c", "wal_recycle=off", "-c", "max_wal_size=64MB"],
                stdout=log, stderr=log, cwd="/", **self._as)
        until = time.monotonic() + STARTS_IN_S
        while True:
            try:
                return self.sql("SELECT 1")
            except sa.exc.OperationalError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of the server and, as it then does itself, of all its processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in [self.process.pid, *map(int, children)]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            time.sleep(0.01)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # ends its connections, shuts down cleanly
        self.process.wait(60)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def sql(self, statement: str, database: str = "postgres") -> Any:
        engine = sa.create_engine(f"postgresql+psycopg://libremoe@/{database}?host={self.folder}",
                                  isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                result = connection.execute(sa.text(statement))
                return result.fetchall() if result.returns_rows else None
        finally:
            engine.dispose()

    def database(self, role: str = "plain") -> str:
        """The URL of a new, empty database; role: plain, or libremoe, which may do all."""
        name = f"d{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0 OWNER {role}")
        return f"postgresql://{role}@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    server = Server(bin_folder)
    try:
        yield server
    finally:
        server.close()
