"""The driver's own few words with the guest, over ssh: its host key, its preparation."""

from __future__ import annotations

import os

from vmoat import paths, proc, ssh
from vmoat.drivers import SshEndpoint, VmSpec
from vmoat.drivers.colima import equip as text
from vmoat.drivers.colima import look
from vmoat.drivers.colima.homes import Place
from vmoat.errors import Code, VmoatError

SCAN_SECONDS = 30
EQUIP_SECONDS = 180.0
"""For unpacking, and a dockerd that is restarted, under emulation."""
KEYS = ("ed25519", "ecdsa,rsa")
"""What is asked for, one after the other: each kind is a connection of its own."""


def pin(name: str, end: SshEndpoint) -> bool:
    """Keep the guest's host key at the first contact; later ones must show the same.

    By the name that ``vmoat.ssh`` looks it up, not by the port, which changes.  Returns whether
    this was the first contact.  Raises VM where the guest shows no key.
    """
    target = look.known_hosts(name)
    if target.exists() and target.stat().st_size:
        return False
    rows: list[str] = []
    for kinds in KEYS:
        words = ["ssh-keyscan", "-T", str(SCAN_SECONDS), "-t", kinds, "-p", str(end.port), end.host]
        done = proc.run(words, check=False, timeout=SCAN_SECONDS * 2)
        lines = [line for line in done.out.splitlines() if line and not line.startswith("#")]
        rows = [line.split(None, 1)[1] for line in lines]
        if rows:
            break
    if not rows:
        raise VmoatError(
            "the VM's sshd shows no host key",
            hint="`vmoat logs --console` shows the guest",
            code=Code.VM,
            details=done.last_lines(4),
        )
    paths.make_private(target.parent)
    new = target.with_suffix(".new")
    new.write_text("".join(f"{ssh.ALIAS} {row}\n" for row in rows))
    new.replace(target)
    return True


def as_root(end: SshEndpoint, script: str, *, timeout: float, check: bool = True) -> proc.Result:
    """Run a script (sh) as the guest's root, over a connection of its own."""
    words = ["ssh", "-F", "none", "-T", "-i", os.fspath(end.key), "-p", str(end.port)]
    options = ssh._common(end, end.user, False)
    for option in options:
        if not option.startswith(("HostName", "User ")):
            words += ["-o", option]
    words += ["-o", "ControlPath=none", "-l", end.user, end.host, "sudo -n sh -s"]
    return proc.run(words, input=script, timeout=timeout, check=check, code=Code.VM, quiet=True)


def equip(end: SshEndpoint, boot: text.Boot, given: text.Given) -> None:
    """Make sure that this boot is prepared; one round trip where it is.

    Raises VM, with the guest's words, where it cannot be.
    """
    asked = f'[ "$(cat /run/vmoat/boot 2>/dev/null)" = {boot.token} ]'
    first = as_root(end, asked, timeout=60, check=False)
    if first.rc == 0:
        return
    if "host key" in first.err.lower():
        raise VmoatError(
            "the VM shows another host key than the one that it was first met with",
            hint=f"if it is yours all the same, remove {end.known_hosts} and run `vmoat up`; "
            "`vmoat destroy`, then `vmoat up`, makes the VM anew",
            code=Code.VM,
        )
    done = as_root(end, text.script(boot, given), timeout=EQUIP_SECONDS, check=False)
    if done.rc == 0:
        return
    said = [line.removeprefix("vmoat-boot: ") for line in done.err.splitlines()]
    if any("not shared" in line for line in said):
        raise VmoatError(
            "the VM runs, but does not see the worktree",
            hint='its kernel may lack 9p: `vmoat destroy`, then vm.mount_type = "sshfs" '
            "(which opens the walls: `vmoat help walls`), or another disk image"
            if not boot.place.adopted
            else f"its mounts are those that it was made with; `colima start -p "
            f"{boot.place.profile} --mount …` gives it others",
            code=Code.VM,
            details=said[-5:],
        )
    raise VmoatError(
        "the VM runs, but could not be prepared",
        hint="`vmoat logs --console` shows the guest; `vmoat up` tries again",
        code=Code.VM,
        details=said[-8:] or done.last_lines(),
    )


def share_kind(end: SshEndpoint, spec: VmSpec) -> str:
    """How the worktree is shared with the guest, by its own word."""
    import shlex

    line = f"findmnt -n -o FSTYPE --target {shlex.quote(os.fspath(spec.worktree))}"
    done = as_root(end, line, timeout=60, check=False)
    return {"fuse.sshfs": "sshfs"}.get(done.out.strip(), done.out.strip())


def given(spec: VmSpec, place: Place) -> text.Given:
    """What this host hands over."""
    from vmoat.drivers.qemu import host

    name, email = host.git_identity(spec.common_dir)
    return text.Given(
        key=_key(place),
        git_name=name,
        git_email=email,
        proxies=_reachable(host.proxies()),
        certificates=tuple(host.extra_certificates()),
        cache=_cache_certificate() if spec.image_cache else "",
    )


def _reachable(proxies: dict[str, str]) -> dict[str, str]:
    """The proxies that a guest can reach by these names; Lima itself translates those on this
    machine's loopback (pkg/hostagent/requirements, propagateProxyEnv)."""
    local = ("://localhost", "://127.", "://[::1]")
    return {key: value for key, value in proxies.items() if not any(s in value for s in local)}


def _key(place: Place) -> str:
    """Lima's public key, made by the first start where there is none (pkg/sshutil)."""
    public = place.lima / "_config" / "user.pub"
    if not public.exists():
        public.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = os.fspath(public.with_suffix(""))
        words = ["ssh-keygen", "-t", "ed25519", "-q", "-N", "", "-C", "lima", "-f", private]
        proc.run(words, timeout=60, code=Code.VM)
    return public.read_text().strip()


def _cache_certificate() -> str:
    from vmoat.imagecache import usable_authority

    authority = usable_authority()
    return authority.certificate() if authority else ""
