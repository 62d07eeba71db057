"""The text that goes to OpenSSH and to the guest, and what is read back."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from vmoat import facts, localfolders, ssh, stages
from vmoat.drivers import SshEndpoint
from vmoat.errors import Code, VmoatError
from vmoat.usercommand import command_line, exec_command

GOLDEN = Path(__file__).parents[1] / "golden"
ENDPOINT = SshEndpoint(
    "127.0.0.1", 2222, "alice", Path('/s/a "b" 100%/é\\key'), Path("/s/known hosts")
)
PROXY = ["env", "XDG_STATE_HOME=/s t/100%", "/py", "-m", "vmoat.sshproxy", "wt-a"]
JOB = stages.Job(
    name="my stage", command="echo \"$HOME\" %n 'x'", attempt="a-1", user="alice",
    cwd="/w/it's $x %y", env={"K": "v 'w'"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ssh_config", ssh.ssh_config(ENDPOINT, Path("/run/v m%"))),
        ("ssh_block", ssh.ssh_config_block("wt-a", ENDPOINT, PROXY, forward_agent=True)),
        ("ssh_exec", exec_command("echo 'hi'", "/w/it's", {"K": "v w"}, "id", 7.5) + "\n"),
        ("ssh_stage_run", stages.run_script(JOB)),
        ("ssh_service_run", stages.run_script(JOB, service=True)),
    ],
)
def test_rendered_text_is_the_golden_one(name: str, text: str) -> None:
    assert text == (GOLDEN / f"{name}.txt").read_text()


def test_local_folders_stand_around_a_command() -> None:
    plain = exec_command("x", "/w", {}, "id", 7.5)
    before = localfolders.mending("/w", ["a b"])
    behind = localfolders.keeping(["a b"])
    text = exec_command("x", "/w", {}, "id", 7.5, before=before, behind=behind)
    assert text.replace(before, "").replace(behind, "") == plain
    assert before.startswith("{ [ '/w/a b' -ef '/data/local/a b' ]; } || sudo")
    assert (localfolders.mending("/w", []), localfolders.keeping([])) == ("", "")
    assert exec_command("", "/w", {}, "id", 7.5, before=before).count(before) == 1


def test_openssh_reads_awkward_paths_back(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(ssh.ssh_config(ENDPOINT, Path("/run/v m%")))
    told = subprocess.run(
        ["ssh", "-G", "-F", config, "vmoat"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "controlpath /run/v m%/ssh" in [line.replace("%%", "%") for line in told]
    assert 'identityfile /s/a "b" 100%/é\\key' in [line.replace("%%", "%") for line in told]


def test_a_path_that_openssh_would_expand_is_refused() -> None:
    with pytest.raises(VmoatError) as caught:
        ssh.quote("/a/${HOME}", tokens=True)
    assert caught.value.code == Code.CONFIG


def test_an_alias_is_one_plain_word() -> None:
    with pytest.raises(VmoatError):
        ssh.ssh_config_block("a\nProxyCommand x", ENDPOINT, PROXY)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], ""),
        (["a && b"], "a && b"),
        (["--", "a b"], "a b"),
        (["a", "b c", "$x"], "a 'b c' '$x'"),
        (["--", "--", "x"], "-- x"),
    ],
)
def test_one_word_is_a_line_and_several_are_a_list(words: list[str], line: str) -> None:
    assert command_line(words) == line


@pytest.mark.parametrize(
    "text",
    [
        stages.follow_script(JOB),
        stages.follow_script(JOB, offset=7, join_only=True),
        stages.start_script(JOB, service=True),
        stages.stop_script("my stage"),
        stages.run_script(JOB),
        facts.script(
            facts.Probe(True, ("docker.service", "stack"), "http://a/?b='c'", True, True), 7.5
        ),
    ],
)
def test_the_guests_scripts_are_valid_bash(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text.encode(), check=True)


def test_two_stage_names_never_share_a_unit() -> None:
    assert stages.unit("a b") != stages.unit("a-b")
    assert stages.unit("läuft/x") == "vmoat-l_e4uft_2fx.service"


def test_an_attempt_is_one_word() -> None:
    with pytest.raises(ValueError, match="attempt"):
        stages.Job("a", "b", "x; y", "u", "/")


def test_lines_come_whole_and_their_bytes_are_counted() -> None:
    got: list[str] = []
    lines = stages._Lines(got.append)
    for part in (b"a", b"b\nc\xc3", b"\xa9\r\n", b"rest"):
        lines.feed(part)
    assert (got, lines.passed) == (["ab", "cé"], 8)
    lines.drop_rest()
    lines.feed(b"rest again")
    lines.end()
    assert (got[-1], lines.passed) == ("rest again", 18)


def container(status: str, state: str, **more: object) -> dict[str, object]:
    return {"Id": "f" * 64, "Names": ["/p-web-1"], "State": state, "Status": status, **more}


def test_containers_are_read_from_dockerds_list() -> None:
    listed = container(
        "Up 3 seconds (health: starting)", "running", Created=5, Image="i",
        Labels={"com.docker.compose.project": "p", "com.docker.compose.service": "web"},
        Ports=[
            {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 9, "Type": "tcp"},
        ],
    )  # fmt: skip
    more: dict[str, Any] = {"Id": "f" * 64, "RestartCount": 2}
    (one,) = facts.containers([listed], {more["Id"]: more})
    assert (one.name, one.project, one.service, one.health) == ("p-web-1", "p", "web", "starting")
    assert (one.ports, one.restarts, one.up_seconds) == (((8080, 80),), 2, 3.0)


@pytest.mark.parametrize(
    ("status", "state", "code", "failed"),
    [
        ("Exited (137) 2 days ago", "exited", 137, True),
        ("Exited (0) now", "exited", 0, False),
        ("Restarting (1) now", "restarting", 1, False),
        ("Up 2 hours (healthy)", "running", None, False),
    ],
)
def test_how_a_container_ended(status: str, state: str, code: int | None, failed: bool) -> None:
    one = facts._container(container(status, state), None)
    assert (one.exit_code, one.failed) == (code, failed)


def test_what_was_not_asked_or_answered_is_not_true() -> None:
    found = facts.parse("\x1eboot\n\n\x1ehealth\n000\n")
    assert (found.boot, found.docker, found.containers, found.health_code) == ("", False, (), 0)
    assert facts.parse("").health_code is None


def test_units_sockets_and_space() -> None:
    found = facts.parse(
        "\x1eunits\nactive\tmy stage\t12\nexited 3\tb\ngone\tc\nactive\told\n"
        "\x1esockets\n  sl  local\n"
        "   0: 0100007F:1F90 00000000:0000 0A 0:0 00:0 0 0 0 77 1\n"
        "   1: 0100007F:0016 00000000:0000 0A 0:0 00:0 0 0 0 78 1\n"
        "   2: 00:0017 0:0 01 0:0 00:0 0 0 0 79 1\n"
        "\x1eowned\nsocket:[77]\nsocket:[79]\n"
        "\x1ememory\nMemTotal: 2 kB\nMemAvailable: 1 kB\n"
        "\x1edf\nFilesystem\n/dev/vda 100 60 40 60% /\n/dev/vdb 50 1 49 2% /x\n"
    )
    assert found.units == {"my stage": "active", "b": "exited 3", "c": "gone", "old": "active"}
    assert found.active("my stage")
    assert found.running_for == {"my stage": 12}
    assert found.listening == {8080, 22}
    assert found.owned == {8080}
    assert found.space == {
        "memory": (2048, 1024), "/": (100, 40), "/var/lib/docker": (50, 49)
    }  # fmt: skip
