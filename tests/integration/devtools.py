"""Two drivers of a browser that the tests use alike: the Chrome DevTools MCP server, and CDP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from lab import Vm

from vmoat.browser.cdp import Browser

MCP = "chrome-devtools-mcp@1.11.0"
NODE = (20, 19)
"""What that release wants."""
LIMIT = 60.0


class Driver(Protocol):
    """A browser with one page."""

    def open(self, url: str) -> None: ...
    def text(self) -> str: ...
    def title(self) -> str: ...
    def press(self, label: str) -> None: ...


class McpDriver:
    """The server as an agent's client starts it: a shell line, JSON-RPC a line on its streams."""

    def __init__(self, vm: Vm, server: Path, path: str) -> None:
        self._last = 0
        self._page = 0
        self._process = subprocess.Popen(
            ["sh", "-c", f"exec {server} $(vmoat browser-args --mcp)"],
            cwd=vm.worktree, env={**vm.home.env(vm.env), "PATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        client = {"name": "vmoat-tests", "version": "1"}
        self._call("initialize", {"protocolVersion": "2025-06-18", "capabilities": {},
                                  "clientInfo": client})  # fmt: skip
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def open(self, url: str) -> None:
        answer = self._tool("new_page", url=url)
        found = re.search(r"^(\d+): .*\[selected\]$", answer, re.MULTILINE)
        assert found, answer
        self._page = int(found[1])

    def text(self) -> str:
        return self._tool("take_snapshot", pageId=self._page)

    def title(self) -> str:
        answer = self._tool("evaluate_script", pageId=self._page, function="() => document.title")
        found = re.search(r'^"(.*)"$', answer, re.MULTILINE)
        return found[1] if found else ""

    def press(self, label: str) -> None:
        found = re.search(rf'uid=(\S+) button "{label}"', self.text())
        assert found, self.text()
        self._tool("click", pageId=self._page, uid=found[1])

    def _tool(self, name: str, **arguments: Any) -> str:
        result = self._call("tools/call", {"name": name, "arguments": arguments})
        text = "\n".join(part.get("text", "") for part in result["content"])
        assert not result.get("isError"), text
        return text

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        self._send({"jsonrpc": "2.0", "id": self._last, "method": method, "params": params})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if message.get("id") == self._last:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
        raise AssertionError(f"the MCP server ended at {method}")


class CdpDriver:
    """A browser that is given what `vmoat browser-args` prints, and nothing else of vmoat's."""

    def __init__(self, vm: Vm, program: str) -> None:
        done = vm.cli("browser-args", timeout=60)
        assert done.returncode == 0, done.stderr
        words = [program, *done.stdout.splitlines(), "--headless=new", "--remote-debugging-pipe"]
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        self._browser = Browser(words, self._log, lambda *event: None)
        self._session = ""

    def close(self) -> None:
        self._browser.close()
        self._log.unlink()

    def open(self, url: str) -> None:
        target = self._browser.call("Target.createTarget", {"url": url})["targetId"]
        self._session = self._browser.call(
            "Target.attachToTarget", {"targetId": target, "flatten": True}
        )["sessionId"]
        deadline = time.monotonic() + LIMIT
        while self._value("document.readyState") != "complete" or not self.text():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def text(self) -> str:
        return self._value("document.body.innerText")

    def title(self) -> str:
        return self._value("document.title")

    def press(self, label: str) -> None:
        found = f"[...document.querySelectorAll('button')].find(b => b.innerText == '{label}')"
        self._value(f"{found}.click()")

    def _value(self, expression: str) -> str:
        answer = self._browser.call(
            "Runtime.evaluate", {"expression": expression}, self._session, limit=LIMIT
        )
        return str(answer["result"].get("value", ""))


def node_is_new_enough() -> bool:
    if not shutil.which("node") or not shutil.which("npm"):
        return False
    said = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    return tuple(map(int, said.strip().lstrip("v").split(".")[:2])) >= NODE


def install_mcp(folder: Path) -> Path:
    """The server from npm, in a folder of its own; an AssertionError says why not."""
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, MCP],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "node_modules" / ".bin" / "chrome-devtools-mcp"


@contextlib.contextmanager
def closing(*drivers: McpDriver | CdpDriver) -> Iterator[None]:
    try:
        yield
    finally:
        for driver in drivers:
            driver.close()
