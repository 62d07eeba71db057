"""What every stage and command is given: the settings, the worktree, its VM and its guest.

Built once per process.  What costs a git call, a look at the driver or an ssh round trip is
fetched when it is first asked for, and kept until a stage has run.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vmoat import drivers, instance, paths, worktree
from vmoat.config import settings as config
from vmoat.config.values import split_share
from vmoat.drivers import Driver, Owner, Share, VmSpec, VmStatus
from vmoat.errors import Code, VmoatError
from vmoat.state import StageStore

if TYPE_CHECKING:
    from vmoat.facts import Facts
    from vmoat.guest import Guest

CONFIG_FILES = ("vmoat.toml", "vmoat.local.toml", "vmoat.conf", "vmoat.local.conf")


@dataclass
class Context:
    """One worktree's settings, VM and state, for one process."""

    settings: config.Settings
    worktree: worktree.Worktree
    instance: instance.Instance
    driver: Driver
    store: StageStore
    say: Callable[[str], None] = lambda line: None
    """Takes a line of the running stage."""
    notice: Callable[[str], None] = lambda line: None
    """Takes what a person should still see when the stage is over."""
    forced: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()
    """Stages that were done in a run which this command has joined."""
    no_wait: bool = False
    """Whether a VM for which there is no room fails instead of waiting (``fleet.admission``)."""
    _status: VmStatus | None = None
    _facts: Facts | None = None
    _asked: bool = False
    wants_space: bool = False
    """Whether the guest is asked for its disks and memory as well: one more program there."""
    running_unit: str = ""
    """The guest's unit that the running stage waits for: what a cancelled run must stop."""
    notes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def main(self) -> Path | None:
        """The main checkout, where seeds come from."""
        return self.worktree.main()

    @cached_property
    def spec(self) -> VmSpec:
        return make_spec(self.settings, self.worktree, self.instance)

    @cached_property
    def outline(self) -> VmSpec:
        """The spec without what costs git calls: nested worktrees and submodules."""
        return make_spec(self.settings, self.worktree, self.instance, survey=False)

    def refresh_guest(self) -> None:
        """Show the guest what git did on the host since, and give back to it the folders that
        local ones are laid over, where the host removed them; before a command goes there.
        """
        from vmoat import localfolders

        for name in self.local:
            if not localfolders.there(self.worktree.path, name):
                with contextlib.suppress(VmoatError, OSError):  # `up` will say why not
                    localfolders.make(self.worktree.path, name)
        line = self.driver.refresh(self.outline)
        if line:
            self.guest.run(line, root=True, check=False, timeout=30)

    @property
    def status(self) -> VmStatus:
        """What the driver says of the VM; asked once until ``forget_facts``."""
        if self._status is None and not self.instance.claimed:
            # Its name is a guess; whatever VM goes by it is not this worktree's.
            self._status = VmStatus("absent")
        if self._status is None:
            self._status = self.driver.status(self.instance.name)
        return self._status

    @cached_property
    def guest(self) -> Guest:
        return open_guest(self)

    def facts(self) -> Facts | None:
        """What the guest says of itself, in one ssh round trip; None where it does not answer."""
        if not self._asked:
            self._asked = True
            self._facts = self._ask() if self.status.state == "running" else None
        return self._facts

    def take_facts(self, facts: Facts | None) -> None:
        """Go by these: somebody asked less, or on other terms, than ``facts`` would."""
        self._facts, self._asked = facts, True

    def _ask(self) -> Facts | None:
        from vmoat.probe import ask

        try:
            return ask(self, space=self.wants_space)
        except VmoatError:
            return None

    @property
    def local(self) -> list[str]:
        """The local folders that are asked for and that a run has laid."""
        laid = self.store.values("local").get("folders", ())
        return [name for name in self.settings.mounts_local if name in laid]

    def forget_facts(self) -> None:
        """Ask again: a stage has run."""
        self._status = self._facts = None
        self._asked = False
        self.__dict__.pop("guest", None)


def load(
    start: Path,
    *,
    branch: str = "",
    flags: Mapping[str, object] | None = None,
    claim: bool = True,
    tolerant: bool = False,
) -> Context:
    """The context of the worktree at ``start``, or of the one where ``branch`` is checked out.

    ``claim`` gives the worktree a VM's name where it has none.  ``tolerant`` goes on with the
    user's own settings, and a warning, where the project's config is broken or not trusted:
    a VM whose branch cannot be read must still be looked at, stopped and removed.
    """
    tree = worktree.named(start, branch)
    try:
        settings = config.load(
            tree.path,
            tree.main() if tree.linked else tree.path,
            env=os.environ,
            flags=flags or {},
            host=host_size(),
            common_dir=tree.common_dir,
        )
    except VmoatError as error:
        if not tolerant or error.code != Code.CONFIG:
            raise
        settings = settings_without_project(error)
    wanted = settings.driver or drivers.default()
    try:
        drivers.load(wanted)  # before a VM is claimed for it
    except VmoatError as error:
        if not tolerant:
            raise
        settings = replace(settings, warnings=(*settings.warnings, error.message))
        wanted = drivers.default()
    if claim:
        mine = instance.claim(tree, settings.vm_prefix, wanted)
    else:
        mine = instance.look(tree, settings.vm_prefix)
    name = driver_of(mine) or wanted
    if name != wanted and claim and drivers.load(name).status(mine.name).state == "absent":
        instance.change_driver(mine, wanted)  # there is nothing yet that another one made
        name = wanted
    if settings.driver and name != wanted:
        text = f"this VM was made by the driver {name}; only `vmoat destroy` lets {wanted} make it"
        settings = replace(settings, warnings=(*settings.warnings, text))
    driver = drivers.load(name)
    store = StageStore(mine.folder if mine.claimed else paths.vms_dir() / ".none")
    return Context(settings, tree, mine, driver, store)


def driver_of(mine: instance.Instance) -> str:
    """The driver on record of a VM; "" for one that nobody has claimed."""
    owner = instance.read_owner(mine.name) if mine.claimed else None
    return owner.driver if owner else ""


def settings_without_project(error: VmoatError) -> config.Settings:
    """The user's own settings where the project's cannot be had, the defaults where those cannot.

    The error becomes a warning.
    """
    nowhere = paths.config_home()  # holds no project file
    flags = {"vm.mount": "/"}
    try:
        settings = config.load(nowhere, None, env=os.environ, flags=flags, host=host_size())
    except VmoatError:
        settings = config.defaults(host_size())
    text = f"{error.message}; going on without the project's config"
    return replace(settings, warnings=(*settings.warnings, text))


def host_size() -> config.HostSize:
    """The host's CPUs and memory (GiB)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return config.HostSize(os.cpu_count() or 1, max(1, round(total / 2**30)))


def make_spec(
    settings: config.Settings,
    tree: worktree.Worktree,
    mine: instance.Instance,
    *,
    survey: bool = True,
) -> VmSpec:
    """The VM that these settings ask for."""
    return VmSpec(
        name=mine.name,
        vm_id=mine.vm_id,
        cpus=settings.vm_cpu,
        memory_gib=settings.vm_memory,
        disk_gib=settings.vm_disk,
        worktree=tree.path,
        git_dir=tree.git_dir,
        common_dir=tree.common_dir,
        owner=owner_of(tree.path),
        readonly=_readonly(settings, tree),
        gitlinks=tree.gitlinks() if survey else (),
        masked=tree.nested() if survey else (),
        shares=tuple(Share(*split_share(text)) for text in settings.mounts_share),
        mount_type=settings.vm_mount_type,
        walls=settings.walls,
        network_open=settings.network_open,
        git_writable=settings.git_writable,
        extra_args=tuple(settings.qemu_args),
        mirror=settings.image_mirror,
        image_cache=settings.cache_enabled,
        local=settings.mounts_local,
        kind=settings.vm_type,
        start_args=settings.colima_start_args,
        layers=settings.layers_enabled,
    )


def owner_of(path: Path) -> Owner:
    """The host user whom the files of the worktree belong to."""
    info = path.stat()
    try:
        name = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        name = f"user{info.st_uid}"
    return Owner(name, info.st_uid, info.st_gid)


def _readonly(settings: config.Settings, tree: worktree.Worktree) -> tuple[Path, ...]:
    """What of the worktree the host reads as config, sourced files included."""
    names = {tree.path / name for name in CONFIG_FILES} | set(settings.files)
    return tuple(p for p in sorted(names) if p.is_relative_to(tree.path) and p.is_file())


def guest_environment(ctx: Context) -> dict[str, str]:
    """Variables of every command in the guest."""
    project = ctx.settings.up_project or compose_project(ctx.worktree.repository_name())
    return {
        "COMPOSE_PROJECT_NAME": project,
        # `git status` would write the index back, which then hides the host's newer one.
        "GIT_OPTIONAL_LOCKS": "0",
    }


def compose_project(repository: str) -> str:
    """A name that compose takes: lower case, digits, - and _, a letter or digit first."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "" for c in repository)
    return cleaned.lower().lstrip("-_") or "project"


def open_guest(ctx: Context) -> Guest:
    """The guest of a VM that runs; raises VM where it was never started."""
    from vmoat import localfolders
    from vmoat.forwards import RECORD
    from vmoat.guest import Guest

    return Guest(
        ctx.driver.ssh_endpoint(ctx.instance.name),
        paths.runtime_dir(ctx.instance.vm_id),
        ctx.worktree.path,
        guest_environment(ctx),
        forward_agent=ctx.settings.ssh_forward_agent,
        record=ctx.instance.folder / RECORD,
        before=localfolders.mending(str(ctx.worktree.path), ctx.local),
        behind=localfolders.keeping(ctx.local),
    )
