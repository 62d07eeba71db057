"""What a user's config means: order, origins, checks, and errors that say where and what to do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from vmoat.config import settings as config
from vmoat.config.reference import reference
from vmoat.config.settings import HostSize, Port, Settings
from vmoat.config.table import BY_ENV, BY_SHELL, SECTIONS, SETTINGS
from vmoat.config.toml_form import key_lines
from vmoat.errors import Code, VmoatError

GOLDEN = Path(__file__).parents[1] / "golden"
HOST = HostSize(16, 64)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def tree(home: Path) -> Path:
    path = home / "repo"
    (path / ".git").mkdir(parents=True)
    return path


def load(tree: Path, host: HostSize = HOST, flags: object = None, **env: str) -> Settings:
    given = typing.cast("dict[str, object]", flags or {})
    return config.load(tree, tree, env={"HOME": home_of(tree), **env}, flags=given, host=host)


def home_of(tree: Path) -> str:
    return str(tree.parents[1] if tree.parent.name == "github" else tree.parent)


def refused(tree: Path, **env: str) -> VmoatError:
    with pytest.raises(VmoatError) as caught:
        load(tree, **env)
    assert caught.value.code == Code.CONFIG
    assert caught.value.hint
    return caught.value


def user_config(text: str) -> Path:
    path = config.user_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- the table --


def test_table_and_dataclass_agree() -> None:
    kinds = {"int": int, "bool": bool, "ports": tuple[Port, ...]}
    hints = typing.get_type_hints(Settings)
    own = {field.name for field in dataclasses.fields(Settings)}
    assert own == {s.field for s in SETTINGS} | {
        "stages", "origins", "warnings", "form", "files",
    }  # fmt: skip
    for setting in SETTINGS:
        wanted = kinds.get(setting.kind, tuple[str, ...] if setting.is_list else str)
        assert hints[setting.field] == wanted, setting.key


def test_names_are_unique_and_every_section_has_a_heading() -> None:
    assert len(BY_ENV) == len(SETTINGS)
    assert len(BY_SHELL) == sum(1 for s in SETTINGS if s.shell)
    assert list(SECTIONS) == list(dict.fromkeys(s.key.split(".")[0] for s in SETTINGS))


def test_every_default_is_the_closed_state_of_its_wall() -> None:
    """... but the docker logins, which a VM has until the user closes them."""
    opened = {s.key for s in SETTINGS if s.widened_by(s.default)}
    assert opened == {"credentials.docker", "credentials.registries"}
    assert not any(s.widened_by(s.closed) for s in SETTINGS if s.key in opened)
    assert {s.key for s in SETTINGS if s.widens} == {
        "walls", "mounts.share", "git.writable", "network.open", "qemu.args", "colima.start_args",
        "ssh.forward_agent", "image.mirror", "credentials.docker", "credentials.registries",
        "cache.size", "cache.registries",
        "gc.grace",
    }  # fmt: skip


def test_examples_in_errors_and_docs_work(tree: Path) -> None:
    tree = tree.parent / "github" / "repo"
    (tree / ".git").mkdir(parents=True)
    for setting in SETTINGS:
        example = setting.default if setting.example is None else setting.example
        load(tree, flags={setting.key: example})


def test_reference_has_every_key() -> None:
    text = reference()
    for setting in SETTINGS:
        assert f"`{setting.key}`" in text
    assert text == (GOLDEN / "config_reference.md").read_text()


# -- where values come from --


def test_nothing_configured_gives_defaults_that_fit_the_host(tree: Path) -> None:
    got = load(tree, HostSize(2, 6))
    assert (got.vm_cpu, got.vm_memory, got.vm_disk, got.form) == (2, 3, 60, "none")
    assert got.warnings == ()
    assert got.origins["vm.cpu"].kind == "default"
    assert load(tree, HostSize(1, 1)).vm_memory == 1


def test_each_source_wins_over_those_before_it(tree: Path) -> None:
    user = user_config("[vm]\ncpu = 1\nmemory = 1\ndisk = 11\n[health]\ntimeout = 1\n")
    (tree / "vmoat.toml").write_text("[vm]\nmemory = 2\ndisk = 12\n\n[health]\ntimeout = 2\n")
    (tree / "vmoat.local.toml").write_text("[vm]\ndisk = 13\nprefix = 'x-'\n")
    got = load(
        tree,
        flags={"vm.prefix": "f-", "vm.cpu": None},
        VMOAT_HEALTH_TIMEOUT="4",
        VMOAT_VM_PREFIX="e",
    )
    assert (got.vm_cpu, got.vm_memory, got.vm_disk) == (1, 2, 13)
    assert (got.health_timeout, got.vm_prefix) == (4, "f-")
    where = {key: (origin.kind, str(origin)) for key, origin in got.origins.items()}
    assert where["vm.cpu"] == ("user", f"{user}:2")
    assert where["vm.memory"] == ("project", "vmoat.toml:2")
    assert where["vm.disk"] == ("local", "vmoat.local.toml:2")
    assert where["health.timeout"] == ("env", "VMOAT_HEALTH_TIMEOUT")
    assert where["vm.prefix"] == ("flag", "the command line")
    assert where["walls"] == ("default", "default")
    assert got.files == (tree / "vmoat.toml", tree / "vmoat.local.toml")


def test_environment_takes_lists_and_booleans(tree: Path) -> None:
    got = load(
        tree,
        VMOAT_PROVISION_APT="git, jq curl",
        VMOAT_TUNNEL_PORTS="8080,5432:15432",
        VMOAT_TUNNEL_AUTO="1",
        VMOAT_WALLS="false",
        VMOAT_QEMU_ARGS="-device 'virtio-rng-pci,max-bytes=1'",
        VMOAT_VM_CPU="",
        VMOAT_VM_CPUS="3",
        VMOAT_CI_TOKEN="x",
    )
    assert got.provision_apt == ("git", "jq", "curl")
    assert got.tunnel_ports == (Port(8080), Port(5432, 15432))
    assert (got.tunnel_auto, got.walls) == (True, False)
    assert got.qemu_args == ("-device", "virtio-rng-pci,max-bytes=1")
    assert got.origins["vm.cpu"].kind == "default"
    assert got.warnings == ("VMOAT_VM_CPUS sets nothing; did you mean VMOAT_VM_CPU?",)


def test_more_than_the_host_has_is_cut_with_a_warning(tree: Path) -> None:
    (tree / "vmoat.toml").write_text("[vm]\ncpu = 64\nmemory = 999\n")
    got = load(tree, HostSize(2, 7))
    assert (got.vm_cpu, got.vm_memory) == (2, 7)
    assert got.warnings[0].startswith("vmoat.toml:2: vm.cpu = 64, but this machine has 2 CPUs")
    assert "vm.memory = 999, but this machine has 7 GiB" in got.warnings[1]


def test_dump_shows_each_value_and_its_origin(tree: Path) -> None:
    (tree / "vmoat.toml").write_text(
        "tunnel.ports = [80, '81:8081']\n[stages.gen]\nrun = 'make gen'\n"
    )
    rows = {row.key: row for row in load(tree).dump()}
    assert rows["tunnel.ports"] == ("tunnel.ports", [80, "81:8081"], "vmoat.toml:1")
    assert rows["stages.gen.run"] == ("stages.gen.run", "make gen", "vmoat.toml:2")
    assert {s.key for s in SETTINGS} <= set(rows)


def test_a_later_file_changes_one_key_of_a_stage(tree: Path) -> None:
    (tree / "vmoat.toml").write_text("[stages.gen]\nrun = 'a'\ninputs = ['x/**']\n")
    (tree / "vmoat.local.toml").write_text("[stages.gen]\nrun = 'b'\n")
    (stage,) = load(tree).stages
    assert (stage.run, stage.inputs, stage.every) == ("b", ("x/**",), "change")


def test_loading_imports_nothing_slow() -> None:
    heavy = ["jinja2", "tomli_w", "plumbum", "rich", "doit", "hashlib", "tomllib", "difflib",
             "subprocess"]  # fmt: skip
    code = (
        "import sys, pathlib; import vmoat.config.settings as c\n"
        "c.load(pathlib.Path('/nonexistent'), None, env={'HOME': '/x'}, flags={},"
        " host=c.HostSize(2, 4))\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(root), "XDG_CONFIG_HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


# -- the lines --


def test_lines_of_keys_in_all_their_forms() -> None:
    text = (
        '# c [x]\n[vm] # = 3\ncpu = 1\n"mem\\u006fry" = 2\n\n[a.b]\nc.d = """\nx = 1\n"""\n'
        "e = [\n  # comment ]\n  '],', { f = 1 },\n]\n"
        "g = { h = 1, i = { j = 2 } }\n[[k]]\nl = '#'\n"
    )
    lines = key_lines(text)
    assert lines["vm", "cpu"] == 3
    assert lines["vm", "memory"] == 4
    assert lines["a", "b", "c", "d"] == 7
    assert lines["a", "b", "e"] == 10
    assert lines["a", "b", "g", "i", "j"] == 14
    assert lines["k", "l"] == 16
    assert ("x",) not in lines


# -- errors --

BAD = [
    ("vm = 3", "1: vm is a table, not 3", "write [vm]"),
    ("[vm]\ncpu = 0", "2: vm.cpu must be at least 1", "cpu = 4 under [vm]"),
    ("[vm]\ndisk = -3", "2: vm.disk must be at least 4 (GiB), not -3", "disk = 60"),
    ("[vm]\ncpu = true", "2: vm.cpu must be a whole number, not True", "cpu = 4"),
    ("[vm]\nmemory = 8.5", "2: vm.memory must be a whole number (GiB), not 8.5", "memory = 8"),
    ("[vm]\ncpu = '4'", "2: vm.cpu must be a whole number, not '4'", "cpu = 4"),
    ("[vm.cpu]\nx = 1", "1: vm.cpu must be a whole number", "cpu = 4"),
    ("[vm]\nmount_type = 'nfs'", '2: vm.mount_type must be one of "9p", "virtiofs"', "9p"),
    ("[vm]\nprefix = '../x'", "2: vm.prefix may hold letters, digits and -", "wt-"),
    ("[vm]\ncpus = 4", "2: there is no setting vm.cpus", "did you mean vm.cpu?"),
    ("cpu = 4", "1: there is no setting cpu", "did you mean vm.cpu?"),
    ("CMD_UP = 'x'", "1: CMD_UP is the name of a vmoat.conf", "in TOML it is up.command"),
    ("[zzz]", "1: there is no setting zzz", "vmoat help config"),
    ("\n\nup.command = [1]", "3: up.command must be one text, not a list", "command = "),
    ("up.command = 'a\0'", "1: holds a NUL byte", "remove it"),
    ('up.command = "a\\u0000"', "1: up.command holds a NUL byte", "command ="),
    ("tunnel.ports = [0]", "1: tunnel.ports holds port 0; ports go from 1 to 65535", "8080"),
    ("tunnel.ports = ['70000']", "1: tunnel.ports holds port 70000", "8080"),
    ("tunnel.ports = ['80:x']", "1: tunnel.ports must hold ports", "8080"),
    ("tunnel.ports = 80", "1: tunnel.ports must be a list, not 80", "ports = [8080"),
    ("provision.apt = 'git jq'", "1: provision.apt must be a list", 'apt = ["git", "jq"]'),
    ("provision.apt = ['-o x']", "1: provision.apt must hold package names", "git"),
    ("provision.seed = ['/etc/passwd']", "1: provision.seed must hold paths inside", ".env"),
    ("provision.seed = ['a/../../x']", "1: provision.seed must hold paths inside", "seed ="),
    ("provision.seed = ['.git/config']", "1: provision.seed names the git folder", "seed ="),
    ("up.inputs = ['../**']", "1: up.inputs must hold paths inside the worktree", "inputs"),
    ("health.url = '-o x'", "1: health.url must be a URL", "http://"),
    ("health.timeout = 0", "1: health.timeout must be at least 1 (seconds)", "1800"),
    ("image.mirror = 'ftp://x'", "1: image.mirror must be a http:// or", "mirror.example.org"),
    ("cache.size = 0", "1: cache.size must be at least 1 (GiB)", "size = 20"),
    ("cache.registries = ['ghcr.io']", "1: cache.registries must hold registries", "127.0.0.1:50"),
    ("cache.registries = ['a:0']", "1: cache.registries must hold registries", "127.0.0.1:5001"),
    ("cache.registries = ['[:::]:1']", "1: cache.registries must hold registries", "127.0.0.1:5"),
    ("mounts.share = ['x']", "1: mounts.share must be an absolute path", "~/.cache"),
    ("walls = 1", "1: walls must be true or false, not 1", "walls = true"),
    ("driver = 'vbox'", '1: driver must be one of "qemu", "colima"', "qemu"),
    ("a =", "1: broken TOML", "correct that line"),
    ("[vm]\ncpu = 1\ncpu = 2", "3: broken TOML", "correct that line"),
    ("x = '''\n", "1: broken TOML", "correct"),
    ("a = " + "[" * 5000, "nested too deep", "flatten"),
    ("vm.cpu = 0x" + "f" * 9000, "1: vm.cpu must be at most 1024, not a number that large", "4"),
    ("stages = 1", "1: stages must be tables", "[stages.NAME]"),
    ("stages.a = 1", "1: stages.a must be a table", "run"),
    ("[stages.a]", "1: stages.a has no command", "write run"),
    ("[stages.a]\nrun = ''", "1: stages.a has no command", "write run"),
    ("[stages.a]\nrun = 'x'\nwhen = 1", "3: stages.a has no key 'when'", "known: run"),
    ("[stages.a]\nrun = 1", "2: stages.a.run must be a text", "run ="),
    ("[stages.a]\nrun = 'x'\nevery = 'day'", '1: stages.a.every must be one of "change"', "every"),
    ("[stages.a]\nrun = 'x'\nafter = 'seed'", "3: stages.a.after must be a list", "after = ["),
    ("[stages.a]\nrun = 'x'\nafter = ['sead']", "1: stages.a.after names 'sead'", '"seed"'),
    ("[stages.apt]\nrun = 'x'", "1: stages.apt takes the name of the built-in stage `apt`", "own"),
    ("[stages.up]\nrun = 'x'", "1: stages.up takes the name", "own"),
    ("[stages.'A b']\nrun = 'x'", "1: stages.'A b' is no name for a stage", "a-z"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "cure"), BAD, ids=[row[0][:40] for row in BAD])
def test_bad_toml_names_file_line_key_and_cure(
    tree: Path, text: str, message: str, cure: str
) -> None:
    (tree / "vmoat.toml").write_text(text + "\n")
    error = refused(tree)
    assert error.message.startswith("vmoat.toml:")
    assert message in error.message
    assert cure in error.hint
    assert "\n" not in error.message


def test_errors_name_the_user_file_and_the_variable(tree: Path) -> None:
    assert "VMOAT_VM_CPU: vm.cpu must be a whole number" in refused(tree, VMOAT_VM_CPU="x").message
    error = refused(tree, VMOAT_WALLS="maybe")
    assert "VMOAT_WALLS: walls must be true or false, not 'maybe'" in error.message
    assert "VMOAT_WALLS=true" in error.hint
    assert "is not UTF-8" in refused(tree, VMOAT_UP_COMMAND="\udcff").message
    path = user_config("[vm]\ncpu = 'x'\n")
    assert refused(tree).message.startswith(f"{path}:2: vm.cpu")


def test_flags_are_checked_too(tree: Path) -> None:
    with pytest.raises(VmoatError, match=r"vm\.cpu must be at least 1"):
        load(tree, flags={"vm.cpu": 0})
    with pytest.raises(VmoatError, match=r"did you mean vm\.cpu"):
        load(tree, flags={"vm.cpus": 1})
    assert load(tree, flags={"vm.cpu": "3"}).vm_cpu == 3


def test_both_forms_are_an_error_that_names_the_files(tree: Path) -> None:
    (tree / "vmoat.toml").write_text("")
    (tree / "vmoat.local.conf").write_text("")
    error = refused(tree)
    assert "vmoat.toml beside vmoat.local.conf" in error.message


def test_files_that_are_no_files(tree: Path) -> None:
    path = tree / "vmoat.toml"
    path.mkdir()
    assert refused(tree).message == "vmoat.toml: is not a regular file"
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert refused(tree).message == "vmoat.toml: is not a regular file"
    path.unlink()
    path.symlink_to(tree / "nowhere")
    assert "can't be read: No such file" in refused(tree).message
    path.unlink()
    path.write_bytes(b"a = 1\n\n# \xff\n")
    assert refused(tree).message == "vmoat.toml:3: is not UTF-8"
    path.write_text("#" * 300_000)
    assert "has more than" in refused(tree).message


def test_the_worktree_must_lie_under_the_mount(tree: Path) -> None:
    for text in ("~", "~/", "$HOME", "${HOME}/repo", str(tree.parent)):
        (tree / "vmoat.toml").write_text(f"[vm]\nmount = '{text}'\n")
        load(tree)
    (tree / "vmoat.toml").write_text("[vm]\nmount = '~/rep'\n")
    error = refused(tree)
    assert error.message.startswith("vmoat.toml:2: the worktree ")
    assert "does not lie under vm.mount" in error.message


def test_a_byte_order_mark_is_no_harm(tree: Path) -> None:
    (tree / "vmoat.toml").write_bytes(b"\xef\xbb\xbf[vm]\r\ncpu = 3\r\n")
    got = load(tree)
    assert (got.vm_cpu, str(got.origins["vm.cpu"])) == (3, "vmoat.toml:2")
