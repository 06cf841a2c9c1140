"""What is asked of the queue again and again is found without reading the payloads of those who wait."""

import pytest
from sqlalchemy import text

from server.database import open_database
from server.looking import _BEFORE
from server.store import _BACKLOG
from server.tables import JOBS


@pytest.fixture
async def sqlite(tmp_path):
    """An empty SQLite, as the migrations make it."""
    database = open_database(tmp_path)
    yield database
    await database.close()


@pytest.mark.parametrize("query", [_BACKLOG, _BEFORE], ids=["backlog", "position"])
async def test_who_waits_is_counted_in_the_index_alone(sqlite, query):
    def plan(connection):
        compiled = query.compile(connection)
        given = compiled.params | {"priority": 0, "seq": 1}
        values = tuple(given[name] for name in compiled.positiontup)
        return connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values).all()

    steps = " ".join(row[-1] for row in await sqlite.read(plan))
    assert "USING COVERING INDEX ix_jobs_waiting" in steps, steps
    assert "SCAN" not in steps, steps


async def test_a_payload_is_the_end_of_its_row(sqlite):
    columns = [row[1] for row in await sqlite.read(lambda c: c.execute(text("PRAGMA table_info(jobs)")).all())]
    assert columns[-1] == list(JOBS.c)[-1].name == "payload"
