"""The versions of the database. Each change of a table is a new file in `versions/`; none is ever edited."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text

HERE = Path(__file__).parent
FIRST = "0001"
LOCK = 0x6C747864  # any number, the same on every node


class MigrationError(Exception):
    """The database is of a version that this program does not know."""


def upgrade(connection: Connection) -> None:
    """Brings the database to the newest version, all or nothing.

    Raises: MigrationError.
    """
    if connection.dialect.name == "postgresql":
        # why: nodes that start together must not create the same table
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    config = configuration(connection)
    tables = inspect(connection)
    try:
        if tables.has_table("jobs") and not tables.has_table("alembic_version"):
            command.stamp(config, FIRST)
        command.upgrade(config, "head")
    except CommandError as error:
        raise MigrationError(
            f"the database is of another version of ltxd: {error}. Run that version, or restore a backup"
        ) from error


def configuration(connection: Connection) -> Config:
    """What alembic needs to work on `connection`."""
    config = Config()
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
