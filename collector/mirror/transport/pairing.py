"""TLS 1.3 with mutual authentication between two machines that share only a pairing code.

The receiver generates the code, 128 random bits, and a person carries it to the sender. Both derive the same
certificate authority from it, which signs a fresh key of each end, as receiver or as sender. So TLS itself
verifies that the peer knows the code, in both directions, and each mirror has its own code.
"""

from __future__ import annotations

import base64
import datetime
import os
import re
import secrets
import ssl
from typing import TYPE_CHECKING

from redirty.collector.errors import RedirtyError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RECEIVER, SENDER = "redirty-receiver", "redirty-sender"
_BYTES = 16
_AUTHORITY = "redirty-pair"
# Only the code decides, not the clock, which may be wrong at either end.
_FROM, _UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(2100, 1, 1)


def new_code() -> str:
    """Generate a code for people: 26 letters and digits, in groups."""
    text = base64.b32encode(secrets.token_bytes(_BYTES)).decode().rstrip("=").lower()
    return "-".join(re.findall(".{1,7}", text))


def parse_code(text: str) -> bytes:
    """Parse a code; case, spaces and hyphens do not matter.

    Raises:
        RedirtyError: not a valid code.
    """
    letters = re.sub(r"[\s-]", "", text).upper()
    try:
        code = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except ValueError:
        code = b""
    if len(code) != _BYTES:
        raise RedirtyError("invalid code: redirty receive generates codes of 26 letters and digits")
    return code


def _derived(code: bytes, purpose: bytes, size: int) -> bytes:
    """Return bytes that only who knows the code can compute, and that do not tell the code."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), size, salt=None, info=purpose).derive(code)


def _key_of(code: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_derived(code, b"redirty mirror authority 1", 32))


def hint(code: bytes) -> bytes:
    """Return what a sender has in its first TLS record (as ALPN protocol), in the clear.

    A receiver keeps a place for who has it while strangers crowd in. It proves nothing: who can read
    the network can repeat it.
    """
    return b"redirty-" + _derived(code, b"redirty mirror hint 1", 16).hex().encode()


def _certificate(
    subject: str, key: Ed25519PrivateKey, signer: Ed25519PrivateKey, serial: int
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    authority = subject == _AUTHORITY
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(_AUTHORITY))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(authority, 0 if authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(_usage(authority=authority), critical=True)
    )
    if not authority:
        server = ExtendedKeyUsageOID.SERVER_AUTH
        usage = server if subject == RECEIVER else ExtendedKeyUsageOID.CLIENT_AUTH
        names = x509.SubjectAlternativeName([x509.DNSName(subject)])
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, None)


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def context(code: bytes, role: str) -> ssl.SSLContext:
    """Make the TLS context of one end: TLS 1.3 only, and the peer has to prove that it knows the code.

    Args:
        code: the pairing code.
        role: RECEIVER or SENDER.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    signer, own = _key_of(code), Ed25519PrivateKey.generate()
    authority = _certificate(_AUTHORITY, signer, signer, 1)
    certificate = _certificate(role, own, signer, secrets.randbits(64) + 2)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if role == RECEIVER else ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.check_hostname = role == SENDER
    if role == SENDER:
        tls.set_alpn_protocols([hint(code).decode()])
    if role == RECEIVER:
        tls.num_tickets = 0  # no resumption: each connection proves it again
    tls.load_verify_locations(cadata=authority.public_bytes(Encoding.PEM).decode())
    # Python loads keys from files only: use one in memory, which no other user can open.
    fd = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        key = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        os.write(fd, key + certificate.public_bytes(Encoding.PEM))
        tls.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return tls
