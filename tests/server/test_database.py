import asyncio
import multiprocessing
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg.errors import DeadlockDetected
from sqlalchemy import Connection, MetaData, create_engine, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from server.database import StoreError, StoreUnavailableError, open_database, own
from server.migrations import configuration
from server.serve import serve
from server.settings import Settings
from server.store import Store
from server.tables import METADATA


async def test_the_migrations_make_the_tables_that_the_code_knows(database):
    def differences(connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), METADATA)

    assert await database.write(differences) == []


async def test_a_transaction_that_postgres_rolled_back_may_be_tried_again(database):
    def deadlocked(_connection):
        raise OperationalError("UPDATE", None, DeadlockDetected("deadlock detected"))

    with pytest.raises(StoreUnavailableError, match="deadlock detected"):
        await database.write(deadlocked)


async def test_a_folder_has_one_owner(tmp_path):
    first = open_database(tmp_path)
    with pytest.raises(StoreError, match="another ltxd already owns"):
        open_database(tmp_path)
    await first.close()
    await open_database(tmp_path).close()


async def test_nodes_of_one_postgres_do_not_share_a_data_folder(tmp_path):
    first = own(tmp_path)
    settings = Settings(data=tmp_path, port=0, tls_port=0, database_url="postgresql://127.0.0.1:1/x")
    with pytest.raises(StoreError, match="another ltxd already owns"):
        await serve(settings, command=lambda _fd: [], stop=asyncio.Event())
    first.close()
    with pytest.raises(StoreError, match="looked for it at postgresql"):
        await serve(settings, command=lambda _fd: [], stop=asyncio.Event())
    own(tmp_path).close()


async def test_jobs_of_the_first_version_are_taken_over(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'ltxd.sqlite3'}")
    with engine.begin() as connection:
        command.upgrade(configuration(connection), "0001")
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(
            text(
                "INSERT INTO jobs (id, status, priority, payload, attempts, cancel_requested, units, created) "
                "VALUES ('old', 'IN_QUEUE', 0, :payload, 0, 0, 0, 1.0)"
            ),
            {"payload": b"{}"},
        )
    engine.dispose()
    database = open_database(tmp_path)
    assert (await Store(database).claim("me", lease=60)).payload == b"{}"
    await database.close()


VALUES = {int: 1, float: 1.5, str: "x", bytes: b"\0x"}


def rows(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables that the database has, but its version."""
    tables = MetaData()
    tables.reflect(connection)
    return {
        name: [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]
        for name, table in tables.tables.items()
        if name != "alembic_version"
    }


def fill(connection: Connection) -> None:
    """Writes a row with a value in every column into every table, and a second job without a payload."""
    tables = MetaData()
    tables.reflect(connection)
    full = {
        name: {column.name: VALUES[column.type.python_type] for column in table.columns}
        for name, table in tables.tables.items()
        if name != "alembic_version"
    }
    for name, row in full.items():
        connection.execute(insert(tables.tables[name]).values(row))
    connection.execute(insert(tables.tables["jobs"]).values(full["jobs"] | {"seq": 2, "id": "y", "payload": None}))


@pytest.mark.parametrize("version", ["0001", "0002", "0003"])
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.full)])
async def test_no_value_of_an_older_version_is_lost(version, kind, tmp_path, request):
    url = request.getfixturevalue("postgres")() if kind == "postgres" else ""
    place = make_url(url).set(drivername="postgresql+psycopg") if url else f"sqlite:///{tmp_path / 'ltxd.sqlite3'}"
    engine = create_engine(place)
    with engine.begin() as connection:
        command.upgrade(configuration(connection), version)
        fill(connection)
        before = rows(connection)
    engine.dispose()
    database = open_database(tmp_path, url=url)
    after = await database.read(rows)
    await database.close()
    assert len(before["jobs"]) == 2
    for name, olds in before.items():
        kept = [{column: new[column] for column in old} for old, new in zip(olds, after[name], strict=True)]
        assert kept == olds, name


async def test_a_database_of_a_newer_version_is_refused(tmp_path):
    await open_database(tmp_path).close()
    with sqlite3.connect(tmp_path / "ltxd.sqlite3") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreError, match="another version of ltxd"):
        open_database(tmp_path)


@pytest.mark.parametrize("url", ["mysql://a/b", "nonsense", "postgresql://127.0.0.1:1/x"])
def test_a_database_that_cannot_be_used_is_told_at_the_start(tmp_path, url):
    with pytest.raises(StoreError, match="database"):
        open_database(tmp_path, url=url)


def submit_for_ever(folder: Path, told) -> None:
    async def go() -> None:
        store = Store(open_database(folder))
        for n in range(10_000):
            await store.submit(f"job {n}", b"{}", max_waiting=100_000)
            told.put(n)

    asyncio.run(go())


async def test_what_was_submitted_survives_a_kill_and_a_copy_of_the_folder_is_whole(tmp_path):
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=submit_for_ever, args=(tmp_path / "data", told))
    process.start()
    last = await asyncio.to_thread(lambda: [told.get(timeout=20) for _ in range(20)][-1])
    process.kill()
    await asyncio.to_thread(process.join)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    database = open_database(tmp_path / "copy")
    assert (
        await database.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"
    )
    store = Store(database)
    for n in range(last + 1):
        assert (await store.get(f"job {n}")).status == "IN_QUEUE"
    await database.close()
