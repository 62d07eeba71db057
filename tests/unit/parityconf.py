"""vmoat.conf, its keys and defaults, and what becomes of them in `up` (see ``parity.py``)."""

from __future__ import annotations

import os
import subprocess

from parity import CONF, KEYS, SHAPES, STAGES, Bench, row
from vmoat.tasks import apt

from vmoat import facts, health, view
from vmoat.config.detect import detect
from vmoat.config.table import BY_SHELL
from vmoat.context import host_size
from vmoat.drivers.colima.argv import Host, mount_type, vm_type
from vmoat.output import Output

# -- vmoat.conf --

SHAPE_VALUES = {
    "VM_CPU": 1,
    "VM_DISK": 80,
    "PROVISION_APT": ["git", "jq", "curl", "ca-certificates"],
    "PROVISION_SCRIPT": "command -v tool >/dev/null 2>&1 || echo installed tool",
    "PROVISION_SEED": [".env.keys", "config/local.yaml"],
    "CMD_UP": "INSTANCE_NAME=local VERSION=local ./deploy.sh local",
    "CMD_TEST": "./show.sh",
    "EXPOSE_PORTS": [30001, 18003],
}


@row(
    SHAPES, "vmoat.conf",
    "bash: `;` between assignments, `$HOME`, single quotes with code in them, arrays over several "
    "lines, comments after values, `export`, variables of your own",
)  # fmt: skip
def _shapes(vmoat_: Bench) -> None:
    for key, value in SHAPE_VALUES.items():
        assert vmoat_.setting(key) == value, key
    assert vmoat_.setting("VM_MOUNT") == str(vmoat_.root)


@row(
    SHAPES, "a vmoat.conf that computes", "is run by bash, whatever a branch has put there",
    "Plain assignments are read, never run. One with `$(…)`, `if`, functions or `source` is run by "
    "bash after `vmoat trust`, until a byte of it changes",
)  # fmt: skip
def _computes(vmoat_: Bench) -> None:
    vmoat_.conf(f'CMD_UP="$(touch {vmoat_.root}/ran; echo true)"\n')
    assert "vmoat trust" in vmoat_("up", code=3).err
    assert not (vmoat_.root / "ran").exists()
    vmoat_("trust", "--yes")
    assert vmoat_.setting("CMD_UP") == "true"
    assert (vmoat_.root / "ran").exists()


@row(SHAPES, "vmoat.local.conf", "comes after vmoat.conf, and wins")
def _local(vmoat_: Bench) -> None:
    (vmoat_.tree / "vmoat.local.conf").write_text('VM_DISK=33\nCMD_TEST="echo $MY_OWN"\n')
    assert vmoat_.setting("VM_DISK") == 33
    assert vmoat_.setting("CMD_TEST") == "echo local"
    assert vmoat_.setting("VM_CPU") == 1


@row(
    SHAPES, "a key with a typo", "is ignored",
    "Is let through as a variable of your own, with a word where it looks like one of ours",
)  # fmt: skip
def _typo(vmoat_: Bench) -> None:
    vmoat_.conf("CMD_UP=true\nCMD_TSET=x\n")
    said = vmoat_("config").err
    assert "CMD_TSET" in said
    assert "CMD_TEST" in said


# -- keys --


def defaults(vmoat_: Bench, key: str) -> object:
    vmoat_.conf("MY_OWN=1\n")
    return vmoat_.setting(key)


@row(KEYS, "`CMD_UP`", "detected: a compose file, a Makefile with `up:`")
def _cmd_up(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "CMD_UP") == ""
    (vmoat_.tree / "Makefile").write_text("up:\n\ttrue\n")
    assert "Makefile: make up" in vmoat_("plan").err
    (vmoat_.tree / "compose.yaml").write_text("services: {}\n")
    assert "compose.yaml: docker compose up -d --build" in vmoat_("plan").err


@row(KEYS, "`CMD_TEST`", "none")
def _cmd_test(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "CMD_TEST") == ""


@row(KEYS, "`CMD_DOWN`", "none", "`docker compose stop` where a compose file was detected")
def _cmd_down(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "CMD_DOWN") == ""
    (vmoat_.tree / "compose.yaml").write_text("services: {}\n")

    assert detect(vmoat_.tree).down == "docker compose stop"


@row(
    KEYS, "`VM_CPU`, `VM_MEMORY`, `VM_DISK`", "4, 8, 60 (GiB)",
    "The same, but by default never more than the host's CPUs and half its memory",
)  # fmt: skip
def _sizes(vmoat_: Bench) -> None:
    assert [BY_SHELL[key].default for key in ("VM_CPU", "VM_MEMORY", "VM_DISK")] == [4, 8, 60]

    host = host_size()
    assert defaults(vmoat_, "VM_CPU") == min(4, host.cpus)
    assert defaults(vmoat_, "VM_MEMORY") == max(1, min(8, host.memory_gib // 2))
    assert defaults(vmoat_, "VM_DISK") == 60


@row(
    KEYS, "`VM_CPU`, `VM_MEMORY`, `VM_DISK`, changed", "without effect on a VM that is there",
    "Hold from the next `vmoat up` on; `vmoat plan` says so",
)  # fmt: skip
def _resized(vmoat_: Bench) -> None:
    vmoat_("provision")
    vmoat_.conf(CONF.replace("VM_DISK=80", "VM_DISK=90"))
    plan = vmoat_("plan").out
    (line,) = [line for line in plan.splitlines() if line.startswith("vm ")]
    assert "run" in line.split()
    assert "90" in line


@row(
    KEYS, "`VM_MOUNT`", "none; the worktree must lie under it, else an error; all of it is shared",
    "The worktree must lie under it, else an error; the VM sees the worktree only",
)  # fmt: skip
def _mount(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "VM_MOUNT") == ""
    vmoat_.conf('VM_MOUNT="$HOME/elsewhere"\nCMD_UP=true\n')
    said = vmoat_("up", code=3).err
    assert "VM_MOUNT" in said
    assert str(vmoat_.tree) in said
    vmoat_.conf(CONF)
    spec = vmoat_.world.context(claim=False).spec
    assert spec.worktree == vmoat_.tree
    assert spec.shares == ()


@row(KEYS, "`PROVISION_APT`, `PROVISION_SCRIPT`, `PROVISION_SEED`", "none")
def _provisions(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "PROVISION_APT") == []
    assert defaults(vmoat_, "PROVISION_SCRIPT") == ""
    assert defaults(vmoat_, "PROVISION_SEED") == []


@row(KEYS, "`HEALTH_URL`, `HEALTH_TIMEOUT`", "none, 1800 s")
def _health_keys(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "HEALTH_URL") == ""
    assert defaults(vmoat_, "HEALTH_TIMEOUT") == 1800


@row(KEYS, "`EXPOSE_PORTS`", "an array or a string; none: what the containers publish",
     "The same, and `GUEST:HOST` in it")  # fmt: skip
def _expose(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "EXPOSE_PORTS") == []
    for text in ('"30001 18003"', "(30001 18003)", "(\n30001 # a\n18003\n)"):
        vmoat_.conf(f"EXPOSE_PORTS={text}\n")
        assert vmoat_.setting("EXPOSE_PORTS") == [30001, 18003]
    vmoat_.conf("EXPOSE_PORTS=(5432:15432)\n")
    assert vmoat_.setting("EXPOSE_PORTS") == ["5432:15432"]


@row(
    KEYS,
    "`VM_TYPE`, `MOUNT_TYPE`",
    "`vz` and `virtiofs` on macOS, else Colima's own choice",
    "The same on macOS 13 and later; else `qemu` and `9p`, where Colima would take sshfs, whose "
    "server lets the VM reach every file of yours",
)
def _types(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "VM_TYPE") == ""
    assert defaults(vmoat_, "MOUNT_TYPE") == ""
    spec = vmoat_.world.context(claim=False).spec
    for host, choice in (
        (Host("Darwin", "aarch64", macos=15), ("vz", "virtiofs")),
        (Host("Darwin", "x86_64", macos=12), ("qemu", "9p")),
        (Host("Linux", "x86_64"), ("qemu", "9p")),
    ):
        assert (vm_type(spec, host), mount_type(spec, host)) == choice
    vmoat_.conf('VM_TYPE="vz"\nMOUNT_TYPE="virtiofs"\n')
    assert (vmoat_.setting("VM_TYPE"), vmoat_.setting("MOUNT_TYPE")) == ("vz", "virtiofs")


@row(KEYS, "`VM_PREFIX`", "`wt-`")
def _prefix_default(vmoat_: Bench) -> None:
    assert defaults(vmoat_, "VM_PREFIX") == "wt-"


# -- stages --


@row(
    STAGES, "PROVISION_APT", "one `apt-get update`, then the packages that dpkg misses, each time",
    "The packages that dpkg misses, when the list changed; `apt-get update` where the VM's package "
    "lists are older than a week, or outdated",
)  # fmt: skip
def _apt(vmoat_: Bench) -> None:
    tools = vmoat_.root / "tools"
    tools.mkdir()
    (tools / "dpkg-query").write_text('#!/bin/sh\n[ "$4" = jq ] || echo installed\n')
    (tools / "apt-get").write_text(f'#!/bin/sh\necho "$@" >>{tools}/calls\n')
    (tools / "dpkg").write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    lists = vmoat_.root / "lists"
    lists.mkdir()
    script = apt.command(["git", "jq"]).replace("/var/lib/apt/lists", str(lists))
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    for age, calls in ((0, ["install"]), (30 * 86400, ["-f install", "update", "install"])):
        (tools / "calls").write_text("")
        stamp = lists.stat().st_ctime - age
        os.utime(lists, (stamp, stamp))
        subprocess.run(["bash", "-c", script], env=env, check=True, timeout=60)
        lines = (tools / "calls").read_text().splitlines()
        assert len(lines) == len(calls)
        assert all(call in line for call, line in zip(calls, lines, strict=True))
        assert lines[-1].split()[-1] == "jq"


@row(
    STAGES, "PROVISION_SCRIPT", "by a login shell, each time",
    "By a login shell, once; again when it changed, or a file of `provision.inputs`",
)  # fmt: skip
def _script(vmoat_: Bench) -> None:
    vmoat_("provision")
    assert vmoat_.world.ran().count("script") == 1
    vmoat_("provision")
    assert vmoat_.world.ran().count("script") == 1
    vmoat_.conf(CONF.replace("installed tool", "another"))
    vmoat_("provision")
    assert vmoat_.world.ran().count("script") == 2
    login_shell(vmoat_)


def login_shell(vmoat_: Bench) -> None:
    """The unit that runs stages in the guest, run here."""
    from test_stage_scripts import Unit

    folder = vmoat_.root / f"unit{len(list(vmoat_.root.iterdir()))}"
    folder.mkdir()
    unit = Unit(folder, "shopt -q login_shell && pwd")
    assert unit.run() == "0"
    assert unit.log == [str(folder)]


@row(STAGES, "CMD_UP", "by a login shell, in the worktree's path")
def _login(vmoat_: Bench) -> None:
    login_shell(vmoat_)
    vmoat_.conf("CMD_UP='mkdir -p out; pwd >out/where'\n")
    vmoat_("up")
    assert (vmoat_.tree / "out/where").read_text() == f"{vmoat_.tree}\n"


@row(STAGES, "PROVISION_SEED",
     "files and folders of the main checkout; one that exists is left alone")  # fmt: skip
def _seed(vmoat_: Bench) -> None:
    (vmoat_.tree / ".env.keys").write_text("mine\n")
    vmoat_("provision")
    assert (vmoat_.tree / ".env.keys").read_text() == "mine\n"
    assert (vmoat_.tree / "config/local.yaml").read_text() == "a: 1\n"


@row(STAGES, "a seed that is missing in both places", "a warning")
def _seed_missing(vmoat_: Bench) -> None:
    (vmoat_.repo / ".env.keys").unlink()
    said = vmoat_("provision").err
    assert "warning: " in said
    assert ".env.keys" in said


@row(
    STAGES, "HEALTH_URL", "curl inside the VM, 2xx, 5 s for an answer, every 5 s",
    "Asked inside the VM, 2xx, 5 s for an answer, every second. Without one: every container runs, "
    "and each healthcheck is green",
)  # fmt: skip
def _health(vmoat_: Bench) -> None:
    assert facts.HEALTH_LIMIT == 5
    assert health.POLL <= 5
    for code, well in ((200, True), (204, True), (302, False), (404, False), (503, False)):
        verdict = health.judge_facts(
            facts.Facts(docker=True, health_code=code), "http://localhost/"
        )
        assert verdict.healthy is well
    sick = facts.Container("i", "web", "p", "web", "i", "running", None, "unhealthy", False, 1, ())
    assert not health.judge_facts(facts.Facts(docker=True, containers=(sick,)), "").healthy


@row(
    STAGES, "HEALTH_TIMEOUT passes", "an error, exit code 1",
    "An error with the last lines of each container, exit code 6",
)  # fmt: skip
def _unhealthy(vmoat_: Bench) -> None:
    vmoat_.conf(CONF + "HEALTH_TIMEOUT=1\n")
    vmoat_.world.set("health", "503")
    said = vmoat_("up", code=6).err
    assert "HEALTH_TIMEOUT" in said
    assert "503" in said


@row(STAGES, "a wait", "a line each minute")
def _heartbeat(vmoat_: Bench) -> None:
    assert view.HEARTBEAT == 60

    shown = view.PlainView(Output())
    shown.show({"event": "stage_start", "stage": "health", "reason": "x", "time": 0.0})
    shown._last -= view.HEARTBEAT
    shown.tick()
    shown.tick()
    assert vmoat_.capfd.readouterr().err.count("health: still at it") == 1


@row(
    STAGES, "VM_MEMORY above the host's", "a warning",
    "A warning, and the VM gets what the host has; the same for VM_CPU",
)  # fmt: skip
def _memory(vmoat_: Bench) -> None:
    vmoat_.conf("VM_MEMORY=9999\nCMD_UP=true\n")

    assert "vm.memory = 9999" in vmoat_("config").err
    assert vmoat_.setting("VM_MEMORY") == host_size().memory_gib


@row(
    STAGES, "a first start that a slow database aborts", "fails; “just re-run”",
    "Is run once more by itself (`up.retries`), and says so",
)  # fmt: skip
def _retry(vmoat_: Bench) -> None:
    vmoat_.conf(
        "CMD_UP='[ -e out/again ] && exit 0; mkdir -p out; touch out/again; "
        "echo dependency failed to start: container db is unhealthy; exit 1'\n"
    )
    vmoat_("up")
    assert vmoat_.world.ran().count("stack") == 2
