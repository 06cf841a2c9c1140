"""The certificate for a command that only tells of it: the one a server has made, or one made on the spot."""

import asyncio
from functools import partial

from server.database import open_database
from server.settings import Settings
from server.shared import shared_secret
from server.tls import Certificate, authority_of, certificate_in, ensure_certificate


async def client_certificate(settings: Settings) -> Certificate:
    """The certificate that clients of the server with these settings meet.

    Raises: StoreError.
    """
    found = certificate_in(settings.data)
    if found.made:
        return found
    database = await asyncio.to_thread(open_database, settings.data, url=settings.database_url)
    try:
        authority = await shared_secret(database, "authority", partial(authority_of, settings.data))
        return await asyncio.to_thread(ensure_certificate, settings.data, authority)
    finally:
        await database.close()
