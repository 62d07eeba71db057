"""What is true in a guest, asked in one round trip.

The script is bash and uses builtins wherever it can; dockerd and the health URL are asked over
channels of the ssh master (``vmoat.channels``), which start no program in the guest.  A unit's
state is read from its cgroup (``cgroup.events``) and, for vmoat's own, the exit code that it kept.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vmoat import clock, localfolders, stages

MARK = "\x1e"
"""Starts each section of the answer; JSON never holds it unescaped."""
HEALTH_LIMIT = 5
"""Seconds for the health URL."""


@dataclass(frozen=True)
class Probe:
    """Which facts are wanted, beside the ids, which cost nothing.

    ``docker``: the daemon and its containers.  ``units``: stages and services of vmoat by their
    names, others with ``.service``.
    """

    docker: bool = False
    units: tuple[str, ...] = ()
    health_url: str = ""
    sockets: bool = False
    space: bool = False
    worktree: str = ""
    local: tuple[str, ...] = ()
    """Folders of the worktree that may lie on the VM's own disk."""


@dataclass(frozen=True)
class Container:
    """A container as dockerd tells it."""

    id: str
    name: str
    project: str
    service: str
    image: str
    state: str
    """created, running, paused, restarting, exited, dead"""
    exit_code: int | None
    """Of one that ended or restarts."""
    health: str
    """"" (no check), starting, healthy, unhealthy"""
    oneoff: bool
    created: int
    ports: tuple[tuple[int, int], ...]
    """(published, inside) of each tcp port; its IPv4 and IPv6 twins are one, a range is many."""
    restarts: int = 0
    """Asked with ``inspect`` only, which is done for those that have just started."""
    up_seconds: float = float("inf")
    """Since its last start; ``inf`` from a minute on, and for one that does not run."""
    udp: tuple[int, ...] = ()
    """The published udp ports, which no ssh forward can carry."""

    @property
    def failed(self) -> bool:
        """It ended, and not with 0."""
        return self.state in ("exited", "dead") and self.exit_code != 0


@dataclass(frozen=True)
class Facts:
    """The guest's answer; what was not asked for is empty."""

    boot: str = ""
    """The host's token of this boot."""
    boot_id: str = ""
    """The kernel's own; the same in all clones of one memory image."""
    disk: str = ""
    data_disk: str = ""
    docker: bool = False
    containers: tuple[Container, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    """name → ``active``, ``exited N``, ``gone``"""
    health_code: int | None = None
    """HTTP status, 0 where nothing answered, None where it was not asked"""
    listening: frozenset[int] = frozenset()
    owned: frozenset[int] = frozenset()
    """Those that the processes of the units which were asked for listen on."""
    running_for: Mapping[str, int] = field(default_factory=dict)
    """unit → seconds since its command was last started, of an active one"""
    local: frozenset[str] = frozenset()
    """Those of the folders asked for that lie on the VM's own disk now."""
    space: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """mount → (bytes in all, bytes free); ``memory`` is the guest's memory"""

    def active(self, name: str) -> bool:
        """Whether a unit that was asked for runs."""
        return self.units.get(name) == "active"


IDS = """\
one() { local v=; for f; do [ -r "$f" ] && { read -r v <"$f"; break; }; done; printf '%s\\n' "$v"; }
mark() { printf '\\036%s\\n' "$1"; }
mark boot; one /run/vmoat/boot
mark kernel; one /proc/sys/kernel/random/boot_id
mark disk; one /etc/vmoat/disk-id
mark data; one /run/vmoat/data-id /var/lib/docker/.vmoat-disk
"""

UNIT = """\
unit() {
  local populated=0 key value of= rc= since= pid= cgroup=/sys/fs/cgroup/system.slice/$2
  [ -r "$cgroup/cgroup.events" ] && while read -r key value; do
    [ "$key" = populated ] && populated=$value
  done <"$cgroup/cgroup.events"
  [ -r "$3/rc" ] && read -r of rc <"$3/rc"
  if [ -n "$rc" ]; then printf 'exited %s\\t%s\\n' "$rc" "$1"
  elif [ "$populated" = 1 ]; then
    [ -r "$3/pid" ] && read -r _ since <"$3/pid"
    printf 'active\\t%s\\t%s\\n' "$1" "${since:+$((EPOCHSECONDS - since))}"
    while read -r pid; do fds="$fds /proc/$pid/fd"; done <"$cgroup/cgroup.procs"
  else printf 'gone\\t%s\\n' "$1"; fi
}
fds=
mark units
"""

OWNED = """\
[ -z "$fds" ] || {
  mark owned; find $fds -maxdepth 1 -lname 'socket:*' -printf '%l\\n' 2>/dev/null
}
"""
"""Which sockets the active units hold; it costs a program, and only where one runs."""


def _curl(url: str) -> str:
    """For a HEALTH_URL that needs TLS, or is another host's: the guest's own curl asks."""
    return (
        f"mark health; curl -s -k -g -m {HEALTH_LIMIT} --noproxy '*' -o /dev/null "
        f"-w '%{{http_code}}\\n' --url {shlex.quote(url)}\n"
    )


def _unit(name: str) -> str:
    own = not name.endswith(".service")
    unit, folder = (stages.unit(name), stages.folder(name)) if own else (name, "/nowhere")
    return f"unit {shlex.quote(name)} {shlex.quote(unit)} {folder}\n"


def script(probe: Probe, now: float) -> str:
    """The bash text that answers a probe; ``now`` is the host's time."""
    parts = [clock.step(now) + "\n", IDS]
    if probe.units:
        parts.append(UNIT + "".join(_unit(name) for name in probe.units))
    if probe.local:
        parts.append("mark local\n" + localfolders.asking(probe.worktree, probe.local))
    if probe.health_url:
        parts.append(_curl(probe.health_url))
    if probe.sockets:
        parts.append(
            "mark sockets\nfor f in /proc/net/tcp /proc/net/tcp6; do\n"
            "  [ -r $f ] && printf '%s\\n' \"$(<$f)\"\ndone\n"
        )
        if probe.units:
            parts.append(OWNED)
    if probe.space:
        parts.append(
            "mark memory; printf '%s\\n' \"$(</proc/meminfo)\"\n"
            "mark df; df -P -B1 / /var/lib/docker 2>/dev/null\n"
        )
    return "".join(parts) + "exit 0\n"


def parse(text: str) -> Facts:
    """Read the answer of ``script``; sections that are missing or broken count as not true."""
    found: dict[str, str] = {}
    for part in text.split(MARK)[1:]:
        name, _, body = part.partition("\n")
        found[name] = body.strip()
    units = [line.split("\t") for line in found.get("units", "").splitlines()]
    sockets = dict(_listening(found.get("sockets", "")))
    held = set(re.findall(r"^socket:\[(\d+)\]$", found.get("owned", ""), re.MULTILINE))
    return Facts(
        boot=found.get("boot", ""),
        boot_id=found.get("kernel", ""),
        disk=found.get("disk", ""),
        data_disk=found.get("data", ""),
        units={words[1]: words[0] for words in units if len(words) > 1},
        health_code=int(code) if (code := found.get("health", "")).isdigit() else None,
        listening=frozenset(sockets.values()),
        owned=frozenset(port for inode, port in sockets.items() if inode in held),
        running_for={w[1]: int(w[2]) for w in units if len(w) > 2 and w[2].isdigit()},
        local=frozenset(found.get("local", "").splitlines()),
        space={**_memory(found.get("memory", "")), **_df(found.get("df", ""))},
    )


def containers(
    listing: Iterable[Mapping[str, Any]], details: Mapping[str, Mapping[str, Any]]
) -> Iterable[Container]:
    """dockerd's answers as containers."""
    for entry in listing:
        yield _container(entry, details.get(entry["Id"]))


def _container(entry: Mapping[str, Any], more: Mapping[str, Any] | None) -> Container:
    labels = entry.get("Labels") or {}
    status = entry.get("Status") or ""
    ended = re.match(r"(?:Exited|Restarting) \((\d+)\)", status)
    health = re.search(r"\((?:health: )?(starting|healthy|unhealthy)\)", status)
    return Container(
        id=entry["Id"],
        name=(entry.get("Names") or [""])[0].lstrip("/"),
        project=labels.get("com.docker.compose.project", ""),
        service=labels.get("com.docker.compose.service", ""),
        image=entry.get("Image", ""),
        state=entry.get("State", ""),
        exit_code=int(ended[1]) if ended else None,
        health=health[1] if health else "",
        oneoff=labels.get("com.docker.compose.oneoff") == "True",
        created=int(entry.get("Created", 0)),
        ports=tuple(sorted({(public, private) for kind, public, private in _published(entry)
                            if kind == "tcp"})),
        udp=tuple(sorted({public for kind, public, _ in _published(entry) if kind == "udp"})),
        restarts=int(more.get("RestartCount", 0)) if more else 0,
        up_seconds=_up_seconds(status),
    )


def _published(entry: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """(protocol, published, inside) of each port; dockerd lists IPv4 and IPv6 one by one."""
    return [
        (str(port.get("Type")), int(port["PublicPort"]), int(port["PrivatePort"]))
        for port in entry.get("Ports") or ()
        if port.get("PublicPort")
    ]


def _up_seconds(status: str) -> float:
    """From dockerd's words: ``Up Less than a second``, ``Up 5 seconds``, ``Up 3 minutes``."""
    found = re.match(r"Up (Less than|\d+) (?:a )?second", status)
    if found is None:
        return float("inf")
    return float(found[1]) if found[1].isdigit() else 0.0


def _listening(text: str) -> Iterable[tuple[str, int]]:
    """(inode, port) of each listening socket (proc(5))."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A":  # TCP_LISTEN
            yield fields[9], int(fields[1].rsplit(":", 1)[1], 16)


def _memory(text: str) -> dict[str, tuple[int, int]]:
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE))
    if len(found) < 2:
        return {}
    return {"memory": (int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024)}


def _df(text: str) -> dict[str, tuple[int, int]]:
    paths = ("/", "/var/lib/docker")
    lines = text.splitlines()[1:]
    return {
        path: (int(fields[1]), int(fields[3]))
        for path, line in zip(paths, lines, strict=False)
        if len(fields := line.split()) >= 6
    }
