"""Where the tables are: one SQLite file, or a PostgreSQL database. What either promises, the store above relies on:

  write(act)  act(connection) in one transaction; when write returns the transaction is on disk
  read(act)   act(connection) in one transaction
  erase()     what was deleted leaves the files too

A database is opened with `first`: what the process that opens it alone does before others may come.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event, exc, pool

from libremoe.chat.schema import HEAD, VERSION_TABLE
from libremoe.errors import LibremoeError

Result = TypeVar("Result")
Act = Callable[[sa.Connection], Result]


class NotSaved(LibremoeError):
    """The database refused: the disk is full or failing, the server is gone. Nothing of the act was kept."""


def migrate(connection: sa.Connection, name: str) -> None:
    """Bring the tables up to the newest numbered step, in the transaction of connection."""
    if sa.inspect(connection).has_table(VERSION_TABLE):
        found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        if found == HEAD:
            return  # without importing Alembic
        if found is not None and found > HEAD:
            raise LibremoeError(f"{name}: written by a newer libremoe (step {found}, this one knows {HEAD}): upgrade")
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


# --- SQLite ---

class _Job:
    """One act of one thread, and what became of it."""

    def __init__(self, act: Act[Any]):
        self.act = act
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class SqliteFile:
    """One file, one process, one connection.

    SQLite 3.7.0 to 3.51.2 can corrupt a WAL database that several connections use (sqlite.org/wal.html, "the WAL-reset
    bug"), and many systems have such a version. So there is exactly one connection whatever the version, and it locks
    the file exclusively: no other process gets in, and the wal-index stays in memory, so there is no -shm file.

    Threads share the connection and the sync to disk: whoever gets the lock runs what all have queued as one
    transaction.
    """

    def __init__(self, path: Path | None, first: Act[None]):
        """path None: in memory. Raises LibremoeError where the file cannot be opened or is open elsewhere."""
        self.path = path
        self.name = str(path or "the conversations in memory")
        self._lock = threading.RLock()
        self._queue: deque[_Job] = deque()
        self._n_deletions = self._n_erased = 0
        if path is not None:
            _create(path)
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path) if path else ":memory:"), poolclass=pool.StaticPool,
            hide_parameters=True,  # errors and logs show statements, never what people wrote
            connect_args={"check_same_thread": False, "timeout": 1.0, "isolation_level": None})
        event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        try:
            self._connection = self._engine.connect()
            self._raw = cast(sqlite3.Connection, self._connection.connection.driver_connection)
            self._settings()
            with self._connection.begin():
                migrate(self._connection, self.name)
                first(self._connection)
            if self._pragma("user_version"):  # a crash or a full disk cut an erasure short
                self.erase()
            self._empty_wal()
        except (exc.DBAPIError, sqlite3.Error, LibremoeError) as error:
            self._engine.dispose()
            raise LibremoeError(self._sentence(error)) from None

    def _settings(self) -> None:
        self._pragma("locking_mode=EXCLUSIVE")  # before anything is read
        if self._pragma("journal_mode=WAL") not in ("wal", "memory"):
            raise LibremoeError(f"{self.name}: this file system cannot keep a write-ahead log: choose another folder")
        for setting in ("synchronous=FULL",  # each commit is synced
                        "fullfsync=ON", "checkpoint_fullfsync=ON",  # macOS: past the drive's cache
                        "secure_delete=ON", "foreign_keys=ON",
                        "temp_store=MEMORY"):  # VACUUM copies the file; nothing of it is written elsewhere
            self._pragma(setting)

    def _pragma(self, setting: str) -> Any:
        row = self._raw.execute(f"PRAGMA {setting}").fetchone()
        return row[0] if row else None

    def write(self, act: Act[Result]) -> Result:
        """Raises what act raises, NotSaved where the disk refuses."""
        job = _Job(act)
        self._queue.append(job)
        with self._lock:
            if not job.done:
                jobs = [self._queue.popleft() for _ in range(len(self._queue))]
                self._commit(jobs)
        if job.error is not None:
            raise job.error
        return cast(Result, job.result)

    def _commit(self, jobs: list[_Job]) -> None:
        """All of jobs in one transaction; where that fails each in its own, so that each gets its own error."""
        try:
            with self._connection.begin():
                for job in jobs:
                    job.result = job.act(self._connection)
            for job in jobs:
                job.done = True
        except (exc.SQLAlchemyError, LibremoeError, ValueError, TypeError) as error:
            if len(jobs) == 1:
                jobs[0].error = NotSaved(self._sentence(error)) if isinstance(error, exc.DBAPIError) else error
                jobs[0].done = True
            else:
                for job in jobs:
                    self._commit([job])
        finally:
            for job in jobs:
                if not job.done:  # Ctrl-C: nobody is left without an answer
                    job.error = NotSaved(f"{self.name}: interrupted, so nothing was saved: try again")
                    job.done = True

    def read(self, act: Act[Result]) -> Result:
        """Raises what act raises, NotSaved where the disk refuses."""
        with self._lock, self._told(), self._connection.begin():
            return act(self._connection)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (exc.DBAPIError, sqlite3.Error) as error:
            raise NotSaved(self._sentence(error)) from None

    def deleted(self, connection: sa.Connection) -> None:
        """Called in a transaction that deletes: should it be the last act before a crash, the next start erases."""
        self._n_deletions += 1
        connection.exec_driver_sql("INSERT INTO search(search) VALUES ('optimize')")  # drops the words that are gone
        connection.exec_driver_sql("PRAGMA user_version=1")

    def erase(self) -> None:
        """Deletions that wait here share one VACUUM. It is needed: secure_delete alone leaves old bytes in the gaps of
        pages that were split or merged. Raises NotSaved where the disk refuses; the next deletion or start tries again.
        """
        wanted = self._n_deletions
        with self._lock, self._told():
            if self._n_erased >= wanted and wanted:
                return
            reached = self._n_deletions
            self._raw.execute("VACUUM")
            self._empty_wal()
            self._pragma("user_version=0")
            self._empty_wal()
            self._n_erased = reached

    def _empty_wal(self) -> None:
        busy = self._pragma("wal_checkpoint(TRUNCATE)")
        if busy:
            raise NotSaved(f"{self.name}: the write-ahead log is in use: close the other program that reads the file")

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            self._engine.dispose()

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, LibremoeError):
            return str(error)
        original = getattr(error, "orig", None) or error
        code = getattr(original, "sqlite_errorname", None) or "SQLITE_ERROR"
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return f"{self.name}: another libremoe has these conversations open: end it, or choose another --data"
        if code == "SQLITE_FULL":
            return f"{self.name}: the disk is full, so nothing was saved: free some space and try again"
        if code.startswith("SQLITE_IOERR"):
            return f"{self.name}: the disk failed or is full ({code}), so nothing was saved: look after it, try again"
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return f"{self.name}: cannot be written: mend its permissions and its folder's, or choose another --data"
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return f"{self.name}: is damaged or no SQLite database: move it away, or restore a copy"
        return f"{self.name}: SQLite refuses: {original}"


def _create(path: Path) -> None:
    """An empty file that only its owner reads, its name on disk. A file that is there is not even opened: closing it
    would drop the locks of this process on it (POSIX locks belong to a process, not to a descriptor)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise LibremoeError(f"{path}: {error.strerror}: choose a folder that can be written with --data") from None


# --- PostgreSQL ---

_LOCK = 0x6C696272656D6F65  # "libremoe": the advisory lock that open stores share
_LOCK_TIMEOUT_S = 30


class PostgresServer:
    """A database of its own on a server. Several processes may open it; each transaction has a connection of a pool."""

    def __init__(self, url: sa.URL, first: Act[None]):
        self.name = url.set(password=None, query={}).render_as_string().replace("postgresql+psycopg", "postgresql")
        try:
            self._engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, pool_size=5, max_overflow=15,
                                            connect_args={"connect_timeout": 10, "application_name": "libremoe"})
        except ModuleNotFoundError:
            raise LibremoeError("PostgreSQL needs psycopg: pip install 'libremoe[postgres]'") from None
        event.listen(self._engine, "connect", _committed_means_on_disk)
        try:
            self._open(first)
        except (exc.DBAPIError, LibremoeError) as error:
            self._engine.dispose()
            raise LibremoeError(self._sentence(error)) from None

    def _open(self, first: Act[None]) -> None:
        with self._engine.begin() as connection:
            if connection.execute(sa.text("SHOW server_encoding")).scalar() != "UTF8":
                raise LibremoeError(f"{self.name}: its encoding is not UTF8: create the database with ENCODING 'UTF8'")
            if connection.execute(sa.text("SHOW fsync")).scalar() != "on":
                raise LibremoeError(f"{self.name}: its server runs with fsync = off, so a crash loses saved messages: "
                                    "turn it on")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK - 1)))  # one process makes the tables
            migrate(connection, self.name)
        self._held = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if self._held.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar():
            with self._engine.begin() as connection:
                first(connection)
            self._held.execute(sa.select(sa.func.pg_advisory_lock_shared(_LOCK)))
            self._held.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK)))
        else:
            self._held.execute(sa.select(sa.func.pg_advisory_lock_shared(_LOCK)))

    def write(self, act: Act[Result]) -> Result:
        """Raises what act raises, NotSaved where the server refuses."""
        with self._told(), self._engine.begin() as connection:
            return act(connection)

    read = write

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise NotSaved(self._sentence(error)) from None

    def deleted(self, connection: sa.Connection) -> None:
        """Nothing to note: the next VACUUM FULL takes everything that is dead, whoever deleted it."""

    def erase(self) -> None:
        """VACUUM FULL writes the tables and indexes anew. Where the role may, the write-ahead log moves on too."""
        with self._told(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
            try:
                for table in ("turns", "search", "conversations"):
                    connection.execute(sa.text(f"VACUUM (FULL) {table}"))
                if connection.execute(_MAY_MOVE_WAL).scalar():
                    for statement in ("CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT"):
                        connection.execute(sa.text(statement))
            finally:
                connection.execute(sa.text("RESET lock_timeout"))

    def close(self) -> None:
        self._held.close()
        self._engine.dispose()

    def _sentence(self, error: exc.DBAPIError | LibremoeError) -> str:
        if isinstance(error, LibremoeError):
            return str(error)
        original = error.orig
        state = getattr(original, "sqlstate", None) or ""
        reason = str(original).partition("\n")[0].strip()  # the lines below it may quote a row
        if state.startswith("53"):
            return f"{self.name}: the server is out of disk or memory, so nothing was saved: {reason}"
        if state == "55P03":
            return (f"{self.name}: deleted, but the bytes are still in the server's files, for others keep the tables "
                    "busy: the next deletion tries again")
        if error.connection_invalidated or not state or state.startswith(("08", "57", "28", "3D")):
            return f"{self.name}: the server cannot be reached or does not let us in: {reason}"
        return f"{self.name}: the server refuses: {reason}"


_MAY_MOVE_WAL = sa.text(
    "SELECT has_function_privilege('pg_switch_wal()', 'execute') AND coalesce((SELECT rolsuper FROM pg_roles "
    "WHERE rolname = current_user) OR (SELECT pg_has_role(oid, 'member') FROM pg_roles "
    "WHERE rolname = 'pg_checkpoint'), false)")


def _committed_means_on_disk(dbapi_connection: Any, record: object) -> None:
    """A server may be set to answer before the disk has it (synchronous_commit = off): not for this connection."""
    autocommit, dbapi_connection.autocommit = dbapi_connection.autocommit, True
    dbapi_connection.execute("SELECT set_config('synchronous_commit', 'on', false) "
                             "WHERE current_setting('synchronous_commit') IN ('off', 'local')")
    dbapi_connection.autocommit = autocommit


Database = SqliteFile | PostgresServer


def open_database(where: str | Path, first: Act[None]) -> Database:
    """A path, sqlite:///PATH, :memory:, or postgresql://[USER[:PASSWORD]@]HOST[:PORT]/NAME."""
    text = str(where)
    scheme, separator, rest = text.partition("://")
    if isinstance(where, Path) or not separator:
        return SqliteFile(None if text == ":memory:" else Path(where), first)
    if scheme == "sqlite":
        return SqliteFile(None if rest in ("", "/", "/:memory:") else Path(rest.removeprefix("/")), first)
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise LibremoeError(f"--database: {scheme!r} is not known: give a path, or postgresql://user@host/name")
    try:
        url = sa.make_url(f"postgresql+psycopg://{rest}")
    except (exc.ArgumentError, ValueError):  # its message may quote the password
        raise LibremoeError("--database: this is no URL: write postgresql://user@host:port/name") from None
    return PostgresServer(url, first)
