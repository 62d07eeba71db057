"""Which page is meant: a service, a port, a path or a URL, as it stands inside the VM."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from vmoat import channels, tunnels
from vmoat.context import Context
from vmoat.errors import Code, VmoatError

TLS = frozenset({443, 8443})
SERVICE = r"[A-Za-z0-9][\w.-]*"
"""Names of compose's services and of containers; the rest of a text that is no URL is a slip."""
ASK_LIMIT = 2.0
"""Seconds for a port to say that it speaks HTTP."""


def url_of(ctx: Context, text: str | None) -> str:
    """The URL that is meant; None means the health URL's origin, else the first HTTP service's.

    Raises USAGE for a service that there is not, STAGE where nothing is published at all.
    """
    if text is None:
        return checked(_origin(ctx) + "/")
    if url := said(text):
        return url
    if text.startswith("/"):
        return checked(_origin(ctx) + text)
    return _service(ctx, text) + "/"


def said(text: str) -> str:
    """The URL that the words alone name; "" for a /path and a service, which a VM has to complete.

    Raises USAGE where they can name no page in any VM.
    """
    if text.startswith("/"):
        checked("http://localhost" + text)
        return ""
    if "://" in text:
        return checked(text)
    if text.isdecimal():
        return _address(tunnels.parse_port(text)[0]) + "/"
    if re.match(r"[\w.-]+:\d+(/|$)|localhost(/|$)|127\.0\.0\.1(/|$)", text):
        return checked(f"http://{text}" + ("" if "/" in text else "/"))
    if not re.fullmatch(SERVICE, text):
        raise _no_page(text)
    return ""


def checked(url: str) -> str:
    """The URL, where a browser would make something of it; raises USAGE where none would."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        good = good and not re.search(r"\s", parts.netloc)
    except ValueError:  # a port or an IPv6 address that is none
        good = False
    if not good or re.search(r"[\x00-\x1f\x7f-\x9f]", url):
        raise _no_page(url)
    return url


def _no_page(text: str) -> VmoatError:
    return VmoatError(
        f"{text[:200]!r} is no http or https URL" if text else "the page has an empty name",
        hint="name a service, a port, a /path or a URL as it is inside the VM; without an argument "
        "it is the health URL's site",
        code=Code.USAGE,
    )


def _origin(ctx: Context) -> str:
    health = urlsplit(ctx.settings.health_url or "")
    if health.scheme in ("http", "https") and health.netloc:
        return f"{health.scheme}://{health.netloc}"
    ports = [guest for guest, _, _ in tunnels.wanted(ctx)]
    if not ports:
        raise VmoatError(
            "there is no page to show: no container publishes a port",
            hint="name one: a port, a service or a URL",
        )
    return _address(_speaking(ctx, ports))


def _service(ctx: Context, name: str) -> str:
    facts = ctx.facts()
    found: dict[int, int] = {}
    others: set[str] = set()
    for container in facts.containers if facts else ():
        if name in (container.service, container.name):
            found.update(container.ports)
        elif container.ports:
            others.add(container.service or container.name)
    if not found:
        raise VmoatError(
            f"there is no service `{name}` that publishes a port",
            hint="those that do: " + (", ".join(sorted(others)) or "none") + "; or name a URL",
            code=Code.USAGE,
        )
    port = _speaking(ctx, sorted(found))
    return _address(port, tls=found[port] in TLS)


def _address(port: int, *, tls: bool = False) -> str:
    if tls or port in TLS:
        return "https://localhost" + (f":{port}" if port != 443 else "")
    return "http://localhost" + (f":{port}" if port != 80 else "")


def _speaking(ctx: Context, ports: list[int]) -> int:
    """The first that speaks HTTP; where none says so, the first."""
    if len(ports) > 1:
        for port in ports:
            if _speaks_http(ctx, port):
                return port
    return ports[0]


def _speaks_http(ctx: Context, port: int) -> bool:
    try:
        path = ctx.guest.connection.channel(f"port-{port}", f"localhost:{port}")
        channels.get(path, "/", f"localhost:{port}", body=False, limit=ASK_LIMIT)
    except (OSError, ValueError, VmoatError):
        return False
    return True
