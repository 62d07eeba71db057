"""Stops a VM that nobody uses, as `vmoat down` does.

``python -m vmoat.fleet.stopping NAME SECONDS FOR``, started by the VM's own companion when it was
idle for as long as ``[vm] idle`` says, and by who waits for room (``[fleet] evict``).  A process of
its own: the companion ends with the VM, and who waits may be cancelled meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from vmoat import instance, paths, proc
from vmoat.context import Context, load
from vmoat.errors import Code, VmoatError
from vmoat.fleet import idle, places, removal, sleep, use
from vmoat.lifecycle import shut_down
from vmoat.state import VmLock


def argv(name: str, idle_for: float, room_for: str) -> list[str]:
    """The command line.  -P: as ``watch.worker_argv``."""
    return [sys.executable, "-P", "-m", "vmoat.fleet.stopping", name, f"{idle_for:g}", room_for]


def begin(name: str, idle_for: float, room_for: str = "") -> subprocess.Popen[bytes]:
    """Have the VM stopped, unless somebody used it within the last ``idle_for`` seconds."""
    with open(paths.vm_dir(name) / "companion.log", "ab") as log:
        return proc.spawn(argv(name, idle_for, room_for), cwd="/", stdout=log, stderr=log)


def stop(name: str, idle_for: float, room_for: str = "") -> bool:
    """Stop the VM; False where it is in use after all.  Raises VM where it can't be stopped."""
    folder = paths.vm_dir(name)
    owner = instance.read_owner(name)
    lock = VmLock(folder)
    if use.last(folder) > time.time():  # the clock was set back: its idle time begins anew
        use.mark(folder)
    # Before its lock is ours: it is a use as well.
    if owner is None or not _is_idle(name, idle_for) or not lock.take():
        return False
    try:
        with use.unused(folder) as mine:
            if not mine or time.time() - use.last(folder) < idle_for:
                return False
            ctx = _context(name, owner)
            if ctx is not None and ctx.status.state in ("absent", "stopped"):
                return True
            # Before the stop: where this is killed after it, the VM sleeps all the same.
            sleep.begin(folder, room_for)
            try:
                _end(name, owner, ctx)
            except BaseException:
                sleep.end(folder)
                raise
    finally:
        lock.free()
    return True


def _end(name: str, owner: instance.Owner, ctx: Context | None) -> None:
    if ctx is None:
        removal.halt(instance.Instance(name, owner.vm_id), owner)
    else:
        shut_down(ctx, _warn)


def _is_idle(name: str, idle_for: float) -> bool:
    since = idle.since(name)
    return since is not None and time.time() - since >= idle_for


def _context(name: str, owner: instance.Owner) -> Context | None:
    """The VM with its stack; None where its worktree is gone."""
    try:
        ctx = load(places.find(owner).worktree, claim=False, tolerant=True)
    except VmoatError:
        return None
    return ctx if ctx.instance.name == name and ctx.instance.vm_id == owner.vm_id else None


def _warn(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(words: Sequence[str]) -> int:
    """See the module; what goes wrong stands in the companion's log."""
    try:
        return int(Code.OK if stop(words[0], float(words[1]), words[2]) else Code.BUSY)
    except VmoatError as error:
        _warn(str(error))
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
