"""The certificate of a node, from its settings and the authority in the store; and how the secrets in it are made."""

import asyncio
import secrets as random
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from server.covered import covered_names
from server.database import Database, open_database
from server.settings import Settings
from server.shared import Name, Secrets
from server.signing import make_signing_key
from server.tls import Certificate, certificate_in, ensure_certificate, left_authority, new_authority, permitting

MAKERS: Mapping[Name, Callable[[], bytes]] = {
    "authority": new_authority,
    "webhook-signing-key": make_signing_key,
    "token-secret": partial(random.token_bytes, 32),
}


def secrets_in(database: Database, data: Path) -> Secrets:
    """The secrets in the store, of which the folder `data` may hold what an earlier version made."""
    authority = left_authority(data)
    return Secrets(database, MAKERS, left={} if authority is None else {"authority": authority})


async def node_certificate(settings: Settings, secrets: Secrets) -> Certificate:
    """The certificate of a server with these settings, made or renewed if need be.

    Raises: StoreError.
    """
    names = covered_names(settings)
    await secrets.amend("authority", partial(permitting, names=names))
    current, known = secrets.current("authority"), secrets.known("authority")
    return await asyncio.to_thread(ensure_certificate, settings.data, current, known=known, names=names)


async def client_certificate(settings: Settings) -> Certificate:
    """The certificate that clients of the server with these settings meet: what it has made, or made on the spot.

    Raises: StoreError.
    """
    found = certificate_in(settings.data)
    if found.made:
        return found
    database = await asyncio.to_thread(open_database, settings.data, url=settings.database_url)
    try:
        secrets = secrets_in(database, settings.data)
        await secrets.load()
        return await node_certificate(settings, secrets)
    finally:
        await database.close()


def covers(found: Certificate, host: str) -> bool:
    """Whether the certificate is good for a server that is called `host`."""
    certificate = x509.load_pem_x509_certificate(found.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    try:
        return ip_address(host.strip("[]")) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        return host.lower() in names.get_values_for_type(x509.DNSName)
