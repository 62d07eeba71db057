"""Two agents at work at once, each in its worktree, by a script that a seed decides."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator

import pytest
from lab import PAGE, Vm, at_once, fetch, told

pytestmark = pytest.mark.vm

SEED = 6
ROUND = ("exec", "exec", "exec", "test", "test", "up", "edit", "tunnel", "crowd", "down")
"""What an agent does in each round, in an order of its own."""

LIMIT = 400
"""Seconds for one command: a VM that boots beside another under emulation needs most of them."""

TEST = "sh -c 'cat index.html; exit $1' sh"


class Agent:
    """One agent of a VM that is up: what it does, and what it knows must be true then."""

    def __init__(self, vm: Vm, seed: int) -> None:
        self.vm = vm
        self.random = random.Random(f"{seed} {vm.name}")
        self.page = (vm.worktree / PAGE).read_text().rstrip("\n")
        self.up = True
        self.did: list[str] = []

    def work(self, seconds: float) -> None:
        """Whole rounds at first, then until the time is over."""
        until = time.monotonic() + seconds
        for step in self._steps():
            if time.monotonic() > until and set(self.did) >= {*ROUND}:
                break
            try:
                getattr(self, f"do_{step}")()
            except AssertionError as error:
                story = f"{self.vm.name}, after {' '.join(self.did)}: {step}"
                raise AssertionError(f"{story}\n{error}") from error
            self.did.append(step)

    def _steps(self) -> Iterator[str]:
        while True:
            yield from self.random.sample(ROUND, len(ROUND))

    def cli(self, *words: str, code: int) -> subprocess.CompletedProcess[str]:
        done = self.vm.cli(*words, timeout=LIMIT)
        assert done.returncode == code, f"exit {done.returncode}, not {code}: {told(done)}"
        return done

    # --- the steps

    def do_up(self) -> None:
        self.cli("up", code=0)
        self.up = True
        assert self.vm.ok("curl -fsS localhost:8080", timeout=LIMIT) == self.page

    def do_edit(self) -> None:
        self.page = f"the page of {self.vm.name}, number {self.random.randrange(10**6)}"
        (self.vm.worktree / PAGE).write_text(self.page + "\n")
        self.do_up()

    def do_exec(self) -> None:
        code = self.random.choice([0, 1, 2, 77, 126, 127, 130, 254, 255])
        if self.up:
            done = self.cli("exec", f"cat {PAGE}; exit {code}", code=code)
            assert done.stdout == self.page + "\n"
        else:
            assert "`vmoat up` starts it" in self.cli("exec", f"exit {code}", code=125).stderr

    def do_test(self) -> None:
        """Brings up what is down, and ends with the tests' own code."""
        code = self.random.choice([0, 1, 3, 99])
        assert self.cli("test", str(code), code=code).stdout == self.page + "\n"
        self.up = True

    def do_tunnel(self) -> None:
        if not self.up:
            assert "`vmoat up` starts it" in self.cli("tunnel", code=5).stderr
            return
        url = self.cli("tunnel", code=0).stdout.strip()
        assert fetch(url) == self.page + "\n"

    def do_crowd(self) -> None:
        """An agent that starts several commands before it reads the first answer."""
        if not self.up:
            return
        codes = [self.random.randrange(120) for _ in range(3)]
        works = [self.vm.start("exec", f"sleep 0.3; cat {PAGE}; exit {code}") for code in codes]
        answers = [work.communicate(timeout=LIMIT) for work in works]
        assert [work.returncode for work in works] == codes, answers
        assert {out for out, _ in answers} == {self.page + "\n"}

    def do_down(self) -> None:
        assert "warning" not in self.cli("down", code=0).stderr, "compose stops the stack"
        self.up = False


@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.long)])
def test_two_agents_at_once(golden: Vm, second: Vm, seconds: int) -> None:
    """Nothing hangs, nothing crosses over, and each exit code is the right one."""
    agents = [Agent(vm, SEED) for vm in (golden, second)]
    for agent in agents:
        agent.vm.env["VMOAT_TEST_COMMAND"] = TEST
    try:
        with at_once(*(lambda a=agent: a.work(seconds) for agent in agents)):
            pass
    finally:
        for agent in agents:
            agent.vm.cli("untunnel", timeout=LIMIT)
            del agent.vm.env["VMOAT_TEST_COMMAND"]
    with at_once(golden.up, second.up):
        pass
    assert all({*agent.did} == {*ROUND} for agent in agents)
