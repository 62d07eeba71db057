"""The host's docker logins: who gets which, and that nobody else ever sees one.

The stores of the host are real programs in a PATH of their own; the guest's helper is run by this
machine's perl, with its folders in a temporary one, against the real server.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from timing import until

from vmoat import credentials, proc
from vmoat.config import settings as config
from vmoat.config.settings import HostSize
from vmoat.credentials import HUB, NOT_FOUND, Credentials, Login, canonical
from vmoat.drivers import Owner
from vmoat.drivers.qemu import meta
from vmoat.errors import VmoatError

SECRET = "pa:ss \"w\\ör'd\n2"
ROOT = Path(__file__).parents[2]

Answer = tuple[int, str, str]


def auth(user: str, secret: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


class Host:
    """A host user's docker config and credential stores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "docker"
        self.bin = folder / "bin"
        self.log = folder / "asked"
        for made in (self.folder, self.bin):
            made.mkdir()

    def config(self, **content: object) -> None:
        (self.folder / "config.json").write_text(json.dumps(content))

    def helper(self, name: str, body: str) -> None:
        """A ``docker-credential-NAME``; ``$server`` is what it was asked for."""
        file = self.bin / f"docker-credential-{name}"
        log = f'echo "{name} $1 $server" >>{self.log}'
        file.write_text(f"#!/bin/sh\nserver=$(cat)\n{log}\n{body}\n")
        file.chmod(0o755)

    def knows(self, name: str, server: str, user: str, secret: str) -> None:
        """A helper that knows one login, as the real ones answer."""
        reply = self.bin / f"{name}.json"
        reply.write_text(json.dumps({"ServerURL": server, "Username": user, "Secret": secret}))
        self.helper(
            name, f'[ "$server" = "{server}" ] && exec cat {reply}; echo "{NOT_FOUND}"; exit 1'
        )

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def credentials(self, *registries: str, limit: float = 20) -> Credentials:
        return Credentials(registries or ("*",), self.folder, limit)

    def login(self, server: str) -> Login | None:
        return self.credentials().login(server)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


class Guest:
    """The guest's helper, with the folder that its boot script makes."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.own = self.run / "user"
        self.own.mkdir(parents=True, mode=0o700)
        self.program = folder / "docker-credential-vmoat"
        text = (ROOT / "templates" / "docker-credential-vmoat").read_text()
        assert "'/run/vmoat'" in text
        self.program.write_text(text.replace("'/run/vmoat'", f"'{self.run}'"))
        self.socket = self.own / "credentials"

    def __call__(self, command: str, given: str = "") -> Answer:
        done = subprocess.run(
            ["perl", self.program, command], input=given, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    if not shutil.which("perl"):
        pytest.skip("perl is not installed on this machine")
    return Guest(tmp_path)


@pytest.fixture
def serve(guest: Guest) -> Iterator[Callable[[Credentials], credentials.Server]]:
    made: list[credentials.Server] = []

    def begin(source: Credentials) -> credentials.Server:
        made.append(source.serve(guest.socket))
        return made[-1]

    yield begin
    for server in made:
        server.close()


# -- names --


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://index.docker.io/v1/", HUB),
        ("docker.io", HUB),
        ("index.docker.io", HUB),
        ("registry-1.docker.io", HUB),
        ("https://registry-1.docker.io/v2/", HUB),
        ("ghcr.io", "ghcr.io"),
        ("https://GHCR.io", "ghcr.io"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("ghcr.io:443", "ghcr.io"),
        ("localhost:5000", "localhost:5000"),
        ("http://localhost:5000/v2/", "localhost:5000"),
        ("http://a.example:80", "a.example"),
        ("http://a.example:443", "a.example:443"),
        ("[::1]:5000", "[::1]:5000"),
        ("quay.io/someone", "quay.io"),
        # tokens of a whole account, which docker keeps beside a login to the Hub
        ("https://index.docker.io/v1/refresh-token", ""),
        ("https://index.docker.io/v1/access-token", ""),
        ("", ""),
        ("*", ""),
        ("user@ghcr.io", ""),
        ("ghcr.io ghcr.io", ""),
        ("-option", ""),
        ("../../etc/passwd", ""),
        ("ftp://ghcr.io", ""),
        ("ghcr.io\nget other", ""),
    ],
)
def test_a_registry_has_one_name(text: str, name: str) -> None:
    assert canonical(text) == name


# -- where docker keeps logins --


@pytest.mark.parametrize(
    "entry",
    [
        auth("me", SECRET),
        {"username": "me", "password": SECRET},
        {**auth("me", SECRET), "email": "me@example.org"},
    ],
)
def test_a_login_in_the_file(host: Host, entry: dict[str, str]) -> None:
    host.config(auths={"ghcr.io": entry, "other.example": auth("not", "this")})
    assert host.login("ghcr.io") == ("me", SECRET)
    assert host.login("https://ghcr.io/v2/") == ("me", SECRET)
    assert host.login("ghcr.io:5000") is None
    assert host.login(HUB) is None


def test_a_login_of_an_old_docker_and_of_the_hub(host: Host) -> None:
    host.config(
        auths={
            "https://old.example/v1/": auth("old", "1"),
            HUB: auth("hub", "2"),
            HUB + "refresh-token": auth("hub", "the account's"),
        }
    )
    assert host.login("old.example") == ("old", "1")
    for spelling in (HUB, "docker.io", "registry-1.docker.io"):
        assert host.login(spelling) == ("hub", "2")
    assert host.login(HUB + "refresh-token") is None


def test_an_identity_token(host: Host) -> None:
    """As docker's own helpers hand it on: under the user name <token>."""
    host.config(auths={"a.azurecr.io": {**auth("0000", ""), "identitytoken": "T0KEN"}})
    assert host.login("a.azurecr.io") == ("<token>", "T0KEN")


def test_without_a_config_there_is_no_login(host: Host) -> None:
    assert host.login("ghcr.io") is None
    for content in ("", "[]", "{}", '{"auths": 3}', '{"auths": {"ghcr.io": {}}}'):
        (host.folder / "config.json").write_text(content)
        assert host.login("ghcr.io") is None


def test_the_store_of_all_and_the_helper_of_one(host: Host) -> None:
    host.knows("all", "ghcr.io", "me", SECRET)
    host.knows("one", "1.dkr.ecr.example", "aws", "short-lived")
    host.config(
        credsStore="all",
        credHelpers={"1.dkr.ecr.example": "one", "plain.example": ""},
        auths={"ghcr.io": {}, "plain.example": auth("p", "q")},
    )
    assert host.login("ghcr.io") == ("me", SECRET)
    assert host.login("1.dkr.ecr.example") == ("aws", "short-lived")
    assert host.login("plain.example") == ("p", "q")
    assert host.login("nobody.example") is None
    assert host.asked() == [
        "all get ghcr.io", "one get 1.dkr.ecr.example", "all get nobody.example",
    ]  # fmt: skip


def test_a_store_is_asked_for_a_login_as_the_config_writes_it(host: Host) -> None:
    host.knows("all", "https://old.example/v1/", "me", "x")
    host.config(credsStore="all", auths={"https://old.example/v1/": {}})
    assert host.login("old.example") == ("me", "x")
    assert host.asked() == ["all get old.example", "all get https://old.example/v1/"]


def test_the_users_choice_of_registries_holds(host: Host) -> None:
    servers = ("ghcr.io", "a.corp.example:5000", "b.corp.example", HUB)
    host.config(auths={server: auth("me", "x") for server in servers})

    def served(*registries: str) -> list[str]:
        made = Credentials(registries, host.folder)
        return [server for server in servers if made.login(server)]

    assert served("*") == list(servers)
    assert served("ghcr.io", "docker.io") == ["ghcr.io", HUB]
    assert served("https://index.docker.io/v1/") == [HUB]
    assert served("*.corp.example") == ["b.corp.example"]
    assert served("*.corp.example:*") == ["a.corp.example:5000"]
    assert served() == []


def test_dockers_folder_is_the_one_that_docker_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    assert Credentials().folder == tmp_path / ".docker"
    monkeypatch.setenv("DOCKER_CONFIG", "/elsewhere")
    assert Credentials().folder == Path("/elsewhere")


# -- what goes wrong on the host --


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def said(host: Host, server: str = "ghcr.io", **kw: float) -> str:
    answer = host.credentials(**kw).answer(f"get {server}")
    assert answer.startswith("error ")
    return answer.removeprefix("error ")


@pytest.mark.parametrize(
    "body",
    [
        "echo nonsense",
        "echo []",
        "echo '{}'",
        """echo '{"Username": "me"}'""",
        """echo '{"Username": 3, "Secret": ["x"]}'""",
        "head -c 100000 /dev/zero | tr '\\0' '['",
        "echo 'the secret is hunter2'; exit 3",
        "echo 'hunter2' >&2; exit 1",
        "kill -9 $$",
    ],
)
def test_a_store_that_fails_says_what_to_do_and_nothing_of_its_own(host: Host, body: str) -> None:
    host.helper("odd", body)
    host.config(credsStore="odd")
    text = said(host)
    assert "docker-credential-odd on the host" in text
    assert "`docker login ghcr.io`" in text
    assert "hunter2" not in text


def test_a_store_that_waits_for_a_password_is_ended(host: Host) -> None:
    pid = host.folder / "pid"
    host.helper("asks", f"sleep 777 & echo $! >{pid}.new; mv {pid}.new {pid}; wait")
    host.config(credsStore="asks")
    began = time.monotonic()
    for limit in (0.5, 5, 50):  # until it has come to its question
        text = said(host, limit=limit)
        assert f"no answer within {limit:g} s" in text
        if pid.exists():
            break
    assert time.monotonic() - began < 300
    assert "password" in text
    assert "docker login" in text
    until(lambda: not alive(int(pid.read_text())))


def test_a_store_that_hung_is_left_alone_for_a_while(host: Host) -> None:
    """BuildKit asks five times in a row; the second failure comes at once."""
    gate = host.folder / "gate"
    gate.touch()
    host.knows("asks", "ghcr.io", "me", "x")
    wait = f"while [ -e {gate} ]; do sleep 0.1; done"
    program = host.bin / "docker-credential-asks"
    program.write_text(program.read_text().replace("\n", f"\n{wait}\n", 1))
    host.config(credsStore="asks")
    hung: dict[str, float] = {}
    first = Credentials(("*",), host.folder, 0.5, hung).answer("get ghcr.io")
    assert "no answer within 0.5 s" in first
    gate.unlink()  # it would answer by now
    made = Credentials(("*",), host.folder, 60, hung)
    assert "no answer within" in made.answer("get ghcr.io")
    assert host.asked() == []
    hung["asks"] = time.monotonic()  # the while is over
    assert made.login("ghcr.io") == ("me", "x")


def test_a_store_that_is_not_there(host: Host) -> None:
    host.config(credsStore="gone")
    assert "docker-credential-gone is not installed on the host" in said(host)
    host.config(credsStore="../../bin/sh")
    assert "no usable credential helper" in said(host)
    (host.bin / "docker-credential-broken").write_text("\0")
    (host.bin / "docker-credential-broken").chmod(0o755)
    host.config(credsStore="broken")
    assert "docker-credential-broken on the host" in said(host)


def test_a_config_that_cannot_be_used(host: Host) -> None:
    (host.folder / "config.json").write_text("{")
    assert "mend its config.json" in said(host)
    host.config(auths={"ghcr.io": {"auth": "!"}})
    assert "damaged" in said(host)


def test_odd_questions_get_no_login(host: Host) -> None:
    host.config(auths={"ghcr.io": auth("me", SECRET)})
    made = host.credentials()
    for question in ("", "list", "get", "get *", "GET ghcr.io", "store ghcr.io", "get a b"):
        assert not made.answer(question).startswith("ok"), question


# -- the wire --


def ask(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(4096), b""))


def test_the_socket_is_the_users_alone_and_goes_with_the_server(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = host.credentials().serve(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ask(path, b"get ghcr.io\n") == b"none\n"
    server.close()
    assert not path.exists()


def test_what_is_no_question_gets_no_answer(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = host.credentials().serve(path)
    assert ask(path, b"get " + b"x" * 5000) == b""
    assert ask(path, b"\xff\n").startswith(b"error ")
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(path))
        assert ask(path, b"get ghcr.io\n") == b"none\n"
    server.close()


def test_questions_at_once_do_not_wait_for_a_slow_store(host: Host, tmp_path: Path) -> None:
    gate = host.folder / "gate"
    gate.touch()
    host.helper("slow", f"while [ -e {gate} ]; do sleep 0.05; done; exit 1")
    host.knows("quick", "quick.example", "me", "x")
    host.config(credHelpers={"slow.example": "slow", "quick.example": "quick"})
    path = tmp_path / "socket"
    server = host.credentials(limit=60).serve(path)
    slow = [threading.Thread(target=ask, args=(path, b"get slow.example\n")) for _ in range(3)]
    for thread in slow:
        thread.start()
    until(lambda: len(host.asked()) == 3)
    assert b'"Secret": "x"' in ask(path, b"get quick.example\n")
    gate.unlink()
    for thread in slow:
        thread.join()
    server.close()


def test_more_questions_than_it_answers_at_once_wait_their_turn(
    host: Host, tmp_path: Path
) -> None:
    host.helper("slow", f"sleep 0.2; echo '{NOT_FOUND}'; exit 1")
    host.config(credsStore="slow")
    path = tmp_path / "socket"
    server = host.credentials().serve(path)
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(path, b"get ghcr.io\n")))
        for _ in range(credentials.AT_ONCE * 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"none\n"] * len(threads)
    server.close()


def test_closing_does_not_wait_for_a_store_that_hangs(host: Host, tmp_path: Path) -> None:
    gate = host.folder / "gate"
    gate.touch()
    host.helper("hangs", f"while [ -e {gate} ]; do sleep 0.05; done; exit 1")
    host.config(credsStore="hangs")
    path = tmp_path / "socket"
    server = host.credentials(limit=60).serve(path)

    def ask_in_vain() -> None:
        with contextlib.suppress(OSError):
            ask(path, b"get ghcr.io\n")

    threads = [threading.Thread(target=ask_in_vain) for _ in range(credentials.AT_ONCE + 1)]
    for thread in threads:
        thread.start()
    until(lambda: len(host.asked()) == credentials.AT_ONCE)
    server.close()
    gate.unlink()
    for thread in threads:
        thread.join()


# -- the guest's helper --


def test_docker_in_the_guest_gets_the_hosts_login(
    host: Host, guest: Guest, serve: Callable[[Credentials], object]
) -> None:
    host.config(auths={"ghcr.io": auth("me", SECRET), HUB: auth("hub", "x")})
    serve(host.credentials())
    code, out, err = guest("get", "ghcr.io\n")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"ServerURL": "ghcr.io", "Username": "me", "Secret": SECRET}
    assert json.loads(guest("get", HUB)[1])["Username"] == "hub"
    assert guest("get", "other.example") == (1, NOT_FOUND + "\n", "")
    assert guest("get", HUB + "refresh-token") == (1, NOT_FOUND + "\n", "")
    # what it got is nowhere in the guest, and there is no list of what it could get
    assert [file.name for file in guest.own.iterdir()] == ["credentials"]
    assert guest("list") == (0, "{}\n", "")


def test_a_login_made_in_the_guest_comes_first_and_ends_there(
    host: Host, guest: Guest, serve: Callable[[Credentials], object]
) -> None:
    host.config(auths={"ghcr.io": auth("me", SECRET)})
    before = (host.folder / "config.json").read_bytes()
    serve(host.credentials())
    inside = {"ServerURL": "ghcr.io", "Username": "insider", "Secret": SECRET + "€"}
    assert guest("store", json.dumps(inside)) == (0, "", "")
    assert json.loads(guest("get", "ghcr.io")[1]) == inside
    assert json.loads(guest("list")[1]) == {"ghcr.io": "insider"}
    (kept,) = (guest.own / "logins").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert guest("erase", "ghcr.io") == (0, "", "")
    assert guest("list") == (0, "{}\n", "")
    assert json.loads(guest("get", "ghcr.io")[1])["Username"] == "me"
    assert guest("erase", "ghcr.io") == (0, "", "")
    assert (host.folder / "config.json").read_bytes() == before


def test_without_the_host_it_is_as_if_nobody_had_logged_in(guest: Guest) -> None:
    began = time.monotonic()
    assert guest("get", "ghcr.io") == (1, NOT_FOUND + "\n", "")
    with socket.socket(socket.AF_UNIX) as dead:  # what a killed master leaves
        dead.bind(str(guest.socket))
    assert guest("get", "ghcr.io") == (1, NOT_FOUND + "\n", "")
    guest.socket.unlink()
    with socket.socket(socket.AF_UNIX) as closes:  # sshd, where the host's end is gone
        closes.bind(str(guest.socket))
        closes.listen()

        def end() -> None:
            closes.accept()[0].close()

        thread = threading.Thread(target=end)
        thread.start()
        assert guest("get", "ghcr.io") == (1, NOT_FOUND + "\n", "")
        thread.join()
    assert time.monotonic() - began < 60


def test_dockers_user_is_told_what_to_do_on_the_host(
    host: Host, guest: Guest, serve: Callable[[Credentials], object]
) -> None:
    host.helper("asks", "exec sleep 60")
    host.config(credsStore="asks")
    serve(host.credentials(limit=0.5))
    code, out, err = guest("get", "ghcr.io")
    assert code == 1
    for text in (out, err):
        assert "`docker login ghcr.io`" in text


@pytest.mark.parametrize(
    ("command", "given", "answer"),
    [
        ("get", "  \n", "no credentials server URL"),
        ("erase", "", "no credentials server URL"),
        ("store", '{"Username": "u", "Secret": "s"}', "no credentials server URL"),
        ("store", '{"ServerURL": "s", "Secret": "s"}', "no credentials username"),
        ("store", "{", "the login is no JSON object"),
        ("store", "[]", "the login is no JSON object"),
        ("purge", "", "Usage: docker-credential-vmoat <store|get|erase|list|version>"),
    ],
)
def test_the_helper_fails_in_dockers_words(
    guest: Guest, command: str, given: str, answer: str
) -> None:
    assert guest(command, given) == (1, answer + "\n", "")


# -- nobody else sees one --


def test_a_login_is_in_no_log_and_no_argument_list(
    host: Host, guest: Guest, serve: Callable[[Credentials], object],
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path,
) -> None:  # fmt: skip
    """... with -v too, whether a store answers or fails."""
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    proc.set_echo(shown.append)
    planted = "pLanTeD-5ecret"
    environment = tmp_path / "environment"
    try:
        host.knows("all", "ghcr.io", "me", planted)
        host.helper(
            "leaks",
            f"tr '\\0' '\\n' </proc/$$/environ >{environment}; "
            f"tr '\\0' ' ' </proc/$$/cmdline >>{environment}; "
            f"echo {planted}; echo {planted} >&2; exit 1",
        )
        host.config(credsStore="all", credHelpers={"leaks.example": "leaks"})
        serve(host.credentials())
        assert planted in guest("get", "ghcr.io")[1]
        code, out, err = guest("get", "leaks.example")
        assert code == 1
    finally:
        proc.set_echo(None)
    captured = capfd.readouterr()
    everything = [out, err, *shown, captured.out, captured.err, caplog.text]
    assert not any(planted in text for text in everything)
    assert shown == []
    assert "docker-credential-leaks get" in environment.read_text()
    assert planted not in environment.read_text()
    left = [file for file in guest.run.rglob("*") if file.is_file()]
    assert not any(planted.encode() in file.read_bytes() for file in left)


def test_a_login_does_not_show_its_secret_by_itself() -> None:
    assert "x7x" not in f"{Login('me', 'x7x')} {Login('me', 'x7x')!r}"


# -- settings --


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    config.user_file().parent.mkdir(parents=True)
    made = tmp_path / "tree"
    (made / ".git").mkdir(parents=True)
    return made


def load(tree: Path) -> config.Settings:
    return config.load(tree, None, env={"HOME": "/h"}, flags={}, host=HostSize(2, 4))


def test_logins_are_served_until_the_user_says_no(tree: Path) -> None:
    assert load(tree).credentials_docker
    assert load(tree).credentials_registries == ("*",)
    config.user_file().write_text("[credentials]\ndocker = false\n")
    assert not load(tree).credentials_docker


@pytest.mark.parametrize(
    "line", ["docker = true", 'registries = ["*"]', 'registries = ["secret.example"]']
)
def test_a_branch_cannot_open_what_the_user_closed(tree: Path, line: str) -> None:
    config.user_file().write_text('[credentials]\ndocker = false\nregistries = ["ghcr.io"]\n')
    (tree / "vmoat.toml").write_text(f"[credentials]\n{line}\n")
    with pytest.raises(VmoatError, match="not trusted"):
        load(tree)


def test_a_branch_may_close_them(tree: Path) -> None:
    (tree / "vmoat.toml").write_text("[credentials]\ndocker = false\nregistries = []\n")
    got = load(tree)
    assert (got.credentials_docker, got.credentials_registries) == (False, ())


@pytest.mark.parametrize("item", ["a b", "", "https://x y", "a/b"])
def test_a_registry_is_a_host(tree: Path, item: str) -> None:
    config.user_file().write_text(f'[credentials]\nregistries = ["{item}"]\n')
    with pytest.raises(VmoatError, match="HOST:PORT"):
        load(tree)


# -- docker's config in the guest --


def docker_config(home: Path, ours: Path) -> None:
    """The boot script's own function, on a home folder."""
    function = meta.DOCKER_CONFIG.replace("/etc/vmoat/docker.json", str(ours))
    subprocess.run(
        ["sh", "-uc", f"{function} docker_config '{home}'; :"], check=True, timeout=60,
        env={**os.environ, "VMOAT_UID": str(os.getuid()), "VMOAT_GID": str(os.getgid())},
    )  # fmt: skip


OURS = {"credsStore": "vmoat", "proxies": {"default": {"httpProxy": "http://p:1"}}}


@pytest.mark.parametrize(
    ("own", "merged"),
    [
        (None, OURS),
        ("", OURS),
        ("{}", OURS),
        ('{"auths": {}, "psFormat": "é"}', {**OURS, "auths": {}, "psFormat": "é"}),
        ('{\n "proxies": {"default": {}}\n}', {**OURS, "proxies": {"default": {}}}),
        # what the user made in the guest stays to the byte
        ('{"credsStore": "pass"}', None),
        ('{"credsStore": "vmoat"}', None),
        ('{"credHelpers": {"ghcr.io": "x"}}', None),
        ('{"auths": {"ghcr.io": {"auth": "YTpi"}}}', None),
        ("{ broken", None),
    ],
)
def test_docker_in_the_guest_is_told_of_its_helper(
    tmp_path: Path, own: str | None, merged: dict[str, object] | None
) -> None:
    ours = tmp_path / "docker.json"
    ours.write_text(json.dumps(OURS))
    home = tmp_path / "a home"
    home.mkdir()
    file = home / ".docker" / "config.json"
    if own is not None:
        file.parent.mkdir()
        file.write_text(own)
        file.chmod(0o600)
    docker_config(home, ours)
    if merged is None:
        assert file.read_text() == own
    else:
        assert json.loads(file.read_text()) == merged
    docker_config(home, ours)
    assert [left.name for left in file.parent.iterdir()] == ["config.json"]


def test_what_the_guest_gets() -> None:
    identity = meta.Identity("a", Owner("u", 1, 1), "t", "d", "d", "k", "h")
    files = meta.guest_files(identity, meta.Mounts(()))
    assert json.loads(files["etc/vmoat/docker.json"][1]) == {"credsStore": "vmoat"}
    mode, text = files["usr/local/bin/docker-credential-vmoat"]
    assert (mode, text.split("\n")[0]) == (0o755, "#!/usr/bin/perl")
    assert files["etc/ssh/sshd_config.d/vmoat-forward.conf"][1] == "StreamLocalBindUnlink yes\n"
    script = files["etc/vmoat/boot.sh"][1]
    folder = str(Path(credentials.GUEST_SOCKET).parent)
    assert f'install -d -m 0700 -o "$VMOAT_UID" -g "$VMOAT_GID" {folder}\n' in script
    assert "$base/user/credentials" in text
