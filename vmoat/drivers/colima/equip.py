"""What a guest that is not vmoat's own image needs: helpers, units, settings, the git view.

One script, made by the host for each start.  Lima runs it as root in each boot, from
``override.yaml``, before Colima starts dockerd (its ``dependency`` scripts have mounted the data
disk by then: environment/vm/lima/disk.go).  Where Lima does not (an adopted VM, shares that come
later), it goes over ssh.  Its files are unpacked once, by their digest.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from vmoat import localfolders
from vmoat.drivers import VmSpec
from vmoat.drivers.colima.homes import Place
from vmoat.drivers.qemu import meta

SSHD = """\
# vmoat: before all others, for the first value counts.
AuthorizedKeysFile /etc/vmoat/authorized_keys .ssh/authorized_keys .ssh/authorized_keys2
PermitRootLogin prohibit-password
MaxSessions 100
MaxStartups 100
UseDNS no
PrintMotd no
PrintLastLog no
StreamLocalBindUnlink yes
AcceptEnv LANG LC_* VMOAT_* TERM COLORTERM NO_COLOR
SetEnv GIT_OPTIONAL_LOCKS=0
"""

CLOUD = """\
# vmoat: the host keys stay. Lima's instance id changes with each start, and cloud-init would make
# others for what it takes for another instance.
ssh_deletekeys: false
"""

PANIC = """\
# vmoat: a kernel that panics starts again, as one under emulation may (QEMU's TCG: an int3 of
# patched code is taken for an oops); Lima would wait ten minutes for its ssh.
kernel.panic = 1
"""

WATCH = """\
[Service]
RuntimeDirectory=vmoat
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
"""
"""The helper may start before the script that makes its folder."""

BOOT = """\
#!/bin/sh
# Made by vmoat: mounts and identity of this boot.  Again and again without harm.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /etc/vmoat/env
new=$1
mkdir -p /run/vmoat /var/lib/vmoat
exec 9>/run/vmoat/boot.lock && flock 9
say() { echo "vmoat-boot: $*" >&2; echo "vmoat-boot: $*" >/dev/kmsg; }
there() { mountpoint -q "$1"; }
failed=
while IFS=: read -r name _ uid gid _ home _; do
  [ "$uid" = "$VMOAT_UID" ] && VMOAT_USER=$name VMOAT_GID=$gid VMOAT_HOME=$home
done </etc/passwd
install -d -m 0700 -o "$VMOAT_UID" -g "$VMOAT_GID" /run/vmoat/user
"""

DATA = """\
# the data disk: which one it is, and what of another VM's must not start here
data=/mnt/lima-@IDENT@
if there "$data"; then
  known=
  [ -r "$data/.vmoat-disk" ] && read -r known <"$data/.vmoat-disk"
  if [ "$known" != "$VMOAT_DATA" ]; then
    if [ "$VMOAT_COPIED" = 1 ]; then
      rm -rf "$data/vmoat" "$data/.vmoat-disk"
      for file in "$data"/docker/containers/*/hostconfig.json; do
        [ ! -e "$file" ] ||
          sed -i 's/"RestartPolicy":{"Name":"[^"]*"/"RestartPolicy":{"Name":"no"/' "$file"
      done
    else
      echo "$VMOAT_DATA" >"$data/.vmoat-disk"
    fi
  fi
  mkdir -p "$data/vmoat" /data
  there /data || mount --bind "$data/vmoat" /data || failed=1
  echo "$VMOAT_DATA" >/run/vmoat/data-id
else
  say "the data disk is not mounted yet"; failed=1
fi
"""

SETTINGS = """\
# Debian's own starts two programs at each login
if [ -e /usr/lib/vmoat/profile ] && ! cmp -s /usr/lib/vmoat/profile /etc/profile; then
  [ -e /etc/profile.before-vmoat ] || cp -p /etc/profile /etc/profile.before-vmoat
  cp /usr/lib/vmoat/profile /etc/profile
fi
[ ! -d /var/lib/cloud/instance ] || : >/var/lib/cloud/instance/locale-check.skip
grep -qs /etc/vmoat/gitconfig /etc/gitconfig ||
  printf '[include]\\n\\tpath = /etc/vmoat/gitconfig\\n' >>/etc/gitconfig
for home in /root "$VMOAT_HOME"; do docker_config "$home"; done
if [ "$new" != 0 ]; then
  # root's first login would wait for its service manager (1.3 s under emulation)
  loginctl enable-linger root 2>/dev/null
  # In a VM's first boot systemd has read none of these files, Colima makes it read all of them
  # before it starts dockerd, and nobody is to log in before Lima's boot is over (2 s of it).
  later=--no-block
  if [ "$new" != first ] || systemctl -q is-active docker.service; then
    later= && systemctl daemon-reload
  fi
  systemctl reload $later ssh.service 2>/dev/null || systemctl reload $later sshd.service
  systemctl restart --no-block vmoat-watch.service
  # before Colima has started it, this does nothing
  systemctl try-restart docker.service
fi
"""

SHARES = """\
[ -e @WORKTREE@/.git ] || { say "the worktree is not shared yet"; failed=1; }
view() { # path: the host's git folder below, this VM's own writes above
  findmnt -n -o SOURCE --mountpoint "$1" 2>/dev/null | grep -qx vmoat-git && return
  [ -e "$1/HEAD" ] || { say "the git folder is not shared yet"; failed=1; return; }
  store=/var/lib/vmoat/git
  mkdir -p /run/vmoat/git/common $store/upper $store/work
  chown "$VMOAT_UID:$VMOAT_GID" $store/upper
  there /run/vmoat/git/common || mount --bind "$1" /run/vmoat/git/common || failed=1
  mount -t overlay -o "lowerdir=/run/vmoat/git/common,upperdir=$store/upper,workdir=$store/work,\\
redirect_dir=off,index=off,metacopy=off,xino=off" vmoat-git "$1" ||
    { say "cannot mount the git view"; failed=1; }
}
"""

END = """\
[ ! -s @LOCAL@ ] || sh @LOCAL@ || failed=1
[ -z "$failed" ] || exit 1
if [ "$new" != 0 ]; then
  # Known as unpacked once it is on the disk: a VM that is killed soon after its first boot would
  # have lost its files, and cloud-init would make other host keys in the next.
  systemd-run --quiet --no-block --collect --unit=vmoat-sync sh -c \\
    "sync -f /etc && echo $VMOAT_FILES >/etc/vmoat/equipped && sync -f /etc"
fi
echo "$VMOAT_TOKEN" >/run/vmoat/boot
say "ready $VMOAT_TOKEN"
# While Colima still sets up dockerd: the first `docker compose up` would wait for their pages.
systemd-run --quiet --no-block --collect --nice=19 --unit=vmoat-warm \\
  sh -c 'docker compose version; docker buildx version' >/dev/null 2>&1
exit 0
"""

SCRIPT = """\
#!/bin/sh
# Made by vmoat for this start: see /usr/lib/vmoat/boot.
umask 022
mkdir -p /etc/vmoat
cat >/etc/vmoat/env <<'VMOAT_ENV'
{env}VMOAT_ENV
new=0 known=
[ -r /etc/vmoat/equipped ] && read -r known </etc/vmoat/equipped
if [ "$known" != {digest} ]; then
  new=again; [ -n "$known" ] || new=first
  base64 -d <<'VMOAT_FILES' | tar -xzf - -C / --unlink-first --no-same-owner -p || exit 1
{files}VMOAT_FILES
fi
sh /usr/lib/vmoat/boot $new
"""

CLEAN = """\
for n in 1 2 3 4 5 6 7 8 9 10; do docker info >/dev/null 2>&1 && break; sleep 2; done
docker ps -aq | xargs -r docker rm -f -v >/dev/null &&
  docker volume ls -q | xargs -r docker volume rm -f >/dev/null &&
  docker network prune -f >/dev/null && echo {data} >{mount}/.vmoat-disk
"""


@dataclass(frozen=True)
class Boot:
    """One start of a VM, as its guest is told of it."""

    spec: VmSpec
    place: Place
    uid: int
    """Of the guest's user: Lima gives it the host user's."""
    token: str
    data_id: str
    copied: bool
    """Whether the data disk began as a copy of another VM's."""
    walled: bool = False
    """Whether a chown stops at the host (``walled``)."""


@dataclass(frozen=True)
class Given:
    """What the guest gets from this host."""

    key: str = ""
    git_name: str = ""
    git_email: str = ""
    proxies: Mapping[str, str] | None = None
    certificates: tuple[str, ...] = ()
    cache: str = ""
    """The certificate of the host's image cache."""


_NOT_HERE = (
    "etc/hostname", "etc/hosts", "etc/machine-id", "etc/vmoat/env", "etc/vmoat/token",
    "etc/vmoat/boot.sh", "etc/ssh/ssh_host_ed25519_key", "etc/ssh/sshd_config.d/vmoat-env.conf",
    "etc/ssh/sshd_config.d/vmoat-forward.conf", "etc/gitconfig", meta.MONITORED,
    "etc/systemd/system/vmoat-boot.service",
    "etc/systemd/system/multi-user.target.wants/vmoat-boot.service",
)  # fmt: skip
"""Of the files of vmoat's own image: what Lima makes, or what is made differently here."""


def boot_script(boot: Boot) -> str:
    """``/usr/lib/vmoat/boot``."""
    spec = boot.spec
    text = BOOT + DATA + meta.CERTIFICATES + meta.DOCKER_CONFIG + SETTINGS + SHARES
    if spec.walls and not spec.git_writable and not boot.place.adopted:
        text += f"view {shlex.quote(str(spec.common_dir))}\n"
    text += END
    text = text.replace("@IDENT@", boot.place.ident).replace("@LOCAL@", localfolders.SCRIPT)
    return text.replace("@WORKTREE@", shlex.quote(str(spec.worktree)))


def files(boot: Boot, given: Given) -> dict[str, tuple[int, str]]:
    """Every file that the guest gets: path → (mode, text); ``->`` begins a link's target."""
    identity = meta.Identity(
        name=boot.spec.name,
        owner=boot.spec.owner,
        token="",
        disk_id="",
        data_id="",
        authorized_key=given.key,
        host_key="",
        git_name=given.git_name,
        git_email=given.git_email,
    )
    local = localfolders.script(
        str(boot.spec.worktree), boot.spec.local, (boot.uid, boot.spec.owner.gid)
    )
    found = meta.guest_files(
        identity,
        meta.Mounts(()),
        proxies=given.proxies,
        certificates=given.certificates,
        cache=given.cache,
        local=local,
    )
    found["etc/vmoat/gitconfig"] = found["etc/gitconfig"]
    for path in _NOT_HERE:
        del found[path]
    unit = "etc/systemd/system/vmoat-watch.service"
    found |= {
        "etc/ssh/sshd_config.d/00-vmoat.conf": (0o644, SSHD),
        "etc/cloud/cloud.cfg.d/99-vmoat.cfg": (0o644, CLOUD),
        "etc/sysctl.d/60-vmoat.conf": (0o644, PANIC),
        "usr/lib/vmoat/boot": (0o755, boot_script(boot)),
        "usr/lib/vmoat/watch": (0o755, watch_helper(boot.walled)),
        "usr/lib/vmoat/profile": (0o644, _template("etc/profile")),
        unit: (0o644, _template(unit)),
        f"{unit}.d/colima.conf": (0o644, WATCH),
        "etc/systemd/system/multi-user.target.wants/vmoat-watch.service": (0o777, f"->/{unit}"),
    }
    return found


CHOWN = "sub attribute { my ($name) = @_;"


def watch_helper(walled: bool) -> str:
    """The helper that tells programs what the host changes.

    For a file that it cannot open for writing it calls ``lchown``, which must not reach the host:
    there it is a change, told to the helper again, without end (tried).  Without walls such files
    raise no event.
    """
    text = _template("usr/lib/vmoat/watch")
    return text if walled else text.replace(CHOWN, f"{CHOWN} return 0;")


def _template(path: str) -> str:
    from importlib.resources import files as resources

    return resources("vmoat.templates").joinpath(f"guest/rootfs/{path}").read_text()


def script(boot: Boot, given: Given) -> str:
    """The script that makes the guest what vmoat needs."""
    content = files(boot, given)
    packed = pack(content)
    digest = hashlib.sha256(packed).hexdigest()[:16]
    values = {
        "VMOAT_UID": str(boot.uid),
        "VMOAT_GID": str(boot.spec.owner.gid),
        "VMOAT_USER": boot.spec.owner.name,
        "VMOAT_HOME": "/nonexistent",
        "VMOAT_TOKEN": boot.token,
        "VMOAT_DATA": boot.data_id,
        "VMOAT_COPIED": "1" if boot.copied else "",
        "VMOAT_FILES": digest,
    }
    env = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    body = base64.encodebytes(packed).decode()
    return SCRIPT.format(env=env, digest=digest, files=body)


def pack(content: Mapping[str, tuple[int, str]]) -> bytes:
    """The files as tar.gz; the same bytes for the same files.  No entries for folders: those of
    the guest keep their modes."""
    import gzip

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        meta.add_files(tar, dict(sorted(content.items())))
    return gzip.compress(out.getvalue(), mtime=0)


def clean_script(boot: Boot) -> str:
    """Removes what a copied data disk brought of another VM's: containers, volumes, networks."""
    return CLEAN.format(data=boot.data_id, mount=f"/mnt/lima-{boot.place.ident}")
