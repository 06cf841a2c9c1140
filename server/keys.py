"""Keys: who may call, and for whom a job is done. A key is `id:secret`; only the digest of the secret is stored."""

from dataclasses import dataclass

from server.records import NOBODY, Sender, WebhookTarget


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key. None as `max_in_flight`: any number of jobs."""

    id: str
    name: str
    max_in_flight: int | None
    private_webhooks: bool
    created: float
    revoked: float | None


def sender_of(key: Key | None, webhook: WebhookTarget | None = None) -> Sender:
    """The sender that a job of `key` is written down for."""
    if key is None:
        return NOBODY if webhook is None else Sender(webhook=webhook)
    return Sender(key.id, key.max_in_flight, webhook)
