"""Who is answered: a pure function of a request's head, before anything else is done with it.

The page shows what runs on this machine and starts commands, and any web page that the user visits
can send requests to the loopback.  So a request needs all of:

- a ``Host`` that is the loopback's: a name that was rebound to 127.0.0.1 (DNS rebinding) is not;
- an ``Origin`` that is ours, where there is one, and ``Sec-Fetch-Site`` (W3C Fetch Metadata) that
  says so.  "same-site" is not enough: sites don't know ports, and a worktree's own page behind a
  tunnel is one port away;
- the cookie, which is given once for the token or for a ticket in the first page's URL;
- for facts and for buttons, also the page's secret.  A browser sends a cookie to every port of its
  host, so a worktree's own server, opened as 127.0.0.1, is told ours.  What a page stores is shared
  by its own port alone (HTML standard, 12.2: storage is partitioned by origin).

``server`` asks besides whose connection it is: a URL with the token or a ticket may be read by
others, in a browser's command line or over a shoulder.  ``tickets`` keeps it out of the former.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qs, urlsplit


class Verdict(Enum):
    """What to do with a request."""

    REFUSE = "refuse"
    """403 and nothing else: no body, no facts."""
    WELCOME = "welcome"
    """The first page: give the cookie."""
    SERVE = "serve"


GUARDED = ("/events", "/act")
"""What tells facts, or does something; the rest is the page's own files."""


@dataclass(frozen=True)
class Gate:
    """The secrets of one dashboard.

    ``redeem`` says whether a word is a ticket that was not used yet, and uses it up.
    """

    port: int
    redeem: Callable[[str], bool] = lambda word: False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    page: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        """The first page's URL.  By number: what tunnels call ``localhost`` never gets our cookie.

        A host's cookies go to all of its ports.
        """
        return self.url_with(self.token)

    def url_with(self, word: str) -> str:
        return f"http://127.0.0.1:{self.port}/?token={word}"

    @property
    def cookie_name(self) -> str:
        """One for each port: two users' dashboards would overwrite each other's."""
        return f"vmoat-{self.port}"

    @property
    def cookie(self) -> str:
        """``Set-Cookie`` of the first page; it ends with the browser."""
        return f"{self.cookie_name}={self.session}; Path=/; HttpOnly; SameSite=Strict"

    def judge(self, method: str, target: str, headers: Mapping[str, str]) -> Verdict:
        """What is due to a request; ``headers`` have lower-case names, and no name twice."""
        names = {"127.0.0.1", "localhost"}
        hosts = {f"{name}:{self.port}" for name in names}
        if self.port == 80:  # which a browser leaves out
            hosts |= names
        host = headers.get("host", "")
        if host not in hosts or method not in ("GET", "POST"):
            return Verdict.REFUSE
        if not target.startswith("/") or target.startswith("//"):  # names a host of its own
            return Verdict.REFUSE
        parts = urlsplit(target)
        if method == "GET" and parts.path == "/" and parts.query:
            return self._welcome(parts.query, headers)
        if not self._same_origin(method, parts.path, host, headers):
            return Verdict.REFUSE
        if not self._has_cookie(headers.get("cookie", "")):
            return Verdict.REFUSE
        known = parts.path not in GUARDED or self._has_page(parts.query)
        return Verdict.SERVE if known else Verdict.REFUSE

    def _has_page(self, query: str) -> bool:
        words = parse_qs(query).get("page", [])
        return len(words) == 1 and _same(words[0], self.page)

    def _welcome(self, query: str, headers: Mapping[str, str]) -> Verdict:
        """A person may come from a terminal or another page; a script or a frame may not."""
        if headers.get("sec-fetch-dest", "document") != "document" or "origin" in headers:
            return Verdict.REFUSE
        words = parse_qs(query).get("token", [])
        if len(words) != 1:
            return Verdict.REFUSE
        known = _same(words[0], self.token) or self.redeem(words[0])
        return Verdict.WELCOME if known else Verdict.REFUSE

    @staticmethod
    def _same_origin(method: str, path: str, host: str, headers: Mapping[str, str]) -> bool:
        origin = headers.get("origin")
        if origin is None and method == "POST":
            return False
        if origin is not None and origin != f"http://{host}":
            return False
        # "none": typed, or a bookmark; only a page is opened so.
        allowed = ("same-origin", "none") if path == "/" else ("same-origin",)
        return headers.get("sec-fetch-site", "same-origin") in allowed

    def _has_cookie(self, header: str) -> bool:
        # By hand: http.cookies drops all of them where one, of any program that was ever served
        # from 127.0.0.1, is not to its taste.
        pairs = (pair.strip().partition("=") for pair in header.split(";"))
        return any(
            name == self.cookie_name and _same(value, self.session) for name, _, value in pairs
        )


def _same(word: str, secret: str) -> bool:
    return secrets.compare_digest(word.encode("utf-8", "replace"), secret.encode())
