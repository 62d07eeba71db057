"""What agents rely on, with a real guest: documents, bounded output, failures on one screen."""

from __future__ import annotations

import json
import time

import pytest
from documents import check, names
from lab import Lab, Vm

pytestmark = pytest.mark.vm


def test_documents_are_what_their_schemas_say(vm: Vm) -> None:
    vm.up()
    for words in (["status"], ["status", "-v"], ["plan"], ["config"], ["env"], ["tunnel"],
                  ["image", "ls"], ["image", "digest"]):  # fmt: skip
        done = vm.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        check(json.loads(done.stdout))
    status = vm.status()
    assert check(status) == "status"
    assert status["containers"]
    assert status["tunnels"]
    assert status["weights"]["host"]
    vm.cli("untunnel")
    doctor = vm.cli("doctor", "--json")
    assert check(json.loads(doctor.stdout)) == "doctor"


def test_detach_returns_at_once_and_wait_tells_the_end(vm: Vm, lab: Lab) -> None:
    took = []
    for words in (["--force", "prepare"], ["seed", "--force", "seed"], ["seed", "--force", "seed"]):
        began = time.monotonic()
        done = vm.cli("up", "--detach", "--json", *words)  # both pipes to their end
        took.append(time.monotonic() - began)
        assert names(done.stdout) == ["event"]
        assert json.loads(done.stdout)["event"] == "detached"
        events = vm.cli("wait", "--json").stdout
        assert set(names(events)) == {"event"}
        assert json.loads(events.splitlines()[-1])["code"] == 0
    lab.figure("up --detach (best of 3)", min(took), "< 1 s")
    assert min(took) < 3, "a second, on a machine that has nothing else to do"


def test_the_tests_as_work_in_the_background(vm: Vm) -> None:
    """The way of an agent whose limit is shorter than the tests."""
    slow = {"VMOAT_TEST_COMMAND": "for i in 1 2 3 4; do echo line $i; sleep 1; done; exit 3"}
    assert vm.cli("up", "test", "--detach", env=slow).returncode == 0
    codes = []
    while not codes or codes[-1] == 6:
        done = vm.cli("wait", "--timeout", "2", "--tail", "1", env=slow)
        codes.append(done.returncode)
    assert codes[-1] == 1
    assert "`test` failed with exit code 3" in done.stderr
    assert vm.cli("logs", "--stage", "test", "--tail", "2").stdout == "line 3\nline 4\n"


def test_the_end_of_a_long_output(vm: Vm) -> None:
    done = vm.cli("exec", "--tail", "2", "seq 100000; echo no >&2; exit 9")
    assert (done.returncode, done.stdout) == (9, "100000\nno\n")
    file = done.stderr.rpartition(": ")[2].strip()
    with open(file) as whole:
        assert sum(1 for _ in whole) == 100001
    tests = vm.cli("test", "--tail", "5", "--", "one", "two words")
    assert (tests.returncode, tests.stdout) == (0, "<one><two words>\n")


def test_a_failure_is_explained_on_one_screen(vm: Vm) -> None:
    """The stage, its last lines, the container's, the next command; the same as data."""
    line = (
        "docker run -d --name crash shop-web busybox sh -c 'echo words of the dying; exit 3'; "
        "docker wait crash; seq 300; echo words of its own; exit 5"
    )
    env = {"VMOAT_UP_COMMAND": line}
    done = vm.cli("up", "--json", env=env)
    said = vm.cli("wait").stderr.splitlines()
    vm.ok("docker rm -f crash")
    assert done.returncode == 1
    assert names(done.stdout)[-2:] == ["event", "error"]
    error = json.loads(done.stdout.splitlines()[-1])
    assert (error["code"], error["stage"]) == (1, "stack")
    assert error["message"] == "`stack` failed with exit code 5"
    assert error["details"][-3:] == ["words of its own", "--- crash", "words of the dying"]
    assert error["next"] == ["vmoat logs --stage stack", "vmoat up", "vmoat logs crash"]
    assert len(said) <= 24
    assert said[-1].startswith("[vmoat] → ")
    for command in error["next"]:
        assert f"`{command}`" in said[-1]
    vm.up()
