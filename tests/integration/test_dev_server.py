"""Real dev servers in the VM, woken by a save on the host.

Long: node and the packages have to be installed.  test_watch_files has what they stand on.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab, Vm, wait_until

pytestmark = [
    pytest.mark.vm,
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed"),
]

SAVES = 4
PACKAGES = ("nodemon@3", "vite@6")


@pytest.fixture(scope="module")
def app(golden: Vm, first_up: str) -> Iterator[Path]:
    """A folder of the worktree with both servers installed on the host, and node in the VM."""
    code, out = golden.root_sh(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nodejs",
        timeout=600,
    )
    assert code == 0, out
    folder = golden.worktree / "app"
    folder.mkdir()
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    (folder / "server.js").write_text("setInterval(() => {}, 1000)\n")
    (folder / "index.html").write_text("<script type=module src=/main.js></script>\n")
    (folder / "main.js").write_text("console.log(0)\n")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, check=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    time.sleep(5)  # some thousand new files
    yield folder
    shutil.rmtree(folder)


class Server:
    """A dev server in the VM, and when each of its lines came."""

    def __init__(self, vm: Vm, line: str) -> None:
        self.lines: list[tuple[float, str]] = []
        self.process = vm.start("exec", f"cd app && exec {line}", stderr=subprocess.STDOUT)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.strip()))

    def says(self, word: str, since: float, timeout: float) -> float:
        """When it said that, in seconds after ``since``."""

        def found() -> list[float]:
            lines = list(self.lines)
            return [when - since for when, line in lines if when > since and word in line]

        assert wait_until(found, timeout), self.lines
        return found()[0]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.reader.join(10)
        self.process.stdout.close()


@pytest.mark.parametrize(
    ("line", "begun", "file", "woken"),
    [
        ("node_modules/.bin/nodemon server.js", "starting", "server.js", "restarting"),
        ("node_modules/.bin/vite", "ready in", "index.html", "page reload"),
    ],
    ids=["nodemon", "vite"],
)
def test_a_save_wakes_it_within_a_second(
    lab: Lab, vm: Vm, app: Path, line: str, begun: str, file: str, woken: str
) -> None:
    server = Server(vm, line)
    server.says(begun, 0, 120)
    time.sleep(5)  # it sets its watches, and vite looks through the dependencies
    if "vite" in line:
        vm.ok("curl -fsS localhost:5173/ localhost:5173/main.js")
    took = []
    for _ in range(SAVES):
        began = time.monotonic()
        with open(app / file, "a") as target:
            target.write("\n")
        took.append(server.says(woken, began, 60))
        time.sleep(3)
    server.end()
    lab.figure(f"a save wakes {line.rpartition('/')[2].split()[0]} (slowest of {SAVES})",
               max(took), "≤ 1 s")  # fmt: skip
    assert max(took) < 1
