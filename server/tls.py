"""A certificate for fal's names and the server's own, signed by a small authority of our own, made at first start.

The authority may only sign for fal's names, for addresses of private networks, and for what the server was told that
it is called, so trusting it gives nothing else away. It stands in the store, so that a client that trusts it trusts
every node; each node has a certificate of its own in its data folder.
"""

import datetime as dt
import fcntl
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.egress import PRIVATE

DOMAINS = ("localhost", "fal.run", "falrun.com", "fal.ai", "fal.media")
AUTHORITY_DAYS = 3650
# why: browsers refuse longer ones
CERTIFICATE_DAYS = 397
RENEW_DAYS = 30


@dataclass(frozen=True, slots=True)
class Certificate:
    """Where the certificate, its key, and the authority's certificate lie."""

    certificate: Path
    key: Path
    authority: Path
    """More than one authority, while one is turned over."""
    bundle: Path
    """certifi's authorities and ours, for clients that take only one file."""

    @property
    def made(self) -> bool:
        """Whether all of them are there."""
        return all(path.exists() for path in (self.certificate, self.key, self.authority, self.bundle))


def certificate_in(data: Path) -> Certificate:
    """Where the certificate of the folder `data` lies, made or not."""
    folder = data / "tls"
    return Certificate(folder / "server.pem", folder / "server.key", folder / "ca.pem", folder / "bundle.pem")


def left_authority(data: Path) -> bytes | None:
    """The authority that an earlier version left in the folder `data`, if one did: key and certificate as PEM."""
    key, certificate = data / "tls" / "ca.key", data / "tls" / "ca.pem"
    if not (key.exists() and certificate.exists()):
        return None
    return key.read_bytes() + certificate.read_bytes()


def new_authority() -> bytes:
    """A new authority: key and certificate as PEM."""
    signer = ec.generate_private_key(ec.SECP256R1())
    return _pem(signer) + _public(_authority(signer, _allowed()))


def permitting(authority: bytes, *, names: Sequence[str]) -> bytes:
    """`authority`, made anew with the same key if it may not sign for all of `names` so far."""
    certificate = x509.load_pem_x509_certificate(authority)
    limits = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    allowed = list(limits.permitted_subtrees or ())
    if all(_permits(allowed, name) for name in names):
        return authority
    allowed += [subtree for subtree in _allowed() if subtree not in allowed]
    allowed += [_subtree(name) for name in names if not _permits(allowed, name)]
    signer = _signer(authority)
    return _pem(signer) + _public(_authority(signer, allowed))


def ensure_certificate(data: Path, authority: bytes, *, known: Sequence[bytes], names: Sequence[str]) -> Certificate:
    """The certificate for `names` in the folder `data`, made or renewed by `authority` if need be.

    `known` are the authorities that clients are to trust.
    """
    found = certificate_in(data)
    folder = found.certificate.parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signed_by = x509.load_pem_x509_certificate(authority)
    public = b"".join(_public(x509.load_pem_x509_certificate(one)) for one in known)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_current(found, signed_by, names):
            _make(found, _signer(authority), signed_by, names)
        if not found.authority.exists() or found.authority.read_bytes() != public:
            _write(found.authority, public)
        # why: it is in the store now, and a copy would only be one more to lose
        (folder / "ca.key").unlink(missing_ok=True)
        bundle = Path(certifi.where()).read_text("utf-8") + "\n# ltxd\n" + found.authority.read_text("utf-8")
        if not found.bundle.exists() or found.bundle.read_text("utf-8") != bundle:
            _write(found.bundle, bundle.encode())
    return found


def ssl_context(certificate: Certificate) -> ssl.SSLContext:
    """What a server needs to speak with `certificate`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def _is_current(found: Certificate, authority: x509.Certificate, names: Sequence[str]) -> bool:
    if not (found.certificate.exists() and found.key.exists()):
        return False
    certificate = x509.load_pem_x509_certificate(found.certificate.read_bytes())
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, InvalidSignature):
        return False
    left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
    covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return left.days >= RENEW_DAYS and set(covered) == {_general(name) for name in names}


def _make(
    found: Certificate, signer: ec.EllipticCurvePrivateKey, authority: x509.Certificate, names: Sequence[str]
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("ltxd", key.public_key(), days=CERTIFICATE_DAYS)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    _write(found.key, _pem(key))
    _write(found.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _authority(key: ec.EllipticCurvePrivateKey, allowed: Sequence[x509.GeneralName]) -> x509.Certificate:
    signs = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder("ltxd local authority", key.public_key(), days=AUTHORITY_DAYS)
    return (
        builder.issuer_name(_name("ltxd local authority"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=allowed, excluded_subtrees=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(name: str, key: ec.EllipticCurvePublicKey, *, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _allowed() -> list[x509.GeneralName]:
    return [*(x509.DNSName(name) for name in DOMAINS), *(x509.IPAddress(network) for network in PRIVATE)]


def _permits(allowed: Sequence[x509.GeneralName], name: str) -> bool:
    wanted = _general(name)
    if isinstance(wanted, x509.IPAddress):
        networks = [one.value for one in allowed if isinstance(one.value, IPv4Network | IPv6Network)]
        return any(wanted.value in network for network in networks)
    domains = [one.value for one in allowed if isinstance(one, x509.DNSName)]
    return any(name == domain or name.endswith(f".{domain}") for domain in domains)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _subtree(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_network(name))
    except ValueError:
        return x509.DNSName(name)


def _signer(authority: bytes) -> ec.EllipticCurvePrivateKey:
    signer = serialization.load_pem_private_key(authority, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority in the store was not made by ltxd")
    return signer


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.touch(mode=0o600)
    partial.chmod(0o600)
    partial.write_bytes(content)
    partial.replace(path)
