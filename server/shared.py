"""Secrets that every node of one store shares: made by the first that asks, then the same for all."""

from collections.abc import Callable
from typing import Literal

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from server.database import Database
from server.tables import SECRETS

Name = Literal["authority", "webhook-signing-key", "token-secret", "upload-secret"]


async def shared_secret(database: Database, name: Name, make: Callable[[], bytes]) -> bytes:
    """The secret of this name; `make` makes it if there is none."""

    def find(connection: Connection) -> bytes | None:
        return connection.scalar(select(SECRETS.c.value).where(SECRETS.c.name == name))

    found = await database.read(find)
    if found is not None:
        return found
    try:
        made = make()
        await database.write(lambda connection: connection.execute(insert(SECRETS), {"name": name, "value": made}))
    except IntegrityError:
        # why: another node was faster
        found = await database.read(find)
        if found is None:
            raise
        return found
    return made
