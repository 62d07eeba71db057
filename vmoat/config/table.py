"""Every setting of vmoat, once: the parser, the environment, `vmoat config` and the docs read this.

A setting that *widens* opens one of the VM's walls.  From a project's file, which comes with the
branch, such a value counts only after `vmoat trust` (see ``vmoat.config.trust``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "str", "bool", "int", "url", "path", "choice", "name", "apt", "seeds", "globs", "ports",
    "shares", "args", "folders", "registries", "endpoints", "duration", "portion",
]  # fmt: skip

LISTS: frozenset[str] = frozenset(
    {"apt", "seeds", "globs", "ports", "shares", "args", "folders", "registries", "endpoints"}
)
"""The kinds whose value is a tuple."""

PROJECT_TOML = ("vmoat.toml", "vmoat.local.toml")
PROJECT_SHELL = ("vmoat.conf", "vmoat.local.conf")
PROJECT_FILES = PROJECT_TOML + PROJECT_SHELL
"""Names of a worktree's own config files: read-only inside the VM."""

DAY = 86_400


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its names, what it holds, and what it means.

    ``key`` is the dotted TOML key, ``shell`` the name in a vmoat.conf (None: TOML only), ``unit``
    and the limits belong to integers, ``example`` is a value that works, for errors and docs.
    ``closed`` is the value that opens nothing, where that is not the default.
    """

    key: str
    kind: Kind
    default: object
    help: str
    shell: str | None = None
    widens: bool = False
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0
    unit: str = ""
    example: object = None
    closed: object = None

    @property
    def field(self) -> str:
        """The attribute of ``Settings``."""
        return self.key.replace(".", "_")

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return "VMOAT_" + self.field.upper()

    @property
    def is_list(self) -> bool:
        return self.kind in LISTS

    def widened_by(self, value: object) -> bool:
        """Whether this value opens a wall: without ``closed``, the default is the closed state."""
        return self.widens and value != (self.default if self.closed is None else self.closed)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "up.command",
        "str",
        "",
        "The command that starts the stack, in the worktree, inside the VM. Without one, it is "
        "detected: a compose file, a Makefile with `up:`, a package.json with a `dev` script.",
        shell="CMD_UP",
        example="docker compose up -d --build",
    ),
    Setting(
        "up.inputs",
        "globs",
        (),
        "What the stack is made from, as globs; it starts again when one of these files changed. "
        "Without any: everything that git doesn't ignore, and the seed files.",
        example=("compose.yaml", "src/**"),
    ),
    Setting(
        "up.retries",
        "int",
        1,
        "How often a start that failed because a container restarted while it initialised is "
        "tried again.",
        minimum=0,
        maximum=10,
        example=1,
    ),
    Setting(
        "up.service",
        "bool",
        False,
        "The command doesn't return (a dev server): it runs as a service, up while it is active, "
        "and started again when it ends with an error.",
        example=True,
    ),
    Setting(
        "up.project",
        "name",
        "",
        "COMPOSE_PROJECT_NAME inside the VM; without one, the repository's name, so that images "
        "and volumes have the same names in every worktree's VM.",
        shell="COMPOSE_PROJECT_NAME",
        example="shop",
    ),
    Setting(
        "test.command",
        "str",
        "",
        "The command of `vmoat test`; arguments of `vmoat test` are appended, each quoted.",
        shell="CMD_TEST",
        example="pytest",
    ),
    Setting(
        "down.command",
        "str",
        "",
        "Runs before the VM is stopped. With a detected compose file: `docker compose stop`.",
        shell="CMD_DOWN",
        example="docker compose stop",
    ),
    Setting(
        "vm.cpu",
        "int",
        4,
        "CPUs of the VM; by default never more than the host has.",
        shell="VM_CPU",
        minimum=1,
        maximum=1024,
        example=4,
    ),
    Setting(
        "vm.memory",
        "int",
        8,
        "Memory of the VM; by default never more than half the host's.",
        shell="VM_MEMORY",
        minimum=1,
        maximum=65_536,
        unit="GiB",
        example=8,
    ),
    Setting(
        "vm.disk",
        "int",
        60,
        "Size of the VM's Docker disk. It takes room on the host only as it fills.",
        shell="VM_DISK",
        minimum=4,
        maximum=65_536,
        unit="GiB",
        example=60,
    ),
    Setting(
        "vm.type",
        "choice",
        "",
        "Kind of VM, for the colima driver.",
        shell="VM_TYPE",
        choices=("", "qemu", "vz", "krunkit"),
        example="vz",
    ),
    Setting(
        "vm.mount",
        "path",
        "",
        "A folder that the worktree must lie under. It shares nothing: the VM sees the worktree.",
        shell="VM_MOUNT",
        example="~/github",
    ),
    Setting(
        "vm.mount_type",
        "choice",
        "",
        "How the worktree is shared with the VM; without one, the best that passes its check.",
        shell="MOUNT_TYPE",
        choices=("", "9p", "virtiofs", "sshfs"),
        example="9p",
    ),
    Setting(
        "vm.idle",
        "duration",
        "",
        "Stop the VM, as `vmoat down` does, when it was idle for that long: no command in it, no "
        "connection over a tunnel, no load. The next command starts it again. Without one, never.",
        example="30m",
    ),
    Setting(
        "vm.prefix",
        "name",
        "wt-",
        "How the names of VMs begin.",
        shell="VM_PREFIX",
        example="wt-",
    ),
    Setting(
        "provision.apt",
        "apt",
        (),
        "Debian packages that the VM needs.",
        shell="PROVISION_APT",
        example=("git", "jq"),
    ),
    Setting(
        "provision.script",
        "str",
        "",
        "A shell command that prepares the VM, once a disk; again when it or its inputs changed.",
        shell="PROVISION_SCRIPT",
        example="./scripts/provision.sh",
    ),
    Setting(
        "provision.inputs",
        "globs",
        (),
        "What the script is made from, as globs.",
        example=("scripts/provision.sh",),
    ),
    Setting(
        "provision.seed",
        "seeds",
        (),
        "Files and folders that git ignores, copied from the main checkout where the worktree "
        "has none. From a worktree's config, each that the main checkout's own config doesn't "
        "list needs `vmoat trust`.",
        shell="PROVISION_SEED",
        example=(".env",),
    ),
    Setting(
        "health.url",
        "url",
        "",
        "The stack is healthy when this answers 2xx inside the VM. Without one: when every "
        "container runs or ended with 0, every healthcheck is green, and a service listens.",
        shell="HEALTH_URL",
        example="http://localhost:8080/health",
    ),
    Setting(
        "health.timeout",
        "int",
        1800,
        "How long to wait for it.",
        shell="HEALTH_TIMEOUT",
        minimum=1,
        maximum=7 * DAY,
        unit="seconds",
        example=1800,
    ),
    Setting(
        "tunnel.ports",
        "ports",
        (),
        "Ports of the VM that `vmoat tunnel` forwards: PORT or GUEST:HOST. Without any: what the "
        "containers publish.",
        shell="EXPOSE_PORTS",
        example=(8080, "5432:15432"),
    ),
    Setting("tunnel.auto", "bool", False, "Open the tunnels at the end of `vmoat up`."),
    Setting(
        "browser.command",
        "str",
        "",
        "The Chromium or Chrome of `vmoat open`, `shot` and `browser-args`: a program of this "
        "machine, with arguments. Without one, what is installed is found.",
        widens=True,
        example="chromium --ignore-certificate-errors",
    ),
    Setting(
        "driver",
        "choice",
        "",
        "What runs the VM; without one, qemu on Linux and colima on macOS.",
        choices=("", "qemu", "colima"),
        example="qemu",
    ),
    Setting(
        "walls",
        "bool",
        True,
        "Keep the VM behind the walls of the host. `false` widens: no sandbox around the VM.",
        widens=True,
        example=True,
    ),
    Setting(
        "mounts.local",
        "folders",
        (),
        "Folders of the worktree that lie on the VM's own disk, over the host's: quick, and kept "
        "until `vmoat destroy`. The host's folder of that name stays as it was (an empty one is "
        "made where there is none).",
        shell="MOUNTS_LOCAL",
        example=("node_modules", ".venv", "target"),
    ),
    Setting(
        "mounts.share",
        "shares",
        (),
        "More folders of the host that the VM sees: PATH, or PATH:ro for read-only.",
        widens=True,
        example=("~/.cache/models:ro",),
    ),
    Setting(
        "git.writable",
        "bool",
        False,
        "Let the VM write the repository's git folder. What it writes there, the host's git runs.",
        widens=True,
    ),
    Setting(
        "network.open",
        "bool",
        False,
        "No network filter: the VM reaches the host's loopback and the local network.",
        widens=True,
    ),
    Setting(
        "qemu.args",
        "args",
        (),
        "More arguments for QEMU.",
        widens=True,
        example=("-device", "virtio-rng-pci"),
    ),
    Setting(
        "colima.start_args",
        "args",
        (),
        "More arguments for `colima start`.",
        widens=True,
        example=("--disk-image", "/srv/images/guest.qcow2", "--force-disk-image"),
    ),
    Setting(
        "layers.enabled",
        "bool",
        True,
        "Let a new VM's Docker data begin as a copy of another of the repository (colima): "
        "images and build cache are there, its containers and volumes are left out.",
        example=True,
    ),
    Setting(
        "watch.enabled",
        "bool",
        True,
        "Tell programs in the VM (inotify) what the host changes in the worktree, so that a saved "
        "file wakes vite, nodemon, `uvicorn --reload` and the like. What git ignores is left out.",
    ),
    Setting(
        "ssh.forward_agent",
        "bool",
        False,
        "Forward the ssh agent into the VM: all that runs there may use its keys.",
        widens=True,
    ),
    Setting(
        "hook.up",
        "bool",
        False,
        "git's hook (`vmoat hook install`) brings up each new worktree in the background. Only "
        "your own config.toml and the environment count.",
        widens=True,
        example=True,
    ),
    Setting(
        "credentials.docker",
        "bool",
        True,
        "The host's docker logins serve pulls and builds in the VM: all that runs there can ask "
        "for each of them.",
        widens=True,
        closed=False,
    ),
    Setting(
        "credentials.registries",
        "registries",
        ("*",),
        "The registries whose logins are served. `*` stands for any text; `docker.io` is Docker "
        "Hub.",
        widens=True,
        closed=(),
        example=("ghcr.io", "*.example.com"),
    ),
    Setting(
        "image.mirror",
        "url",
        "",
        "Debian mirror of the guest image; without one, mmdebstrap's own. The image is shared by "
        "all projects.",
        widens=True,
        example="http://mirror.example.org/debian",
    ),
    Setting(
        "cache.enabled",
        "bool",
        True,
        "Keep the container images that dockerd pulls on this machine, for all VMs: the second "
        "pull asks the registry for no blob.",
    ),
    Setting(
        "cache.size",
        "int",
        20,
        "How much of them is kept; what was used least recently goes first. All projects share it.",
        widens=True,
        minimum=1,
        maximum=65_536,
        unit="GiB",
        example=20,
    ),
    Setting(
        "cache.registries",
        "endpoints",
        (),
        "Registries, HOST:PORT, that dockerd may reach although they are this machine's own. One "
        "on loopback speaks plain http, and its images are host.vmoat.internal:PORT/NAME in the "
        "VM.",
        widens=True,
        example=("127.0.0.1:5001",),
    ),
    Setting(
        "fleet.memory",
        "portion",
        "75%",
        "The memory that all running VMs may have together, in GiB or as a part of the host's: an "
        "`up` for which there is no room waits in a queue (`--no-wait`: exit 7).",
        widens=True,
        example="75%",
    ),
    Setting(
        "fleet.evict",
        "choice",
        "never",
        "What is done for an `up` without room: `idle` stops the VM that was idle for longest, and "
        "for a minute at least.",
        widens=True,
        choices=("never", "idle"),
        example="idle",
    ),
    Setting(
        "gc.grace",
        "duration",
        "72h",
        "How long `vmoat gc` keeps a VM whose worktree was removed, stopped, where it has named "
        "Docker volumes or may have some.",
        widens=True,
        example="72h",
    ),
)

BY_KEY: dict[str, Setting] = {setting.key: setting for setting in SETTINGS}
BY_SHELL: dict[str, Setting] = {setting.shell: setting for setting in SETTINGS if setting.shell}
BY_ENV: dict[str, Setting] = {setting.env: setting for setting in SETTINGS}
