"""What is read out of registry requests and answers; pure.

Sources: the OCI distribution specification 1.1 (paths, digests, tags), RFC 9110 section 14
(ranges), the OCI image specification on a manifest's ``mediaType``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message

MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest: the least that the specification has registries take, and Docker's most."""

VERSION_HEADER = ("Docker-Distribution-API-Version", "registry/2.0")

_DOCKER = "application/vnd.docker.distribution.manifest"
_OCI = "application/vnd.oci.image"
_TYPES = {
    f"{_DOCKER}.v2+json": "layers",
    f"{_DOCKER}.list.v2+json": "manifests",
    f"{_OCI}.manifest.v1+json": "layers",
    f"{_OCI}.index.v1+json": "manifests",
}
"""Media type -> the field that a manifest of it has, and no other type does."""

_CONTENT = re.compile(
    r"/v2/(?P<name>[a-z0-9][a-z0-9._/-]*)/(?P<kind>blobs|manifests)/(?P<reference>[^/?#]+)(?:\?.*)?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")

HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
    )
)
"""Header fields that belong to one connection (RFC 9110, 7.6.1)."""


@dataclass(frozen=True)
class Asked:
    """A request for a blob or manifest; one of ``digest`` and ``tag`` is set."""

    kind: str
    name: str
    digest: str = ""
    tag: str = ""


def content_asked(path: str) -> Asked | None:
    """What of the registry's content a path names; None for all other paths."""
    found = _CONTENT.fullmatch(path)
    if found is None:
        return None
    kind, name, reference = found["kind"], found["name"], found["reference"]
    reference = re.sub("%3a", ":", reference, count=1, flags=re.IGNORECASE)
    if _DIGEST.fullmatch(reference):
        return Asked(kind, name, digest=reference)
    if kind == "manifests" and _TAG.fullmatch(reference):
        return Asked(kind, name, tag=reference)
    return None


def is_ping(path: str) -> bool:
    """Whether the path asks for nothing but whether there is a registry, and for a challenge."""
    return path in ("/v2/", "/v2")


class Unsatisfiable(ValueError):  # noqa: N818  (RFC 9110's own word)
    """A range that begins behind the end."""


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; None where the whole is to be sent.

    Several ranges at once are answered with the whole, which RFC 9110 allows.  Raises
    Unsatisfiable.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or (not found[1] and not found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        if not length:
            raise Unsatisfiable(header)
        return size - length, size - 1
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        return None  # no range at all
    if first >= size:
        raise Unsatisfiable(header)
    return first, last


def open_range(header: str) -> bool:
    """Whether the range goes to the end (``bytes=100-``), as dockerd's resumed downloads do."""
    found = _RANGE.fullmatch(header.strip())
    return bool(found and found[1] and not found[2])


def manifest_type(data: bytes) -> str:
    """The media type that a manifest's own content says; "" where it is not certain.

    From the content alone: what a registry's header says of it could mislead another VM into
    reading one kind of manifest as another (CVE-2021-41190).
    """
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(manifest, dict):
        return ""
    fields = [name for name in ("layers", "manifests") if name in manifest]
    if len(fields) != 1 or "fsLayers" in manifest:
        return ""
    said = manifest.get("mediaType", "")
    if said:
        return said if isinstance(said, str) and _TYPES.get(said) == fields[0] else ""
    return f"{_OCI}.manifest.v1+json" if fields[0] == "layers" else f"{_OCI}.index.v1+json"


def bare_type(header: str | None) -> str:
    """A Content-Type without its parameters."""
    return (header or "").partition(";")[0].strip().lower()


def accepts(headers: Message, media_type: str) -> bool:
    """Whether a request's Accept fields allow this media type (RFC 9110, 12.5.1; none: all)."""
    fields = headers.get_all("Accept") or []
    wanted = {bare_type(part) for field in fields for part in field.split(",")} - {""}
    return not wanted or bool(wanted & {media_type, "*/*", media_type.partition("/")[0] + "/*"})


def end_to_end(headers: Iterable[tuple[str, str]], *, leave_out: str = "") -> list[tuple[str, str]]:
    """The header fields that go on to the other side; ``leave_out`` are more names, spaced."""
    pairs = list(headers)
    named = {
        word.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for word in value.split(",")
    }
    dropped = HOP_BY_HOP | named | set(leave_out.lower().split())
    return [(name, value) for name, value in pairs if name.lower() not in dropped]


def looks_like_registry(status: int, headers: Message) -> bool:
    """Whether an answer to ``GET /v2/`` without credentials is a registry's.

    The version header is what Distribution, Docker Hub, ghcr, quay, ECR and GCR send; the others
    challenge with a token server, or lead on to another ``/v2/`` as registry.k8s.io does.
    """
    if headers.get(VERSION_HEADER[0], "").lower().startswith("registry/2"):
        return True
    if status == 401:
        challenge = headers.get("WWW-Authenticate", "").lower()
        return challenge.startswith("bearer ") and "realm=" in challenge and "service=" in challenge
    if status in (301, 302, 307, 308):
        return re.fullmatch(r"(https?://[^/]+)?/v2/?", headers.get("Location", "")) is not None
    return False
