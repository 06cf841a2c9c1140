"""Signs webhooks as fal does, and publishes the key they are checked with.

Source: fal's documentation, page "Webhooks", section on verifying a webhook's signature.
"""

import base64
import hashlib
import time
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.shared import Secrets


def make_signing_key() -> bytes:
    """A new private key, as its 32 bytes."""
    raw, none = serialization.Encoding.Raw, serialization.NoEncryption()
    return Ed25519PrivateKey.generate().private_bytes(raw, serialization.PrivateFormat.Raw, none)


class Signer:
    """Signs with the key of the time, and publishes those that it signed with or is going to."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def headers(self, body: bytes, *, request_id: str, user_id: str) -> dict[str, str]:
        """The headers that show that `body` comes from here, and when."""
        timestamp = str(int(time.time()))
        key = Ed25519PrivateKey.from_private_bytes(self._secrets.current("webhook-signing-key"))
        signed = "\n".join([request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()])
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": user_id,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": key.sign(signed.encode()).hex(),
        }

    def jwks(self) -> dict[str, Any]:
        """The public keys as a set of JSON web keys."""
        return {"keys": [_public(private) for private in self._secrets.known("webhook-signing-key")]}


def _public(private: bytes) -> dict[str, str]:
    public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    # why: RFC 7517 wants no padding, but fal's own Python example cannot read a key without; others read both
    x = base64.urlsafe_b64encode(public).decode()
    key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "x": x}
    return key | {"kid": hashlib.sha256(public).hexdigest()[:16]}
