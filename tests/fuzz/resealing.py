"""Sealing what was damaged, so that a reader looks behind the checksum."""

from rayprep.base.sealed import digest


def resealed(content: bytes) -> bytes:
    """A JSON object's text with a checksum that fits, where it ends as one does."""
    body, brace, _ = content.rpartition(b"}")
    body = body.rstrip()
    if not brace or body[-1:] in (b"", b"{", b","):
        return content
    return b'%b,"checksum":"%b"}\n' % (body, digest(body).encode())
