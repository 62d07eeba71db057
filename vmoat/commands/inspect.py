"""name, status, logs: what is there, what is true, what was said."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmoat.commands import context, start
from vmoat.errors import Code, VmoatError
from vmoat.output import Output

if TYPE_CHECKING:
    from vmoat.channels import Usage
    from vmoat.context import Context


def name(args: argparse.Namespace, out: Output) -> int:
    """The VM's name and nothing else.  From two small files where it was claimed before."""
    from vmoat import instance, worktree

    tree = worktree.named(start(args), args.branch or "")
    known = instance.known(tree)
    out.answer(known.name if known else context(args, tolerant=True).instance.name)
    return int(Code.OK)


def status(args: argparse.Namespace, out: Output) -> int:
    """What is true now: the VM from its processes, the rest in one question to the guest."""
    ctx = context(args, claim=False, tolerant=True)
    for warning in ctx.settings.warnings:
        out.warn(warning)
    report = status_report(ctx, patience=LONG if args.verbose else SHORT)
    if args.json:
        out.json(report)
        return int(Code.OK)
    for label, value in _rows(report):
        out.answer(f"{label:<10} {value}")
    for reason in report["reasons"]:
        out.say(f"{report['state']}: {reason}")
    if report["state"] not in ("running", "absent", "stopped"):
        out.say("→ `vmoat up` repairs it")
    return int(Code.OK)


SHORT, LONG = 0.3, 30.0
"""Seconds more for dockerd to count what its parts weigh: without and with ``-v``."""


def status_report(ctx: Context, *, patience: float = SHORT) -> dict[str, Any]:
    """Everything that ``status --json`` prints."""
    from vmoat import health, tunnels, watch

    ctx.wants_space = True
    usage = _docker_usage(ctx)
    facts = ctx.facts()
    vm = ctx.status
    state, reasons = vm.state, list(vm.reasons)
    if state == "running" and facts is None:
        state, reasons = "broken", [*reasons, "the guest does not answer ssh"]
    elif facts and not facts.docker:
        reasons.append("dockerd does not answer in the guest")
    reasons += _rest(ctx, state)
    log = watch.active(ctx)
    if log is not None and state in ("absent", "stopped", "broken"):
        state = "starting"
    report: dict[str, Any] = {
        "schema": "vmoat.status/1",
        "name": ctx.instance.name,
        "worktree": str(ctx.worktree.path),
        "branch": ctx.worktree.branch(),
        "driver": ctx.driver.name,
        "state": state,
        "reasons": reasons,
        "accel": vm.accel,
        "mount": vm.mount,
        "working": log is not None,
        "disk_bytes": ctx.driver.weight(ctx.instance.name) if ctx.instance.claimed else 0,
        "healthy": None,
        "health": "",
        "containers": [],
        "service": None,
        "watch": {},
        "tunnels": [],
        "waiting": [],
        "browser": None,
        "guest": {},
        "weights": {"host": ctx.driver.weights(ctx.instance.name) if ctx.instance.claimed else {},
                    "docker": None},
    }
    if facts:
        verdict = health.judge(ctx)
        report["healthy"], report["health"] = verdict.healthy, verdict.reason
        report["containers"] = [
            {"name": c.name, "service": c.service, "state": c.state, "exit_code": c.exit_code,
             "health": c.health, "restarts": c.restarts} for c in facts.containers
        ]  # fmt: skip
        report["tunnels"] = [
            {"url": t.url, "guest": t.guest, "host": t.host, "service": t.service}
            for t in tunnels.open_tunnels(ctx)
        ]
        report["guest"] = {
            mount: {"bytes": total, "free": free} for mount, (total, free) in facts.space.items()
        }
        if health.is_service(ctx):
            report["service"] = {"state": facts.units.get("stack", "gone"),
                                 "ports": sorted(tunnels.own_ports(facts))}  # fmt: skip
    if state == "running":
        from vmoat.companion import process

        report["watch"] = process.state(ctx.instance.vm_id).get("watch") or {}
    if ctx.instance.claimed:
        alive = {entry["host"] for entry in report["tunnels"]}
        from vmoat.browser.argv import proxy_url

        kept = sorted(tunnels.kept(ctx).read().items())
        report["waiting"] = [{"guest": g, "host": h} for h, g in kept if g and h not in alive]
        report["browser"] = next((proxy_url(h) for h, g in kept if not g), None)
    if usage is not None:
        usage.join(patience)
        report["weights"]["docker"] = usage.parts
    return report


def _rest(ctx: Context, state: str) -> list[str]:
    """Why a VM does not run that is no broken one."""
    from vmoat.fleet import sleep, tickets

    if state not in ("stopped", "absent") or not ctx.instance.claimed:
        return []
    if ctx.instance.name in tickets.waiting():
        return ["it waits for room ([fleet] memory)"]
    slept = sleep.of(ctx.instance.folder)
    return [f"it {slept.words()}; the next command starts it"] if slept else []


def _docker_usage(ctx: Context) -> Usage | None:
    """The question to dockerd, under way beside all others; None where nobody can be asked."""
    from vmoat.channels import Usage

    if ctx.status.state != "running" or not ctx.guest.connected():
        return None
    return Usage(ctx.guest.connection, LONG)


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    accel = {"kvm": " (KVM)", "tcg": " (software emulation)"}.get(report["accel"], "")
    rows = [
        ("name", report["name"]),
        ("worktree", f"{report['worktree']}  {report['branch']}".rstrip()),
        ("state", report["state"] + accel + (", working" if report["working"] else "")),
    ]
    if report["state"] == "running":
        rows.append(("shares", report["mount"]))
    if report["healthy"] is not None:
        rows.append(("health", "healthy" if report["healthy"] else report["health"]))
    for entry in report["containers"]:
        state = entry["state"]
        if state == "exited":
            state += f" {entry['exit_code']}"
        note = f", {entry['health']}" if entry["health"] else ""
        rows.append(("container", f"{entry['name']}: {state}{note}"))
    if report["service"]:
        rows.append(("service", _service_row(report["service"])))
    if report["watch"]:
        rows.append(("watch", _watch_row(report["watch"])))
    rows += [
        ("tunnel", f"{t['url']} → {t['service'] or 'port'} {t['guest']}") for t in report["tunnels"]
    ]
    running = report["state"] == "running"
    waits = "that port is taken, `vmoat up` tries again" if running else "comes back with the VM"
    rows += [
        ("tunnel", f"localhost:{t['host']} → {t['guest']}: " + waits)
        for t in report["waiting"]
    ]
    if report["browser"]:
        rows.append(("browser", f"{report['browser']}: its localhost is this VM"))
    rows += _weight_rows(report)
    for mount, space in report["guest"].items():
        rows.append((
            "guest", f"{mount}: {gib(space['free'])} free of {gib(space['bytes'])}",
        ))  # fmt: skip
    return rows


def _watch_row(watch: dict[str, Any]) -> str:
    if watch["failure"]:
        return f"does not work: {watch['failure']}"
    what = f"{watch['files']} files in {watch['folders']} folders"
    return what if watch["connected"] else f"{what}; the guest is not told yet"


def _service_row(service: dict[str, Any]) -> str:
    ports = ", ".join(map(str, service["ports"]))
    state = str(service["state"])
    state = {"active": "running", "gone": "not running"}.get(state, state)
    return state + (f", listens on {ports}" if ports else "")


def _weight_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What each part weighs, on the host and in Docker."""
    host, docker = report["weights"]["host"], report["weights"]["docker"]
    disks = [f"{part} {gib(host[part])}" for part in ("system", "data") if host.get(part)]
    rows = [("disk", f"{gib(report['disk_bytes'])} on the host"
                     + (f" ({', '.join(disks)})" if disks else ""))]  # fmt: skip
    if host.get("image"):
        rows.append(("image", f"{gib(host['image'])} on the host, for all VMs that stand on it"))
    if host.get("memory"):
        rows.append(("memory", f"{gib(host['memory'])} of the host's"))
    if docker is not None:
        rows.append(("docker", ", ".join(f"{part} {gib(size)}" for part, size in docker.items())))
    elif report["guest"]:
        rows.append(("docker", "counts what it holds: `vmoat status -v` waits for it"))
    return rows


def gib(count: int) -> str:
    """Bytes for a person."""
    if count < 2**30:
        return f"{count / 2**20:.0f} MiB"
    return f"{count / 2**30:.1f} GiB"


def logs(args: argparse.Namespace, out: Output) -> int:
    """The stack's logs, a stage's, the console's, or all of it in a folder."""
    ctx = context(args, claim=False, tolerant=True)
    if args.bundle:
        from vmoat import patience
        from vmoat.bundle import write

        patience.after(lambda: "cut off, `vmoat logs --bundle DIR` again begins anew", out)
        out.answer(str(write(ctx, Path(args.bundle))))
        return int(Code.OK)
    if args.console:
        return _console(ctx, args, out)
    if args.follow:
        _end_with_the_reader()
    if args.stage:
        return _stage_log(ctx, args, out)
    return ctx.guest.exec([_stack_line(ctx, args)])


def _end_with_the_reader() -> None:
    """As `kill` would: what runs in the VM is ended too.  Else it followed a quiet log for ever."""
    import signal

    from vmoat import reader

    reader.when_gone(1, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _console(ctx: Context, args: argparse.Namespace, out: Output) -> int:
    from vmoat.output import printable

    file = ctx.driver.console_log(ctx.instance.name)
    if not file.is_file():
        raise VmoatError(
            "this VM has no console log yet", hint="`vmoat up` starts it", code=Code.VM
        )
    if args.follow:
        from vmoat import proc, reader

        lines = str(10 if args.tail is None else args.tail)
        follower = proc.spawn(
            ["tail", "-n", lines, "-F", file], stdout=out.stdout.buffer, detach=False,
            stderr=sys.stderr.buffer,
        )  # fmt: skip
        reader.when_gone(1, follower.terminate)
        return follower.wait()
    rows = file.read_text(errors="replace").splitlines()
    for line in rows[-args.tail or len(rows) :] if args.tail is not None else rows:
        out.answer(printable(line))
    return int(Code.OK)


ON_THE_HOST = ("image", "vm", "seed", "health", "tunnel")
"""Stages whose output is in the event log, not in the VM."""


def _stage_log(ctx: Context, args: argparse.Namespace, out: Output) -> int:
    from vmoat import graph
    from vmoat.output import printable
    from vmoat.stages import log_path
    from vmoat.state import stage_lines

    stages = graph.stages_of(ctx)
    if args.stage not in stages:
        raise graph.unknown_stage(args.stage, stages)
    if args.stage in ON_THE_HOST or not _running(ctx):
        said = stage_lines(ctx.instance.folder, args.stage) if ctx.instance.claimed else []
        for line in said[max(0, len(said) - args.tail) :] if args.tail is not None else said:
            out.answer(printable(line))
        if not said:
            out.say(f"no output of the stage {args.stage} is on record")
        return int(Code.OK)
    path = shlex.quote(log_path(args.stage))
    missing = shlex.quote(f"no output of the stage {args.stage} is kept in this VM")
    there = f"[ -e {path} ] || {{ echo {missing} >&2; exit 1; }}"
    return ctx.guest.exec([f"{there}; exec {unit_log(args.stage, args.tail, args.follow)}"])


def unit_log(name: str, tail: int | None, follow: bool) -> str:
    """The guest's command that prints the log of a unit, the part that was cut off first."""
    from vmoat.stages import log_path

    path = shlex.quote(log_path(name))
    lines = "+1" if tail is None else str(tail)
    if follow:
        return f"sudo tail -n {lines} -F {path}"
    both = f"cat $(ls {path}.old 2>/dev/null) {path} | tail -n {lines}"
    return shlex.join(["sudo", "sh", "-c", both])


def _running(ctx: Context) -> bool:
    return ctx.status.state == "running"


def _stack_line(ctx: Context, args: argparse.Namespace) -> str:
    """The guest's shell line that prints the logs of the containers, or of a service unit."""
    facts = ctx.facts()
    if facts is None:
        raise VmoatError(
            f"the VM {ctx.instance.name} does not answer",
            hint="`vmoat up` starts it; `vmoat logs --console` shows its console",
            code=Code.VM,
        )
    from vmoat.health import is_service

    unit = is_service(ctx) and facts.units.get("stack", "gone") != "gone"
    chosen = [
        c for c in facts.containers if not args.service or args.service in (c.service, c.name)
    ]
    if not chosen and args.service and not (unit and args.service == "stack"):
        known = {c.service or c.name for c in facts.containers} | ({"stack"} if unit else set())
        raise VmoatError(
            f"there is no service `{args.service}`",
            hint="the services are: " + (", ".join(sorted(known)) or "none"),
            code=Code.USAGE,
        )
    if not chosen:
        return "exec " + unit_log("stack", args.tail, args.follow)
    options = (["-f"] if args.follow else []) + (
        ["--tail", str(args.tail)] if args.tail is not None else []
    )
    calls = [
        (c.service or c.name, shlex.join(["docker", "logs", *options, c.id])) for c in chosen
    ]
    if unit and not args.service:
        calls.insert(0, ("stack", unit_log("stack", args.tail, args.follow)))
    if len(calls) == 1:
        return calls[0][1] + " 2>&1"
    rows = []
    for label, call in calls:
        prefix = f"sed -u {shlex.quote(f's/^/{sed_safe(label)} | /')}"
        rows.append(f"{call} 2>&1 | {prefix}{' &' if args.follow else ''}")
    return "\n".join(rows) + ("\nwait" if args.follow else "")


def sed_safe(text: str) -> str:
    """A label that means itself in sed's replacement."""
    return "".join(f"\\{c}" if c in "\\/&" else c for c in text)
