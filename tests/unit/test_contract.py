"""What agents rely on (`vmoat help agents`): forms of JSON, bounded output, short limits."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import World
from documents import check, names
from jsonschema import Draft202012Validator
from timing import quickest, until
from vmoat.tasks.stack import culprit

from vmoat import bundle, parser, patience, schemas, view, watch
from vmoat.cli import main
from vmoat.commands import lifecycle, machine
from vmoat.drivers.qemu import image as images
from vmoat.errors import Code, VmoatError, as_fields
from vmoat.facts import Container
from vmoat.output import LONGEST, Output
from vmoat.state import VmLock

# -- the schemas --


@pytest.mark.parametrize("name", schemas.names())
def test_each_schema_is_one_and_names_its_form(name: str) -> None:
    schema = json.loads(schemas.read(name))
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:vmoat:{name}:1"
    for form in schema.get("oneOf", [schema]):
        assert form["properties"]["schema"] == {"const": f"vmoat.{name}/1"}
        assert "schema" in form["required"]


def test_every_command_that_answers_in_json_has_a_schema() -> None:
    told = " ".join(json.loads(schemas.read(name))["title"] for name in schemas.names())
    able = [c.name for c in parser.COMMANDS if any("--json" in a.names for a in c.args)]
    assert [name for name in able if f"vmoat {name}" not in told] == []


def test_schema_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["status"] == "vmoat status --json"
    assert sorted(rows) == schemas.names()
    assert main(["schema", "status"]) == 0
    assert json.loads(capsys.readouterr().out)["$id"] == "urn:vmoat:status:1"
    assert main(["schema", "stats"]) == Code.USAGE
    assert "status" in capsys.readouterr().err


# -- what commands print --


def test_documents_before_and_after_up(world: World) -> None:
    containers = [
        {"name": "web", "service": "web", "state": "running", "ports": [[8080, 80]]},
        {"name": "job", "state": "exited", "exit_code": 0},
    ]
    assert check(json.loads(world.vmoat("status", "--json").stdout)) == "status"
    assert check(json.loads(world.vmoat("plan", "--json").stdout)) == "plan"
    events = [json.loads(line) for line in world.vmoat("up", "--json").stdout.splitlines()]
    assert {check(event) for event in events} == {"event"}
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("run_start", "run_end")
    assert {"graph", "stage_start", "line", "stage_end"} <= set(kinds)
    world.set("containers", json.dumps(containers))
    assert names(world.vmoat("up", "--json").stdout) == ["event"], "nothing to do"
    assert names(world.vmoat("wait", "--json").stdout) == ["event"]
    for words in (["status"], ["plan"], ["tunnel"], ["env"], ["config"], ["config", "vm.cpu"]):
        said = json.loads(world.vmoat(*words, "--json").stdout)
        assert check(said) == words[0]
    tunnels = json.loads(world.vmoat("status", "--json").stdout)["tunnels"]
    assert [tunnel["guest"] for tunnel in tunnels] == [8080]


def test_documents_of_the_machine(
    homes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(homes)
    assert main(["doctor", "--json"]) in (Code.OK, Code.MISSING)
    assert check(json.loads(capsys.readouterr().out)) == "doctor"
    entry = images.Image("abc", homes, 5, "2026-01-01", True)
    monkeypatch.setattr(machine.images, "images", lambda mirror: [entry])
    monkeypatch.setattr(machine.images, "build", lambda mirror, say: None)
    for action, form in (("ls", "images"), ("build", "image"), ("digest", "digest")):
        assert main(["image", action, "--json"]) == 0
        assert check(json.loads(capsys.readouterr().out)) == form


def test_a_failure_is_the_last_document(world: World) -> None:
    """Also one that no event tells of: usage inside a command, configuration, a time limit."""
    world.context()
    world.set("fail-script", "9")
    done = world.vmoat("up", "--json", code=1)
    assert names(done.stdout)[-2:] == ["event", "error"]
    end, error = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert (end["event"], end["stage"], end["code"]) == ("run_end", "script", 1)
    assert error == {**{k: end[k] for k in as_fields(VmoatError(""))}, "schema": "vmoat.error/1"}
    assert error["details"] == ["script"]
    assert error["next"] == ["vmoat logs --stage script", "vmoat up"]
    again = json.loads(world.vmoat("wait", "--json", code=1).stdout.splitlines()[-1])
    assert again == error
    world.set("slow", "2")
    (world.place / "fail-script").unlink()
    late = world.vmoat("up", "--json", "--timeout", "0.3", code=6).stdout
    assert json.loads(late.splitlines()[-1])["code"] == 6
    world.vmoat("wait")
    (world.tree / "vmoat.toml").write_text("[up]\ncomand = 1\n")
    for words in (["plan", "--json"], ["up", "--json"], ["config", "--json"]):
        assert names(world.vmoat(*words, code=3).stdout) == ["error"]


def test_detach_says_so_in_json(world: World) -> None:
    done = world.vmoat("up", "--detach", "--json")
    assert names(done.stdout) == ["event"]
    event = json.loads(done.stdout)
    assert (event["event"], event["follow"]) == ("detached", "vmoat wait")
    world.vmoat("wait")


# -- bounded output --


def test_the_last_lines_of_a_command(world: World) -> None:
    world.vmoat("up")
    count = "for i in 1 2 3 4 5; do echo $i; done; echo no >&2; exit 7"
    done = world.vmoat("exec", "--tail", "2", "--", count, code=7)
    assert done.stdout.splitlines() == ["5", "no"]
    file = Path(done.stderr.rpartition(": ")[2].strip())
    assert file.read_text().splitlines() == ["1", "2", "3", "4", "5", "no"]
    assert file.stat().st_mode & 0o777 == 0o600
    whole = world.vmoat("exec", "--tail", "9", "--", "echo one")
    assert (whole.stdout, "all of them" in whole.stderr) == ("one\n", False)
    assert world.vmoat("test", "--tail", "1", "--", "a b").stdout == "tests a b\n"
    assert world.vmoat("exec", "--tail", "0", "true").stdout == ""
    assert world.vmoat("exec", "--tail", "-1", "true", code=2).stdout == ""


def test_up_with_tail_shows_stages_and_not_their_output(world: World) -> None:
    done = world.vmoat("up", "--tail", "3")
    assert "✓ script" in done.stderr
    assert "installing" not in done.stderr
    assert "installing" in world.vmoat("up", "--force").stderr


def test_watching_ends_with_the_running_stages_last_lines() -> None:
    out = Output(io.StringIO(), io.StringIO())
    shown = view.make(out, as_json=False, tail=2)
    shown.show(view.event("stage_start", "r", stage="apt", reason="never run"))
    for word in ("one", "two", "three"):
        shown.show(view.event("line", "r", text=word))
    assert "two" not in out.stderr.getvalue()  # type: ignore[attr-defined]
    shown.close()
    said = out.stderr.getvalue()  # type: ignore[attr-defined]
    assert said.splitlines() == [
        "[vmoat] ▸ apt: never run", "[vmoat]   two", "[vmoat]   three"
    ]  # fmt: skip


def test_a_failure_fits_on_a_screen(world: World) -> None:
    """Its stage, its last lines, the container's, the next command; whatever they have written."""
    world.context()
    (world.tree / "vmoat.toml").write_text(
        (world.tree / "vmoat.toml").read_text().replace(
            'command = "echo up"',
            "command = \"for i in $(seq 500); do printf '%0999d\\\\n' $i; done; exit 3\"",
        )
    )
    broken = [
        {"name": f"app-{n}", "service": "web", "state": "exited", "exit_code": 1} for n in range(9)
    ]
    world.set("containers", json.dumps(broken))
    done = world.vmoat("up", "--tail", "0", code=1)
    said = done.stderr.partition("[vmoat] ERROR: ")[2].splitlines()
    assert said[0].startswith("`stack` failed with exit code 3")
    assert "    --- app-0" in said
    assert said[-1].startswith("[vmoat] → ")
    assert "`vmoat logs --stage stack`" in said[-1]
    assert "`vmoat logs app-0`" in said[-1]
    assert len(said) <= 35
    assert max(map(len, said)) <= LONGEST + 10


def test_the_container_that_is_to_blame() -> None:
    """One that ended badly before one that others wait for in vain."""
    well = Container("i", "db", "p", "db", "i", "running", None, "healthy", False, 1, ())
    again = replace(well, name="queue", state="restarting", health="")
    sick = replace(well, name="api", health="unhealthy")
    dead = replace(well, name="web", state="exited", exit_code=1)
    assert culprit([well]) is None
    assert culprit([well, again]) == again
    assert culprit([again, sick, well]) == sick
    assert culprit([again, sick, dead]) == dead


# -- short limits --


def test_detach_is_quick_and_both_pipes_end(world: World) -> None:
    """The work goes on; nothing of it holds the caller's pipes.  A second, or six times as long as
    the shortest command takes where the machine is busy.
    """
    world.context()
    world.hold()
    limit = max(1.0, 6 * quickest(lambda: world.vmoat("version"), 0.1))

    def detach() -> None:
        done = world.vmoat("up", "--detach")  # reads both pipes to their end
        assert done.stdout == ""
        assert "vmoat wait" in done.stderr

    assert quickest(detach, limit) < limit
    assert world.vmoat("wait", "--timeout", "0", code=6)
    world.vmoat("down")


def test_cut_off_after_ten_seconds_they_have_said_what_goes_on(world: World) -> None:
    world.context()
    assert patience.SOON <= 5, "and two seconds to start, on a machine that is busy"
    world.hold()
    world.vmoat("up", "--detach")
    cut = [
        world.start(name, stdout=subprocess.DEVNULL) for name in ("up", "wait", "provision", "test")
    ]
    for process in cut:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "still at it; " in line)
        assert "`vmoat wait`" in said
        assert process.poll() is None
        process.kill()
        process.communicate()
    world.vmoat("down")


def test_detach_behind_a_down_ends_before_its_caller_gives_up(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that nothing is begun: `vmoat wait` would find the run before, which ended well."""
    assert lifecycle.SHORT <= 5
    monkeypatch.setattr(lifecycle, "SHORT", 0.1)
    monkeypatch.setattr(watch, "START_LIMIT", 600)
    monkeypatch.chdir(world.tree)
    lock = VmLock(world.context().instance.folder)
    assert lock.take(wait=5)
    assert main(["up", "--detach"]) == Code.BUSY
    assert "`vmoat up` again when it is through" in capsys.readouterr().err
    lock.free()
    world.vmoat("up", "--detach")
    world.vmoat("wait")


def test_nothing_starts_for_a_stack_whose_command_nobody_knows(world: World) -> None:
    config = world.tree / "vmoat.toml"
    text = config.read_text()
    config.write_text(text.replace('command = "echo up"', ""))
    for words in (["up", "--detach"], ["up"], ["up", "--detach", "--json"]):
        assert "nothing says how" in world.vmoat(*words, code=3).stderr
    config.write_text(text.replace('command = "echo tests"', ""))
    for words in (["up", "test", "--detach"], ["up", "test"]):
        assert "no test command" in world.vmoat(*words, code=3).stderr
    assert world.ran() == []


QUICK = {
    "up": ["--detach"], "exec": ["true"], "cp": ["--help"], "init": [], "image": ["ls"],
    "completion": ["bash"], "skill": ["install"], "hook": ["install"], "demo": ["--help"],
    "destroy": ["-f"], "logs": ["--stage", "seed"],
}  # fmt: skip
"""Arguments of commands that want some.

`demo` is a run of others; `cp` and most logs want a real guest.
"""


SERVES = {"dashboard"}
"""Says its URL and serves until it is ended: that is what it was started for."""


def test_with_a_closed_stdin_and_no_terminal_every_command_ends(world: World) -> None:
    world.vmoat("up")
    last = ["down", "destroy"]
    for name in sorted(set(parser.BY_NAME) - SERVES, key=lambda name: (name in last, name)):
        call = world.argv(name, *QUICK.get(name, []))
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *call], cwd=world.tree, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, (name, done.stderr)
        assert done.returncode in (0, 1, 2, 3, 4, 5, 125), (name, done.stderr)
        said = "ERROR" in done.stderr or name in ("doctor", "shot")  # what these find is an answer
        assert done.returncode == 0 or said, (name, done.stderr)


def test_only_what_takes_long_says_something(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, slow = (Output(io.StringIO(), io.StringIO()) for _ in range(2))
    patience.begin("down", quick)()
    monkeypatch.setattr(patience, "SOON", 0.05)
    patience.begin("gc", quick, quiet=True)
    call_off = patience.begin("down", slow)
    said = f"[vmoat] still at it; {patience.LONG['down']}\n"
    until(lambda: slow.stderr.getvalue() == said)  # type: ignore[attr-defined]
    call_off()
    assert quick.stderr.getvalue() == ""  # type: ignore[attr-defined]
    assert set(patience.LONG) <= set(parser.BY_NAME)


def test_what_is_not_begun_is_not_said_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that is busy answers late what is to be done; `vmoat wait` then finds no work."""
    monkeypatch.setattr(patience, "SOON", 0.05)
    monkeypatch.setattr(patience, "_follows", False)
    early, late = (Output(io.StringIO(), io.StringIO()) for _ in range(2))
    patience.begin("up", early)
    until(lambda: "still at it" in early.stderr.getvalue())  # type: ignore[attr-defined]
    assert "nothing is begun yet" in early.stderr.getvalue()  # type: ignore[attr-defined]
    assert "`vmoat up --detach` again" in early.stderr.getvalue()  # type: ignore[attr-defined]
    patience.follows()
    patience.begin("up", late)
    until(lambda: "still at it" in late.stderr.getvalue())  # type: ignore[attr-defined]
    assert "`vmoat wait` follows it" in late.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_command_with_tail_says_where_its_output_is_before_it_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.vmoat("up")
    monkeypatch.setattr(patience, "SOON", 0.2)
    monkeypatch.chdir(world.tree)
    assert main(["exec", "--tail", "1", "echo one; sleep 2"]) == 0
    said = capsys.readouterr()
    assert said.out == "one\n"
    file = said.err.rpartition(": ")[2].strip()
    assert "still at it" in said.err
    assert Path(file).read_text() == "one\n"


def test_a_bundle_that_takes_long_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def told() -> bool:
        said.append(capsys.readouterr().err)
        return "still at it; cut off, " in "".join(said)

    def write(ctx: object, folder: Path) -> Path:
        until(told)
        return folder

    monkeypatch.setattr(bundle, "write", write)
    monkeypatch.setattr(patience, "SOON", 0.05)
    monkeypatch.chdir(world.tree)
    assert main(["logs", "--bundle", "out"]) == 0
    assert capsys.readouterr().out == "out\n"


@pytest.mark.parametrize(
    "words",
    [["ls", "--json", "--wrong"], ["up", "--json", "--timeout", "x"], ["image", "--json", "wrong"],
     ["status", "--json", "extra"], ["-w", "a", "-w", "b", "plan", "--json"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_line_is_told_in_json_too(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == Code.USAGE
    error = json.loads(capsys.readouterr().out)
    assert (check(error), error["code"]) == ("error", 2)


@pytest.mark.parametrize("words", [["ls", "--wrong"], ["exec", "--tail", "-1", "a", "--json"]])
def test_who_asks_for_no_json_gets_none(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == Code.USAGE
    assert capsys.readouterr().out == ""
