"""What `plan` says, and that `up` then does exactly that; plain doit beside a project's tasks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIG, World, git

from vmoat import graph
from vmoat.errors import VmoatError

GOLDEN = Path(__file__).parent.parent / "golden"


def reasons(world: World, *targets: str, force: tuple[str, ...] = ()) -> dict[str, str]:
    ctx = world.context(claim=False)
    ctx.forced = frozenset(force)
    return {step.name: step.reason for step in graph.plan(ctx, targets) if step.reason}


def begun(world: World) -> list[str]:
    return [e.split()[1] for e in world.events() if e.startswith("begin ")]


def agree(world: World) -> dict[str, str]:
    """The plan, and that a run begins just these stages."""
    said = reasons(world)
    before = len(begun(world))
    assert world.work() == 0
    done = begun(world)[before:]
    assert [n for n in done if n != "health"] == [n for n in said if n != "health"]
    assert reasons(world) == {}
    return said


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(f): hashlib.sha1(f.read_bytes()).hexdigest() + str(f.stat().st_mtime_ns)
        for f in sorted(folder.rglob("*"))
        if f.is_file() and "fake" not in f.parts and f.name != "files.json"
    }


def test_the_tests_are_a_stage_that_runs_when_it_is_asked_for(world: World) -> None:
    assert world.work() == 0
    assert "test" not in world.ran()
    assert reasons(world, "test") == {"test": "asked for each time"}
    assert world.work("test") == 0
    assert world.ran().count("test") == 1


def test_the_first_run(world: World) -> None:
    said = agree(world)
    assert said["image"] == "no image of this recipe on this machine"
    assert said["vm"] == "there is no VM yet"
    assert said["apt"] == said["script"] == said["gen"] == said["stack"] == "never run"
    assert said["seed"] == "not in the worktree yet: .env"


def test_each_change_names_its_reason_and_runs_what_depends_on_it(world: World) -> None:
    agree(world)
    (world.tree / "app.py").write_text("2")
    assert agree(world) == {"stack": "app.py changed"}
    (world.tree / "gen.txt").write_text("2")
    assert agree(world) == {"gen": "its inputs changed", "stack": "gen.txt changed"}
    (world.tree / ".env").write_text("mine")
    assert agree(world) == {"stack": ".env changed"}
    (world.tree / "out").write_text("by the stack")
    assert agree(world) == {}
    (world.tree / "vmoat.toml").write_text(CONFIG.replace('"jq"', '"curl"'))
    said = agree(world)
    assert said["apt"] == "the package list changed: +curl -jq"
    assert said["script"] == "`apt` runs before it"
    assert said["gen"] == "`script` runs before it"
    assert "seed" not in said
    world.context().driver.stop("wt-tree")
    said = agree(world)
    assert list(said) == ["vm", "stack", "health"]
    assert said["vm"] == "the VM is stopped"


def test_a_stage_that_the_config_no_longer_asks_for_does_not_run(world: World) -> None:
    agree(world)
    less = CONFIG.replace('script = "echo script"\n', "").replace('["git", "jq"]', '["git"]')
    (world.tree / "vmoat.toml").write_text(less)
    said = agree(world)
    assert "script" not in said
    assert said["apt"] == "the package list changed: -jq"


def test_a_failure_is_the_reason_of_the_next_run(world: World) -> None:
    world.context()
    world.set("fail-script", "3")
    world.work()
    assert reasons(world)["script"] == "it failed last time (exit code 3)"
    world.set("die", "script middle")
    world.work()
    assert reasons(world)["script"] == "its last run was not finished"


def test_force(world: World) -> None:
    agree(world)
    assert reasons(world, force=("script",)) == {
        "script": "--force", "gen": "`script` runs before it", "stack": "`script` runs before it",
    }  # fmt: skip
    before = len(begun(world))
    assert world.work(force=("script",)) == 0
    assert begun(world)[before:] == ["script", "gen", "stack"]
    before = len(world.ran())
    world.vmoat("up", "--force", "vm")
    assert [e for e in world.ran()[before:] if e in ("stop", "boot", "stack")] == [
        "stop", "boot", "stack",
    ]  # fmt: skip
    assert "there is no stage `nope`" in world.vmoat("up", "--force", "nope", code=2).stderr
    assert "there is no stage `nope`" in world.vmoat("plan", "nope", code=2).stderr


def test_only_the_stages_asked_for_and_what_they_need(world: World) -> None:
    assert list(reasons(world, "apt")) == ["image", "vm", "apt"]
    assert world.work("apt") == 0
    assert "script" not in begun(world)


@pytest.mark.parametrize("ready", [False, True])
def test_plan_touches_nothing(world: World, ready: bool) -> None:
    if ready:
        agree(world)
        (world.tree / "app.py").write_text("2")
    before = snapshot(world.root)
    world.vmoat("plan")
    world.vmoat("plan", "--json")
    world.vmoat("status")
    assert snapshot(world.root) == before


def test_the_plan_as_a_person_reads_it(world: World) -> None:
    first = world.vmoat("plan").stdout
    agree(world)
    (world.tree / "app.py").write_text("2")
    text = f"{first}--- app.py edited\n{world.vmoat('plan').stdout}"
    golden = GOLDEN / "plan.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_plan_json(world: World) -> None:
    rows = json.loads(world.vmoat("plan", "--json").stdout)["stages"]
    assert {r["stage"]: r["runs"] for r in rows}["apt"] is True
    assert all(isinstance(r["reason"], str) and r["reason"] for r in rows)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ('[stages.a]\nrun="x"\nafter=["b"]\n[stages.b]\nrun="x"\nafter=["a"]', ("a", "b")),
        ('[stages.a]\nrun="x"\nafter=["stakc"]', ("stages.a.after", "stack")),
        ('[stages.stack]\nrun="x"', ("stages.stack", "built-in")),
    ],
)
def test_stages_that_cannot_be(world: World, stages: str, words: tuple[str, ...]) -> None:
    (world.tree / "vmoat.toml").write_text(stages + "\n")
    done = world.vmoat("up", code=3)
    assert all(word in done.stderr for word in words), done.stderr
    assert not (world.root / "data" / "vmoat" / "fake" / "wt-tree" / "disk").exists()


def test_every(world: World) -> None:
    always = CONFIG.replace('inputs = ["gen.txt"]', 'every = "boot"')
    (world.tree / "vmoat.toml").write_text(always)
    agree(world)
    world.context().driver.stop("wt-tree")
    assert agree(world)["gen"] == 'a new boot (every = "boot")'
    assert world.ran().count("gen") == 2


def test_a_name_that_is_no_utf_8_does_not_void_the_record(world: World) -> None:
    (world.tree / "bytes\udcff").write_text("1")
    (world.tree / 'quote"\n').write_text("1")
    agree(world)


def doit(world: World, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys, fakes; fakes.install(); from doit.doit_cmd import DoitMain; "
        "sys.exit(DoitMain().run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=world.tree, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_plain_doit_beside_the_projects_own_tasks(world: World) -> None:
    (world.tree / "pyproject.toml").write_text('[tool.doit]\nloader = "vmoat"\n')
    (world.tree / "dodo.py").write_text(
        "def task_hello():\n    return {'actions': ['echo hello >>out'], 'file_dep': ['app.py']}\n"
    )
    git(world.tree, "add", "-A")
    listed = doit(world, "list").stdout
    assert "hello" in listed
    assert "stack" in listed
    assert not (world.repo / ".git/worktrees/tree/vmoat-id").exists(), "a list claims no VM"
    doit(world, "up")
    doit(world, "up")
    assert world.ran().count("stack") == 1
    assert "hello" not in world.ran()
    doit(world, "hello")
    doit(world, "hello")
    assert (world.tree / "out").read_text() == "hello\n"
    assert "up-to-date" in doit(world, "info", "stack").stdout
    assert reasons(world) == {}, "`vmoat` and `doit` share one record"
    world.set("fail-script", "7")
    (world.tree / "vmoat.toml").write_text(CONFIG.replace("echo script", "echo other"))
    assert "`script` failed with exit code 7" in doit(world, "up", code=1).stdout
    (world.tree / "vmoat.toml").write_text("[up\n")
    broken = doit(world, "up", code=3)
    assert "Traceback" not in broken.stderr
    (world.tree / "vmoat.toml").write_text(CONFIG)
    (world.tree / "dodo.py").write_text("def task_stack():\n    return {'actions': ['true']}\n")
    assert "rename the task" in doit(world, "list", code=3).stderr


def test_an_unknown_target_of_run_is_our_error(world: World) -> None:
    with pytest.raises(VmoatError, match="no stage"):
        graph.plan(world.context(claim=False), ["nope"])
