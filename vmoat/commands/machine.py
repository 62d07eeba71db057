"""doctor and image: what vmoat needs and keeps on this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vmoat import doctor as rules
from vmoat import drivers, hostfacts, hostfix, paths, proc, worktree
from vmoat.config import settings as config
from vmoat.context import host_size
from vmoat.drivers.qemu import disks
from vmoat.drivers.qemu import image as images
from vmoat.errors import Code, VmoatError
from vmoat.output import Output


def doctor(args: argparse.Namespace, out: Output) -> int:
    """Check this machine; with ``--fix``, install what is missing and check again."""
    settings = settings_here(args)
    facts = hostfacts.gather(settings)
    findings = rules.examine(facts)
    if args.fix and _fix(facts, findings, args, out):
        facts = hostfacts.gather(settings)
        findings = rules.examine(facts)
    if args.json:
        out.json(as_json(findings, facts.manager))
    else:
        _report(findings, facts.manager, out)
    return int(Code.OK if rules.well(findings) else Code.MISSING)


def settings_here(args: argparse.Namespace) -> config.Settings:
    """The worktree's settings; outside a worktree, or where its config is broken, the user's."""
    try:
        tree = worktree.find(Path(args.path) if args.path else Path.cwd())
        return config.load(
            tree.path, tree.main() if tree.linked else tree.path, env=os.environ, flags={},
            host=host_size(),
        )  # fmt: skip
    except VmoatError:
        return user_settings()


def user_settings() -> config.Settings:
    """The settings of no project: defaults, the user's config and the environment."""
    nowhere = paths.config_home()
    # vm.mount holds for worktrees; this is none.
    return config.load(
        nowhere, None, env=os.environ, flags={"vm.mount": str(nowhere)}, host=host_size()
    )


def as_json(findings: list[rules.Finding], manager: str) -> dict[str, object]:
    """What ``doctor --json`` prints."""
    rows = [
        {
            "check": finding.name,
            "state": finding.verdict.state,
            "says": finding.verdict.says,
            "for": finding.purpose,
            "cure": hostfix.cure_lines(finding.verdict, manager),
        }
        for finding in findings
    ]
    return {"schema": "vmoat.doctor/1", "ok": rules.well(findings), "checks": rows}


def _report(findings: list[rules.Finding], manager: str, out: Output) -> None:
    for finding in findings:
        verdict = finding.verdict
        out.answer(f"{verdict.state:<8} {verdict.says} ({finding.purpose})")
        for line in hostfix.cure_lines(verdict, manager):
            out.answer(f"{'':<8}   → {line}")
    if rules.well(findings):
        out.say("everything that vmoat needs is here")
        return
    curable = any((f.verdict.packages and manager) or f.verdict.safe for f in findings)
    out.say("something is missing" + ("; `vmoat doctor --fix` installs it" if curable else ""))


def _fix(
    facts: rules.Facts, findings: list[rules.Finding], args: argparse.Namespace, out: Output
) -> bool:
    """Show the commands, run them; whether anything was run."""
    interactive = out.interactive
    steps = hostfix.steps(
        findings, manager=facts.manager, uid=facts.uid, interactive=interactive,
        update=hostfix.lists_missing(),
    )  # fmt: skip
    if not steps:
        out.say("there is nothing to install")
        return False
    hostfix.require_root(facts.uid, steps[-1])
    for argv in steps:
        out.say(proc.paste(argv))
    # `--fix` is said on purpose: without a terminal it needs no second word.
    if interactive and not args.yes and not out.ask("run this?"):
        return False
    for argv in steps:
        _run_step(argv, facts, out)
    return True


def _run_step(argv: list[str], facts: rules.Facts, out: Output) -> None:
    """One command; an install that fails is tried once more with fresh package lists."""
    code = hostfix.run(argv, interactive=out.interactive)
    update = hostfix.update_argv(facts.manager)
    if code and update and "install" in argv:
        again = hostfix.as_root(update, uid=facts.uid, interactive=out.interactive)
        out.say(f"{proc.paste(again)}: the package lists may be too old")
        if hostfix.run(again, interactive=out.interactive) == 0:
            code = hostfix.run(argv, interactive=out.interactive)
    if code:
        out.warn(f"`{proc.paste(argv)}` ended with exit code {code}")


def image(args: argparse.Namespace, out: Output) -> int:
    """build, ls, rm, export, import, digest."""
    settings = user_settings()
    driver = drivers.load(settings.driver)
    if not driver.features.golden_image:
        raise VmoatError(
            f"the driver {driver.name} uses no image of vmoat's own",
            hint=f"`{driver.name}` keeps its own; driver = \"qemu\" in your config has one",
            code=Code.USAGE,
        )
    mirror = settings.image_mirror
    actions = {
        "build": _build,
        "ls": _list,
        "rm": _remove,
        "export": _export,
        "import": _import,
        "digest": _digest,
    }
    actions[args.action](args, mirror, out)
    return int(Code.OK)


def standing_on(digest: str) -> list[str]:
    """The VMs whose system disk is an overlay on this image; by their ids those without a name."""
    names = {paths.vm_id(folder.name): folder.name for folder in paths.vms_dir().glob("[!.]*")}
    folders = (paths.data_home() / "disks").glob("*")
    users = (f.name for f in folders if disks.read_record(f).get("image") == digest)
    return sorted(names.get(user, user) for user in users)


def _refuse_used(digest: str, what: str, cure: str) -> None:
    users = standing_on(digest)
    if users:
        raise VmoatError(
            f"{what}: the disks of {', '.join(users)} stand on the image {digest}",
            hint=cure,
            code=Code.USAGE,
        )


def _build(args: argparse.Namespace, mirror: str, out: Output) -> None:
    _no_operand(args)
    digest = images.digest(mirror)
    if args.force and images.ready(digest):
        # Another build differs in its bytes: every disk on the old one would be garbage.
        _refuse_used(digest, "the image cannot be built again", "`vmoat destroy` these first")
        images.remove(digest)
    there = images.ready(digest)
    images.build(mirror, out.say)
    if there:
        out.say(f"the image {digest} is there already")
    if args.json:
        folder = str(images.folder(digest))
        out.json({"schema": "vmoat.image/1", "digest": digest, "folder": folder,
                  "built": not there})  # fmt: skip
    else:
        out.answer(digest)


def _list(args: argparse.Namespace, mirror: str, out: Output) -> None:
    _no_operand(args)
    found = images.images(mirror)
    if args.json:
        rows = [
            {"digest": entry.digest, "folder": str(entry.folder), "bytes": entry.size,
             "built": entry.built, "current": entry.current, "vms": standing_on(entry.digest)}
            for entry in found
        ]  # fmt: skip
        out.json({"schema": "vmoat.images/1", "images": rows})
        return
    for entry in found:
        users = standing_on(entry.digest)
        notes = ["current"] if entry.current else []
        notes += ["under " + ", ".join(users)] if users else []
        size = f"{entry.size / 2**20:.0f} MiB"
        out.answer(f"{entry.digest}  {size:>9}  {entry.built}  {'; '.join(notes)}".rstrip())
    if not found:
        out.say("there is no image yet; `vmoat image build` makes it, and so does `vmoat up`")


def _remove(args: argparse.Namespace, mirror: str, out: Output) -> None:
    digest = _operand(args, "DIGEST")
    if not digest.isalnum():  # `..` is a folder as well
        raise VmoatError(
            f"{digest!r} is no digest", hint="`vmoat image ls` lists them", code=Code.USAGE
        )
    if not args.force:
        _refuse_used(digest, "nothing was removed", "`vmoat destroy` these first, or add --force")
    images.remove(digest)
    out.say(f"the image {digest} is removed")


def _export(args: argparse.Namespace, mirror: str, out: Output) -> None:
    target = Path(_operand(args, "FILE"))
    if not target.absolute().parent.is_dir() or target.is_dir():
        raise VmoatError(f"{target} cannot be a file there", hint="name another", code=Code.USAGE)
    images.export(images.digest(mirror), target)
    out.answer(str(target))


def _import(args: argparse.Namespace, mirror: str, out: Output) -> None:
    digest = images.import_(Path(_operand(args, "FILE")), out.say)
    out.answer(digest)
    if digest != images.digest(mirror):
        out.warn("this image is of another recipe (another vmoat, mirror or machine): `up` will "
                 "build its own")  # fmt: skip


def _digest(args: argparse.Namespace, mirror: str, out: Output) -> None:
    _no_operand(args)
    if args.json:
        out.json({"schema": "vmoat.digest/1", "digest": images.digest(mirror)})
    else:
        out.answer(images.digest(mirror))


def _operand(args: argparse.Namespace, what: str) -> str:
    if not args.operand:
        raise VmoatError(
            f"`image {args.action}` wants a {what}", hint=f"vmoat image {args.action} {what}",
            code=Code.USAGE,
        )  # fmt: skip
    return str(args.operand)


def _no_operand(args: argparse.Namespace) -> None:
    if args.operand:
        raise VmoatError(
            f"`image {args.action}` takes no {args.operand!r}",
            hint=f"vmoat image {args.action}", code=Code.USAGE,
        )  # fmt: skip
