"""Every habit of the shell tool's users holds: the rows of ``parity.py``, each executed.

``python tests/unit/test_parity.py`` writes vmoat/docs/switching.md anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import fakes
import parity
import paritycommands
import parityconf
import pytest
from conftest import World

from vmoat import parser
from vmoat.config.table import BY_SHELL

PAGE = Path(__file__).parents[2] / "vmoat/docs/switching.md"

assert paritycommands.row is parityconf.row  # imported for the rows that they add

NEW_KEYS = {"COMPOSE_PROJECT_NAME", "MOUNTS_LOCAL"}
"""Of vmoat.conf: the shell tool did not know them."""


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> parity.Bench:
    """A worktree as before the first command, after each ``reset``."""
    return _bench(tmp_path_factory.mktemp("still"))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> parity.Bench:
    """One whose stack is up, for all rows that want that."""
    return _bench(tmp_path_factory.mktemp("up"))


def _bench(root: Path) -> parity.Bench:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        return parity.Bench(World(root.resolve()))


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> parity.Bench:  # fmt: skip
    """The worktree that the row wants; its home folder is the only one there is."""
    row: parity.Row = request.param
    found: parity.Bench = request.getfixturevalue("up" if row.running else "still")
    for kind in ("STATE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(found.root / kind.lower()))
    for name in [n for n in os.environ if n.startswith("VMOAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("HOME", str(found.root))
    fakes.install(lambda *words: monkeypatch.setattr(*words))
    found.listen(capfd)
    if not row.running:
        found.reset()
    elif not found.first.err:
        found.world.set("cold", "")  # healthy only after a wait
        found.first = found("up")
    return found


IDS = [f"{row.section}: {row.what}" for row in parity.ROWS]


@pytest.mark.parametrize("bench", sorted(parity.ROWS, key=lambda row: not row.running),
                         indirect=True, ids=lambda row: f"{row.section}: {row.what}")  # fmt: skip
def test_row(bench: parity.Bench, request: pytest.FixtureRequest) -> None:
    request.node.callspec.params["bench"].check(bench)


def test_every_command_and_key_of_the_shell_tool_has_a_row() -> None:
    assert len(set(IDS)) == len(IDS)
    told = " ".join(f"{row.what} {row.was}" for row in parity.ROWS)
    assert [name for name in parity.OLD if f"`vmoat {name}" not in told] == []
    assert set(parity.OLD) <= set(parser.BY_NAME)
    keys = " ".join(row.what for row in parity.ROWS if row.section == parity.KEYS)
    assert [key for key in BY_SHELL if key not in NEW_KEYS and f"`{key}`" not in keys] == []


def test_the_page_is_made_of_the_rows() -> None:
    assert PAGE.read_text() == parity.page(), "run: python tests/unit/test_parity.py"


if __name__ == "__main__":
    PAGE.write_text(parity.page())
