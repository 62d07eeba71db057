"""The arguments of a browser for which localhost is the VM; pure functions of data.

Facts: Chromium never sends loopback addresses to a proxy unless ``<-loopback>`` stands in its
bypass list, and has a SOCKS5 proxy resolve all names (net/docs/proxy.md).  WebRTC goes past every
proxy by UDP unless its policy says otherwise.  As root it starts only with ``--no-sandbox``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

VIEWPORT = (1280, 800)


def proxy_url(port: int) -> str:
    return f"socks5://127.0.0.1:{port}"


def network(port: int) -> list[str]:
    """All of its connections are the VM's."""
    return [
        f"--proxy-server={proxy_url(port)}",
        "--proxy-bypass-list=<-loopback>",
        "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    ]


def common(port: int, *, root: bool) -> list[str]:
    """What every such browser is given, whoever starts it."""
    return [*network(port), *(["--no-sandbox"] if root else [])]


def window(port: int, profile: Path, *, root: bool) -> list[str]:
    """For a person: a window with a profile of its own, without first-run questions.

    ``--password-store=basic``: a profile that goes with its VM keeps nothing in the keyring.
    """
    return [
        *common(port, root=root),
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--no-default-browser-check",
        "--password-store=basic",
    ]


def headless(port: int, profile: Path, *, root: bool) -> list[str]:
    """For a screenshot: no window, talked to over a pipe, and nothing that it does by itself."""
    return [
        *window(port, profile, root=root),
        "--headless=new",
        "--remote-debugging-pipe",
        "--use-mock-keychain",
        "--disable-background-networking",
        "--disable-breakpad",
        "--disable-component-update",
        "--disable-crash-reporter",
        "--disable-default-apps",
        "--disable-extensions",
        "--disable-sync",
        "--hide-scrollbars",
        "--mute-audio",
    ]


def devtools_mcp(port: int, command: Sequence[str], *, root: bool, display: bool) -> list[str]:
    """For the Chrome DevTools MCP server (chrome-devtools-mcp 1.11), as words without blanks.

    ``command`` is the browser, or empty; one whose path has blanks (macOS) is left for the server
    to find, since these words are to survive a shell's ``$(…)``.
    """
    words = ["--isolated", "--no-usage-statistics", "--no-performance-crux"]
    if command and not any(c.isspace() for c in command[0]):
        words += ["--executablePath", command[0]]
    if not display:
        words.append("--headless")
    return words + [f"--chromeArg={word}" for word in (*command[1:], *common(port, root=root))]
