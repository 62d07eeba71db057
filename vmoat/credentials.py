"""The host's docker logins, for pulls and builds in a VM.

A VM holds no store of logins.  docker in the guest asks its credential helper
(``templates/docker-credential-vmoat``), which asks here over a Unix socket that the ssh master
carries into the guest.  One question names one server and gets that server's login or none; there
is no question that lists.  What is answered is read or made for the question and kept nowhere: no
file, log or argument list holds it, and what a helper on the host says goes no further than
whether it worked.

The protocol is one line each way, UTF-8: ``get SERVER``, then ``ok JSON`` (an object with
ServerURL, Username and Secret, as docker's helpers print it), ``none``, or ``error WHAT``.

Where docker looks for a login (github.com/docker/cli, cli/config): ``credHelpers`` names a helper
for one server, ``credsStore`` one for all others; without either, ``auths`` holds the login itself.
Docker Hub goes by ``https://index.docker.io/v1/``, every other registry by its host and port.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from vmoat import proc
from vmoat.dockercontext import config_folder
from vmoat.errors import VmoatError
from vmoat.unixserver import LineServer

GUEST_SOCKET = "/run/vmoat/user/credentials"
"""Where the guest's helper looks.  The folder is the guest user's alone (0700, made at boot), so
the forward goes over the user's master: sshd then makes the socket that user's, 0600."""

HUB = "https://index.docker.io/v1/"
"""docker's name for Docker Hub."""
HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
API_ROOTS = ("", "/", "/v1", "/v1/", "/v2", "/v2/")

HELPER_LIMIT = 20.0
"""Seconds for a helper on the host: a store that is open answers in one; one that waits for a
password on a screen that nobody looks at must not hold a build for ever."""
HOLD_OFF = 10.0
"""Seconds in which a helper that hung is not asked again: BuildKit asks five times in a row
(tried), and would wait as often."""
AT_ONCE = 16
"""Questions at once: each may start a program on the host, and the guest decides how many come."""
CONFIG_LIMIT = 4 << 20
"""Bytes of a config.json that is read."""

NOT_FOUND = "credentials not found in native keychain"
"""What a helper prints, ending with 1, where it knows no login
(github.com/docker/docker-credential-helpers, credentials/error.go)."""
TOKEN_USER = "<token>"
"""The user name that says that the secret is an identity token (docker/cli, native_store.go)."""

_SERVER = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-~]*)?"
)
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Login(NamedTuple):
    """A user name and its password or token."""

    username: str
    secret: str

    def __repr__(self) -> str:
        """Without the secret: a login may end up in a traceback or a failed assertion."""
        return f"Login({self.username!r}, …)"


class _AskError(Exception):
    """Why there is no answer, in words for docker's user in the guest."""


class _HungError(Exception):
    """A helper did not end in time."""


def canonical(server: str) -> str:
    """The name that docker knows a registry by: ``HUB``, or host and port in small letters.

    "" for what names no registry, and for the other entries that docker keeps of Docker Hub
    (``…/v1/refresh-token``): a token of the whole account is no login to a registry.
    """
    match = _SERVER.fullmatch(server.strip().lower())
    if match is None:
        return ""
    host, port, path = match["host"], match["port"] or "", match["path"] or ""
    if port == ("80" if match["scheme"] == "http" else "443"):
        port = ""
    if host in HUB_HOSTS and not port:
        return HUB if path in API_ROOTS else ""
    return f"{host}:{port}" if port else host


@dataclass(frozen=True)
class Credentials:
    """The logins of the user whose environment this is.

    ``registries`` are patterns (``ghcr.io``, ``*.example.com``, ``*``) of what is served.
    ``folder`` is docker's config folder: by default ``$DOCKER_CONFIG``, else ``~/.docker``.  It is
    read at each question, so a ``docker login`` on the host holds at once.
    """

    registries: Sequence[str] = ("*",)
    folder: Path = field(default_factory=lambda: config_folder(os.environ))
    helper_limit: float = HELPER_LIMIT
    _hung: dict[str, float] = field(default_factory=dict, compare=False, repr=False)
    """Helper -> until when it is left alone."""

    def answer(self, question: str) -> str:
        """The line that answers a line; never raises."""
        command, _, server = question.strip().partition(" ")
        if command != "get":
            return "error vmoat on the host does not know this question"
        try:
            login = self.login(server)
        except _AskError as failed:
            return f"error {failed}"
        except Exception as error:  # its text may hold anything; its name does not
            return f"error vmoat on the host failed ({type(error).__name__})"
        if login is None:
            return "none"
        return "ok " + json.dumps(
            {"ServerURL": server.strip(), "Username": login.username, "Secret": login.secret}
        )

    def login(self, server: str) -> Login | None:
        """The host's login to a server; None where it has none or may not be served."""
        name = canonical(server)
        if not name or not self.serves(name):
            return None
        config = _read(self.folder / "config.json")
        helper = _helper_for(name, config)
        if not helper:
            return _from_auths(name, config)
        return self._from_store(helper, name, _spellings(name, config))

    def _from_store(self, helper: str, name: str, spellings: Iterable[str]) -> Login | None:
        if time.monotonic() >= self._hung.get(helper, 0):
            try:
                for spelling in dict.fromkeys((name, *spellings)):
                    login = _ask(helper, spelling, name, self.helper_limit)
                    if login is not None:
                        return login
                return None
            except _HungError:
                self._hung[helper] = time.monotonic() + HOLD_OFF
        raise _AskError(
            f"docker-credential-{helper} on the host gave no answer within "
            f"{self.helper_limit:g} s; it may be waiting for a password: unlock it, "
            f"or {_cure(name)}"
        )

    def serves(self, name: str) -> bool:
        """Whether the settings let this registry be served; ``docker.io`` stands for the Hub."""
        names = (name, "docker.io") if name == HUB else (name,)
        patterns = [canonical(text) or text.strip().lower() for text in self.registries]
        return any(fnmatchcase(one, pattern) for one in names for pattern in patterns)

    def serve(self, path: Path) -> Server:
        """Answer on a Unix socket, 0600, in threads of this process until it is closed.

        A socket that a dead process left there is replaced.  Raises OSError where it can't be made.
        """
        return Server(path, self.answer)


def _read(path: Path) -> dict[str, object]:
    try:
        with open(path, "rb") as stream:
            data = stream.read(CONFIG_LIMIT)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _AskError(f"docker's config on the host cannot be read ({error.strerror})") from None
    try:
        config = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise _AskError("docker's config on the host is no JSON: mend its config.json") from None
    return config if isinstance(config, dict) else {}


def _table(config: Mapping[str, object], key: str) -> dict[str, object]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _spellings(name: str, config: Mapping[str, object]) -> Iterator[str]:
    """How the config writes this server: a login of an old docker may stand under a URL."""
    for key in ("credHelpers", "auths"):
        yield from (server for server in _table(config, key) if canonical(server) == name)


def _helper_for(name: str, config: Mapping[str, object]) -> str:
    """The helper's short name (``pass``), or "": an empty entry stands for the file itself."""
    own = {canonical(key): value for key, value in _table(config, "credHelpers").items()}
    found = own.get(name, config.get("credsStore", ""))
    if not isinstance(found, str) or (found and not _HELPER.fullmatch(found)):
        raise _AskError("docker's config on the host names no usable credential helper")
    return found


def _from_auths(name: str, config: Mapping[str, object]) -> Login | None:
    auths = _table(config, "auths")
    for key in (name, *_spellings(name, {"auths": auths})):
        entry = auths.get(key)
        login = _entry(entry, name) if isinstance(entry, dict) else None
        if login is not None:
            return login
    return None


def _entry(entry: Mapping[str, object], name: str) -> Login | None:
    token, auth = entry.get("identitytoken"), entry.get("auth")
    if isinstance(token, str) and token:
        return Login(TOKEN_USER, token)
    username, secret = entry.get("username"), entry.get("password")
    if isinstance(auth, str) and auth:
        try:
            text = base64.b64decode(auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            what = f"the host's login to {_shown(name)} is damaged"
            raise _AskError(f"{what}: {_cure(name)}") from None
        username, _, secret = text.partition(":")
        secret = secret.strip("\0")  # as docker does
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        return None
    return Login(username, secret)


def _ask(helper: str, server: str, name: str, limit: float) -> Login | None:
    """What a helper of the host knows; nothing of what it printed goes into an error."""
    program = f"docker-credential-{helper}"
    if proc.which(program) is None:
        raise _AskError(f"{program} is not installed on the host, and its docker config names it")
    try:
        done = proc.run(
            [program, "get"], input=server, timeout=limit, check=False, quiet=True, cwd="/",
            # gpg must not ask for a passphrase in a terminal in which the user does something else
            env={"GPG_TTY": ""},
        )  # fmt: skip
    except OSError as error:
        raise _AskError(f"{program} on the host cannot be run ({error.strerror})") from None
    except VmoatError:
        raise _HungError from None
    if done.rc != 0:
        if done.out.strip() == NOT_FOUND:
            return None
        what = f"{program} on the host failed (exit code {done.rc})"
        raise _AskError(f"{what}: unlock its store, or {_cure(name)}")
    try:
        answer = json.loads(done.out)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        username = secret = None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise _AskError(f"{program} on the host answered with no login: {_cure(name)}")
    return Login(username, secret) if secret else None


def _shown(name: str) -> str:
    return "Docker Hub" if name == HUB else name


def _cure(name: str) -> str:
    return "run `docker login` on the host" if name == HUB else f"run `docker login {name}` there"


class Server(LineServer):
    """Answers questions on a socket, so many at once; see ``Credentials.serve``."""

    poll = 0.1

    def __init__(self, place: Path, answer: Callable[[str], str]) -> None:
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._closing = False
        super().__init__(place, answer)

    def process_request(self, request: object, client_address: object) -> None:
        """A thread for each question while there are few; more wait in the socket's queue."""
        while not self._free.acquire(timeout=0.2):
            if self._closing:
                self.shutdown_request(request)  # type: ignore[arg-type]
                return
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._free.release()

    def close(self) -> None:
        self._closing = True
        super().close()
