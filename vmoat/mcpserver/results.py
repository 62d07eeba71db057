"""What the tools answer.  The output schemas that clients see are made from these classes.

A document of the command line keeps its fields; those that a later version adds are passed on.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """One tool's answer."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Bounded(Answer):
    left_out: list[str] = []
    """What is too much for an answer, as in `vms: 150 more`; longer texts end with `…`."""


class PlannedStage(Answer):
    stage: str
    runs: bool
    reason: str


class Plan(Bounded):
    """Each stage, whether `up` would run it, and the one reason why."""

    name: str
    """The VM's name."""
    stages: list[PlannedStage]
    """In the order in which they run."""


class StageRun(Answer):
    stage: str
    outcome: str
    """done, skipped or failed; running where the work goes on."""
    reason: str = ""
    """Why it ran."""
    seconds: float = 0.0


class Run(Bounded):
    """How far an `up` came."""

    done: bool
    """False: the work goes on in the background, and `wait` follows it."""
    message: str
    """How it ended, or how to follow it."""
    stages: list[StageRun]
    """Those that this call has seen."""
    warnings: list[str]
    """What is not as the configuration would have it, and stopped nothing."""


class Container(Answer):
    name: str
    service: str
    state: str
    """dockerd's word: running, exited, restarting."""
    health: str
    """healthy, unhealthy, starting; empty without a healthcheck."""


class Tunnel(Answer):
    url: str
    """Open this on the host."""
    guest: int
    """The port in the VM."""
    host: int
    """The port on this machine's localhost."""
    service: str


class Status(Bounded):
    """What is true now."""

    name: str
    """The VM's name."""
    worktree: str
    """The worktree's folder, the same on the host and in the VM."""
    branch: str
    """Empty where HEAD is detached."""
    state: str
    """absent, stopped, starting, running, paused, broken."""
    reasons: list[str]
    """Why it is broken, or what does not work in it."""
    working: bool
    """Whether an `up` is at work."""
    healthy: bool | None
    """null where nobody can be asked."""
    health: str
    """What is not healthy."""
    containers: list[Container]
    """Of the stack."""
    tunnels: list[Tunnel]
    """Ports that are forwarded to localhost now."""


class Command(Answer):
    """A command that ran in the VM; a failing one is an answer like any other."""

    exit_code: int
    """The command's own; 128 + N where signal N ended it."""
    timed_out: bool
    """It was ended because `timeout` was over."""
    stdout: str
    """Its end."""
    stderr: str
    """Its end."""
    stdout_dropped: int
    """Bytes at the beginning that are not shown."""
    stderr_dropped: int
    """Bytes at the beginning that are not shown."""
    notes: list[str]
    """What vmoat itself said; all that stands in stdout and stderr is the command's word."""


class Log(Answer):
    """The end of a log."""

    text: str
    """What the branch's programs wrote."""
    dropped: int
    """Bytes at the beginning that are not shown."""


class Tunnels(Bounded):
    """Ports of the VM on this machine's localhost."""

    tunnels: list[Tunnel]
    """All that are open now."""


class Shot(Bounded):
    """A page as a browser sees it, with what went wrong in it."""

    exit_code: int
    """0, or 1 for a page with errors, 6 for one that did not load in time."""
    files: dict[str, str]
    """On the host: the picture (png), and the whole report (json)."""
    omitted: int
    """Errors and failed requests that are not even in the whole report."""


class Down(Answer):
    """That it is off."""

    message: str
    """What was done."""


class FleetUrl(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    service: str
    guest: int
    url: str
    open: bool
    """It leads there now."""


class FleetVm(BaseModel):
    """One VM.  What `ls` knows besides (each stage's history, CPU) is left out: with twenty VMs
    it would fill an agent's context.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    worktree: str
    branch: str
    repository: str
    state: str
    working: bool
    """Whether an `up` is at work."""
    health: str
    """healthy, unhealthy or unknown."""
    urls: list[FleetUrl]
    memory_bytes: int
    """Of this machine, held now."""
    disk_bytes: int
    """Of this machine, without what VMs share."""
    used_at: float
    """Unix time; 0 for never."""
    orphan: str
    """Why it is nobody's any more."""


class Fleet(Bounded):
    """Every VM of this user on this machine."""

    vms: list[FleetVm]
    """Those that run first, then the last used."""


class Error(Answer):
    """The structured content of a tool error."""

    message: str
    """What is wrong."""
    hint: str
    """What to do about it."""
    exit_code: int
    """Of the command line: 1 a stage failed, 2 usage, 3 configuration or trust, 4 something is
    missing on this machine, 5 the VM or its driver failed, 6 a time limit passed, 7 busy,
    125 vmoat failed before the command ran."""
    details: list[str]
    """The last lines of whatever failed."""
    stage: str
    """The stage that failed, if one did."""
    next: list[str]
    """Command lines to go on with."""
