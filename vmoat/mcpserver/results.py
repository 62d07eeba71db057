"""What the tools answer.  The output schemas that clients see are made from these classes.

A document of the command line keeps its fields; those that a later version adds are passed on.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """One tool's answer."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class PlannedStage(Answer):
    stage: str
    runs: bool
    reason: str


class Plan(Answer):
    """Each stage, whether `up` would run it, and the one reason why."""

    name: str
    """The VM's name."""
    stages: list[PlannedStage]


class StageRun(Answer):
    stage: str
    outcome: str
    """done, skipped or failed; running where the work goes on."""
    reason: str = ""
    seconds: float = 0.0


class Run(Answer):
    """How far an `up` came."""

    done: bool
    """False: the work goes on in the background, and `wait` follows it."""
    message: str
    stages: list[StageRun]
    """Those that this call has seen."""
    warnings: list[str]


class Status(Answer):
    """What is true now."""

    name: str
    worktree: str
    branch: str
    state: str
    """absent, stopped, starting, running, paused, broken."""
    reasons: list[str]
    """Why it is broken, or what does not work in it."""
    working: bool
    """Whether an `up` is at work."""
    healthy: bool | None
    health: str
    """What is not healthy."""


class Command(Answer):
    """A command that ran in the VM; a failing one is an answer like any other."""

    exit_code: int
    """The command's own; 128 + N where signal N ended it."""
    timed_out: bool
    """It was ended because `timeout` was over."""
    stdout: str
    stderr: str
    stdout_dropped: int
    """Bytes at the beginning that are not shown."""
    stderr_dropped: int
    notes: list[str]
    """What vmoat itself said; all that stands in stdout and stderr is the command's word."""


class Log(Answer):
    """The end of a log."""

    text: str
    dropped: int
    """Bytes at the beginning that are not shown."""


class Tunnel(Answer):
    url: str
    """Open this on the host."""
    guest: int
    host: int
    service: str


class Tunnels(Answer):
    tunnels: list[Tunnel]


class Shot(Answer):
    """A page as a browser sees it, with what went wrong in it."""

    exit_code: int
    """0, or 1 for a page with errors, 6 for one that did not load in time."""
    files: dict[str, str]
    """On the host: the picture (png), and the whole report (json)."""
    omitted: int
    """Errors and failed requests that are not here."""


class Down(Answer):
    message: str


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
    disk_bytes: int
    used_at: float
    """Unix time; 0 for never."""
    orphan: str
    """Why it is nobody's any more."""


class Fleet(Answer):
    """Every VM of this user on this machine."""

    vms: list[FleetVm]


class Error(Answer):
    """The structured content of a tool error."""

    message: str
    hint: str
    exit_code: int
    """Of the command line: 1 a stage failed, 2 usage, 3 configuration or trust, 4 something is
    missing on this machine, 5 the VM or its driver failed, 6 a time limit passed, 7 busy,
    125 vmoat failed before the command ran."""
    details: list[str]
    stage: str
    """The stage that failed, if one did."""
    next: list[str]
    """Command lines to go on with."""
