"""Whatever a config holds: settings, or an error that says where; never a traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmoat.config import init, trust
from vmoat.config import settings as config
from vmoat.config.settings import HostSize
from vmoat.config.shell_form import Computes, parse
from vmoat.config.table import BY_KEY, BY_SHELL, SETTINGS
from vmoat.config.toml_form import key_lines
from vmoat.errors import Code, VmoatError

RUNS = settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.one_of(
    st.integers(-(10**20), 10**20), st.booleans(), st.floats(), texts, st.datetimes(), st.dates(),
    st.sampled_from(["80", "80:81", "~/x", "/x:ro", "vm", "seed", "stack", "boot", "", "../x"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3)
)
names = st.one_of(
    st.sampled_from([part for key in BY_KEY for part in key.split(".")] + ["stages", "run"]), texts
)
stages = st.dictionaries(
    st.one_of(st.sampled_from(["a", "b", "c", "seed"]), texts),
    st.dictionaries(
        st.sampled_from(["run", "inputs", "after", "every", "x"]),
        st.one_of(values, st.lists(st.sampled_from(["a", "b", "c", "stack", "seed"]), max_size=3)),
        max_size=4,
    ),
    max_size=4,
)
documents = st.dictionaries(
    names, st.one_of(values, st.dictionaries(names, values, max_size=4)), max_size=5
)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, object]:
    document: dict[str, object] = draw(documents)
    for setting in draw(st.lists(st.sampled_from(SETTINGS), max_size=5)):
        table, _, leaf = setting.key.rpartition(".")
        place = document.setdefault(table, {}) if table else document
        if isinstance(place, dict):
            place[leaf] = draw(values)
    if draw(st.booleans()):
        document["stages"] = draw(stages)
    return document


pieces = st.sampled_from(
    [*BY_SHELL, "A", "=", "+=", "'", '"', "$", "(", ")", "{", "}", "`", "\\", "\n", " ", ";", "#",
     "$(touch canary)", "${A:-x}", "$A", "$HOME", "~", "export ", "source ", ". ", "/", "x", "1",
     "=(", "[", "]", "&", "|", "<", ">", "<<E\n", "if ", "$'", "\\n", "\r", "\0", "\udcff", "é",
     "\ufeff", "VM_CPU=4\n", "CMD_UP='x'\n", "*"]
)  # fmt: skip
confs = st.one_of(st.lists(pieces, max_size=25).map("".join), texts)


@pytest.fixture(autouse=True)
def _xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))


SIZE = HostSize(4, 8)


def caught(call: Callable[[], object]) -> VmoatError | None:
    """The project's own error, if any; every other exception fails the test."""
    try:
        call()
    except VmoatError as error:
        return error
    return None


def outcome(files: dict[str, bytes], env: dict[str, str] | None = None) -> None:
    """Load a worktree of these files; what goes wrong must say so well and run nothing."""
    with TemporaryDirectory() as folder:
        tree, main = Path(folder) / "tree", Path(folder) / "main"
        tree.mkdir()
        main.mkdir()
        for name, data in files.items():
            (tree / name).write_bytes(data)
        given_env = {"HOME": folder, **(env or {})}
        errors = [
            caught(lambda: config.load(tree, main, env=given_env, flags={}, host=SIZE).dump()),
            caught(lambda: trust.pending(tree, main, env=given_env)),
        ]
        left = {path.name for path in tree.iterdir()}
    for error in filter(None, errors):
        assert error.code == Code.CONFIG
        assert error.hint
        assert any(name in error.message for name in (*files, *given_env, folder))
        assert "\n" not in error.message
        str(error).encode()
    assert left == set(files)
    assert not Path("canary").exists()


@RUNS
@given(tables())
def test_generated_tables(document: dict[str, object]) -> None:
    outcome({"vmoat.toml": tomli_w.dumps(document).encode(errors="replace")})


@RUNS
@given(tables(), st.data())
def test_broken_toml(document: dict[str, object], data: st.DataObject) -> None:
    text = tomli_w.dumps(document).encode(errors="replace")
    at = data.draw(st.integers(0, len(text)))
    junk = data.draw(st.binary(max_size=3))
    outcome({"vmoat.toml": text[:at] + junk + text[at + 1 :]})


@RUNS
@given(confs, confs)
def test_generated_confs(conf: str, local: str) -> None:
    outcome(
        {
            "vmoat.conf": conf.encode(errors="surrogateescape"),
            "vmoat.local.conf": local.encode(errors="surrogateescape"),
        }
    )


@RUNS
@given(confs)
def test_the_shell_parser_alone(conf: str) -> None:
    with suppress(Computes, VmoatError):
        parse(conf, "vmoat.conf", {"HOME": "/h"})


@RUNS
@given(confs)
def test_generated_confs_migrate_or_say_why(conf: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vmoat.conf"
        path.write_bytes(conf.encode(errors="surrogateescape"))
        made: list[init.Migrated] = []
        error = caught(lambda: made.append(init.migrate(path, env={"HOME": "/h"})))
        if error:
            assert "vmoat.conf" in error.message
            return
        (got,) = made
        path.unlink()
        (Path(folder) / "vmoat.toml").write_text(got.text)
        main = Path(folder)
        config.load(main, main, env={"HOME": "/h"}, flags={}, host=SIZE)


@RUNS
@given(st.sampled_from(SETTINGS), st.text(max_size=20))
def test_generated_variables(setting: object, text: str) -> None:
    assert setting in SETTINGS
    outcome({}, {getattr(setting, "env", ""): text})


@RUNS
@given(tables())
def test_each_key_has_its_line(document: dict[str, object]) -> None:
    text = tomli_w.dumps(document)
    lines = key_lines(text)
    for head in document:
        assert 1 <= lines[(head,)] <= text.count(os.linesep) + 1
