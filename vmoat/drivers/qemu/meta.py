"""What the guest is told: a tar that the initramfs lays over its root at each boot.

It arrives as QEMU's fw_cfg item ``opt/vmoat/meta``.  Everything in it is made by the host: names,
ids, keys, mounts, proxies, certificates.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmoat import localfolders
from vmoat.drivers import Owner
from vmoat.drivers.qemu.shares import Export
from vmoat.netports import CACHE_PORT

MSIZE = 500 * 1024
"""Bytes of one 9p message: the most that virtio takes."""

CACHE_UNIT = "etc/systemd/system/docker.service.d/vmoat-registry.conf"
CACHE_CERTIFICATES = "etc/vmoat/image-cache"
CACHE_BYPASS = "localhost,127.0.0.0/8,10.0.2.0/24,172.16.0.0/12"
"""Addresses inside the VM, Docker's own networks among them: dockerd reaches them itself."""

PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")

UNIT = """\
# vmoat: the shares are mounted before anybody can log in.
[Unit]
Description=vmoat: mounts and identity
DefaultDependencies=no
After=tmp.mount run-lock.mount
Before=ssh.service docker.service containerd.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /etc/vmoat/boot.sh
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
"""

GITCONFIG = """\
[core]
\tcheckStat = minimal
\ttrustctime = false
\tfsmonitor = false
[safe]
\tdirectory = *
[gc]
\tauto = 0
[maintenance]
\tauto = false
"""
"""Over 9p inode numbers and ctime differ from the host's: git would read every file again."""


MONITORED = "etc/vmoat/monitored.gitconfig"
MONITOR_CONFIG = """\
[core]
\tfsmonitor = /usr/lib/vmoat/git-fsmonitor
\tfsmonitorHookVersion = 2
"""


@dataclass(frozen=True)
class Mounts:
    """What the guest mounts where."""

    exports: tuple[Export, ...]
    kind: str = "9p"
    common_dir: str = ""
    """Where the git view's overlay goes; "" without one."""
    inside_git: tuple[tuple[str, str], ...] = ()
    """(place in the git export, path in the guest), bound read-only."""


@dataclass(frozen=True)
class Identity:
    """Who the guest is in this boot."""

    name: str
    owner: Owner
    token: str
    disk_id: str
    data_id: str
    authorized_key: str
    host_key: str
    git_name: str = ""
    git_email: str = ""
    git_dir: str = ""
    """The worktree's own git folder: git asks its monitor there."""


def mount_options(export: Export) -> str:
    """9p options.  ``mmap`` lets programs map files shared and writable, which they cannot without
    any cache; ``directio`` has all other reading and writing go to the host, so that an edit there
    is seen at once, also in a file that the guest holds open (tried: without it, not).
    """
    mode = "rw" if export.writable else "ro"
    cache = "mmap,directio" if export.writable else "none"
    return f"trans=virtio,version=9p2000.L,msize={MSIZE},cache={cache},{mode},nosuid,nodev"


def _mount_lines(mounts: Mounts) -> list[str]:
    todo: list[tuple[str, str]] = []
    for export in mounts.exports:
        kind = mounts.kind if export.tag == "worktree" or export.tag.startswith("share") else "9p"
        options = mount_options(export)
        if kind != "9p":
            options = f"{'rw' if export.writable else 'ro'},nosuid,nodev"
        if export.tag == "check":
            continue
        todo.append((export.guest, f"share {kind} {export.tag} {options}"))
    if mounts.common_dir:
        todo.append((mounts.common_dir, "view"))
    # /run/vmoat/git first: the view and the borrowed objects stand on it; then outer before inner
    todo.sort(key=lambda item: (not item[0].startswith("/run/vmoat/"), item[0].count("/")))
    lines = [f"{command} {shlex.quote(path)}" for path, command in todo]
    if any(export.tag == "check" for export in mounts.exports):
        lines.insert(0, "check")
    lines += [
        f"borrowed {shlex.quote('/run/vmoat/git/' + place)} {shlex.quote(path)}"
        for place, path in mounts.inside_git
    ]
    return lines


BOOT = """\
#!/bin/sh
# Made by vmoat for this VM at each start; run before sshd.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /etc/vmoat/env
mkdir -p /run/vmoat /var/lib/vmoat
# in memory, and this user's alone: the host's socket for docker logins (vmoat/credentials.py), and
# what `docker login` stores in here
install -d -m 0700 -o "$VMOAT_UID" -g "$VMOAT_GID" /run/vmoat/user
failed=
say() { echo "vmoat-boot: $*" >/dev/kmsg; }
there() { mountpoint -q "$1"; }
own() { # path: folders that lead to it through the user's home are the user's
  home=${VMOAT_HOME:-/home/$VMOAT_USER} at=$1
  while case $at in "$home"/*) ;; *) false ;; esac; do
    chown "$VMOAT_UID:$VMOAT_GID" "$at"
    at=${at%/*}
  done
}
share() { # kind tag options path
  there "$4" && return
  mkdir -p "$4" && own "$4"
  mount -t "$1" -o "$3" "$2" "$4" || { say "cannot mount $2"; failed=1; }
}
borrowed() { # source path
  there "$2" && return
  mkdir -p "$2" && mount --bind "$1" "$2" || { say "cannot mount borrowed objects"; failed=1; }
}
view() { # path: the host's git folder below, this VM's own writes above
  there "$1" && return
  mkdir -p /var/lib/vmoat/git/upper /var/lib/vmoat/git/work "$1"
  own "$1"
  chown "$VMOAT_UID:$VMOAT_GID" /var/lib/vmoat/git/upper
  mount -t overlay -o "lowerdir=/run/vmoat/git/common,upperdir=/var/lib/vmoat/git/upper,\\
workdir=/var/lib/vmoat/git/work,redirect_dir=off,index=off,metacopy=off,xino=off" vmoat-git "$1" ||
    { say "cannot mount the git view"; failed=1; }
}
check() { # a virtiofsd that no guest has tried yet
  mkdir -p /run/vmoat/check
  if why=$(mount -t virtiofs -o rw,nosuid,nodev check /run/vmoat/check 2>&1 &&
    /usr/bin/perl /usr/lib/vmoat/check-share /run/vmoat/check 2>&1); then
    say "virtiofs is well"
  else
    say "virtiofs fails: $why"
  fi
  umount -l /run/vmoat/check 2>/dev/null
}
modprobe -a -b -q 9pnet_virtio 9p overlay @VIRTIOFS@
"""

CERTIFICATES = """\
if [ -s /etc/vmoat/extra.crt ] && ! cmp -s /etc/vmoat/extra.crt /var/lib/vmoat/extra.crt; then
  bundle=/etc/ssl/certs/ca-certificates.crt
  [ -e /var/lib/vmoat/stock.crt ] || cp $bundle /var/lib/vmoat/stock.crt
  cat /var/lib/vmoat/stock.crt /etc/vmoat/extra.crt >$bundle.new && mv $bundle.new $bundle
  cp /etc/vmoat/extra.crt /var/lib/vmoat/extra.crt
fi
"""
"""The host's extra certificates, beside the guest's own."""

DOCKER_CONFIG = """\
docker_config() { # home: docker's settings, merged into what the user has
  [ -d "$1" ] || return
  file=$1/.docker/config.json own=
  if [ -e "$file" ]; then
    while IFS= read -r line || [ -n "$line" ]; do own=$own$line; done <"$file"
    # with a store, helper or login of its own it stays as it is: it would lose these
    case $own in
      *'"credsStore"'* | *'"credHelpers"'* | *'"auth"'* | *'"identitytoken"'*) return ;;
    esac
    /usr/bin/perl -MJSON::PP -0777 -e '
      my ($own, $ours) = map { open my $in, "<", $_ or die; decode_json(<$in> || "{}") } @ARGV;
      open my $out, ">", "$ARGV[0].vmoat" or die;
      print $out JSON::PP->new->utf8->pretty->canonical->encode({ %$ours, %$own });
      close $out or die;
      rename "$ARGV[0].vmoat", $ARGV[0] or die
    ' "$file" /etc/vmoat/docker.json 2>/dev/null || return
  else
    mkdir -p -m 0700 "$1/.docker" && cp /etc/vmoat/docker.json "$file" || return
  fi
  [ "$1" = /root ] || chown "$VMOAT_UID:$VMOAT_GID" "$1/.docker" "$file"
}
"""

BOOT_END = """\
[ ! -s @LOCAL@ ] || sh @LOCAL@ >/dev/kmsg 2>&1
# which disks these are: written once, by their first boot
[ -s /etc/vmoat/disk-id ] || echo "$VMOAT_DISK" >/etc/vmoat/disk-id
if there /data; then
  [ -s /data/.vmoat-disk ] || echo "$VMOAT_DATA" >/data/.vmoat-disk
  cat /data/.vmoat-disk >/run/vmoat/data-id
  [ -z "$VMOAT_GROW" ] || resize2fs /dev/vdb >/dev/null 2>&1 || say "cannot grow the data disk"
else
  say "the data disk is not mounted"; failed=1
fi
# which boot this is: the host's token; a reboot from inside repeats it and is counted
n=0 last=
[ -r /var/lib/vmoat/boots ] && read -r last n </var/lib/vmoat/boots
[ "$last" = "$VMOAT_TOKEN" ] || n=0
n=$((n + 1))
echo "$VMOAT_TOKEN $n" >/var/lib/vmoat/boots
boot=$VMOAT_TOKEN
[ $n = 1 ] || boot=$VMOAT_TOKEN.$n
@CERTIFICATES@@DOCKER_CONFIG@\
for home in /root "${VMOAT_HOME:-/home/$VMOAT_USER}"; do docker_config "$home"; done
[ -z "$failed" ] || { echo failed >/run/vmoat/mounts-failed; }
echo "$boot" >/run/vmoat/boot
say "ready"
"""


def boot_script(mounts: Mounts) -> str:
    """The script that mounts everything and names the boot."""
    head = BOOT.replace(" @VIRTIOFS@", " virtiofs" if mounts.kind == "virtiofs" else "")
    end = BOOT_END.replace("@LOCAL@", localfolders.SCRIPT)
    end = end.replace("@CERTIFICATES@", CERTIFICATES).replace("@DOCKER_CONFIG@", DOCKER_CONFIG)
    return head + "".join(line + "\n" for line in _mount_lines(mounts)) + end


def _env(identity: Identity, grow: bool) -> str:
    values = {
        "VMOAT_USER": identity.owner.name,
        "VMOAT_UID": str(identity.owner.uid),
        "VMOAT_GID": str(identity.owner.gid),
        "VMOAT_TOKEN": identity.token,
        "VMOAT_DISK": identity.disk_id,
        "VMOAT_DATA": identity.data_id,
        "VMOAT_GROW": "1" if grow else "",
    }
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())


def _in_both_cases(proxies: Mapping[str, str]) -> dict[str, str]:
    """``http_proxy`` and ``HTTP_PROXY``: programs read one or the other."""
    return {name: value for low, value in proxies.items() for name in (low, low.upper())}


def _environment(variables: Mapping[str, str]) -> str:
    """A drop-in that gives a unit these variables (systemd.exec(5); ``%`` starts a specifier)."""
    rows = (
        'Environment="' + f"{name}={value}".replace("%", "%%").replace('"', "") + '"\n'
        for name, value in variables.items()
    )
    return "[Service]\n" + "".join(rows)


def _proxy_files(proxies: Mapping[str, str]) -> dict[str, str]:
    """For shells, apt and dockerd (what docker builds and runs: ``_docker_config``)."""
    if not proxies:
        return {}
    variables = _in_both_cases(proxies)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    apt = "".join(
        f'Acquire::{kind}::Proxy "{proxies[f"{kind}_proxy"].replace(chr(34), "")}";\n'
        for kind in ("http", "https")
        if proxies.get(f"{kind}_proxy")
    )
    return {
        "etc/profile.d/vmoat-proxy.sh": exports,
        "etc/apt/apt.conf.d/95vmoat-proxy": apt,
        "etc/systemd/system/docker.service.d/vmoat-proxy.conf": _environment(variables),
    }


def _docker_config(proxies: Mapping[str, str]) -> str:
    """docker's config for the guest's users: logins, and proxies for what it builds and runs."""
    import json

    names = {"http_proxy": "httpProxy", "https_proxy": "httpsProxy", "no_proxy": "noProxy"}
    docker = {names[key]: value for key, value in proxies.items() if key in names}
    config: dict[str, object] = {"credsStore": "vmoat"}
    if docker:
        config["proxies"] = {"default": docker}
    return json.dumps(config, indent=1) + "\n"


def _credential_helper() -> str:
    """docker's credential helper; not part of the image, so that a VM on an older one has it."""
    from importlib.resources import files

    return files("vmoat.templates").joinpath("docker-credential-vmoat").read_text()


def _cache_files(certificate: str) -> dict[str, str]:
    """dockerd pulls through the host's image cache, and it alone trusts the cache's authority.

    Go reads its bundle (ca-certificates.crt) *and* the folders of SSL_CERT_DIR (crypto/x509,
    root_unix.go): the folder adds to what the guest trusts.  The drop-in's name comes after
    ``vmoat-proxy.conf``: the cache takes the place of the host's proxies, which it uses itself.
    All of it is written empty where there is no cache: an old one must not stay in force.
    """
    url = f"http://127.0.0.1:{CACHE_PORT}"
    proxies = {"http_proxy": url, "https_proxy": url, "no_proxy": CACHE_BYPASS}
    variables = {**_in_both_cases(proxies), "SSL_CERT_DIR": f"/{CACHE_CERTIFICATES}"}
    return {
        f"{CACHE_CERTIFICATES}/ca.crt": certificate,
        CACHE_UNIT: _environment(variables) if certificate else "",
    }


def _monitored(git_dir: str) -> str:
    """The part of a git config that holds for one git folder alone (git-config(1), includeIf)."""
    from vmoat.drivers.qemu.gitview import _quote

    pattern = "".join(f"\\{char}" if char in "*?[\\" else char for char in git_dir)
    return f"[includeIf {_quote('gitdir:' + pattern)}]\n\tpath = /{MONITORED}\n"


def _gitconfig(identity: Identity) -> str:
    from vmoat.drivers.qemu.gitview import _quote

    text = GITCONFIG
    if identity.git_dir:
        text += _monitored(identity.git_dir)
    if identity.git_name or identity.git_email:
        text += "[user]\n"
    for key, value in (("name", identity.git_name), ("email", identity.git_email)):
        if value:
            text += f"\t{key} = {_quote(value)}\n"
    return text


def guest_files(
    identity: Identity,
    mounts: Mounts,
    *,
    grow: bool = False,
    proxies: Mapping[str, str] | None = None,
    certificates: Sequence[str] = (),
    cache: str = "",
    local: str = "",
) -> dict[str, tuple[int, str]]:
    """Every file of the tar: path → (mode, text); a text that begins with ``->`` is a link.

    ``cache`` is the certificate (PEM) of the host's image cache; "" where dockerd is to pull by
    itself.  ``local``: the script that lays the worktree's local folders (``vmoat.localfolders``).
    """
    name = identity.name
    files = {
        "etc/hostname": (0o644, name + "\n"),
        "etc/hosts": (0o644, f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"),
        "etc/machine-id": (0o444, identity.disk_id.ljust(32, "0")[:32] + "\n"),
        "etc/vmoat/env": (0o600, _env(identity, grow)),
        "etc/vmoat/token": (0o600, identity.token + "\n"),
        "etc/vmoat/boot.sh": (0o755, boot_script(mounts)),
        "etc/vmoat/authorized_keys": (0o644, identity.authorized_key.strip() + "\n"),
        "etc/ssh/ssh_host_ed25519_key": (0o600, identity.host_key),
        "etc/ssh/sshd_config.d/vmoat-env.conf": (0o644, "SetEnv GIT_OPTIONAL_LOCKS=0\n"),
        # a forward that is made anew finds the socket of the one before it
        "etc/ssh/sshd_config.d/vmoat-forward.conf": (0o644, "StreamLocalBindUnlink yes\n"),
        "usr/local/bin/docker-credential-vmoat": (0o755, _credential_helper()),
        "etc/vmoat/docker.json": (0o644, _docker_config(proxies or {})),
        "etc/gitconfig": (0o644, _gitconfig(identity)),
        MONITORED: (0o644, MONITOR_CONFIG),
        "etc/profile.d/vmoat.sh": (0o644, "export GIT_OPTIONAL_LOCKS=0\n"),
        "etc/systemd/system/vmoat-boot.service": (0o644, UNIT),
        "etc/systemd/system/multi-user.target.wants/vmoat-boot.service": (
            0o777,
            "->/etc/systemd/system/vmoat-boot.service",
        ),
        # written even when empty: an old one must not stay in force
        localfolders.SCRIPT.lstrip("/"): (0o755, local),
        "etc/vmoat/extra.crt": (0o644, "".join(text.strip() + "\n" for text in certificates)),
    }
    for path in ("etc/profile.d/vmoat-proxy.sh", "etc/apt/apt.conf.d/95vmoat-proxy"):
        files[path] = (0o644, "")
    for path, text in {**_proxy_files(proxies or {}), **_cache_files(cache)}.items():
        files[path] = (0o644, text)
    return files


def tar_bytes(files: Mapping[str, tuple[int, str]]) -> bytes:
    """The tar: everything root's, no times, folders first."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        folders = {
            "/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)
        }
        for folder in sorted(folders):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        add_files(tar, files)
    return out.getvalue()


def add_files(tar: tarfile.TarFile, files: Mapping[str, tuple[int, str]]) -> None:
    """Files and links (``->``) as ``guest_files`` has them: root's, without times."""
    for path, (mode, text) in files.items():
        info = tarfile.TarInfo(path)
        info.mode = mode
        if text.startswith("->"):
            info.type, info.linkname = tarfile.SYMTYPE, text[2:]
            tar.addfile(info)
            continue
        data = text.encode("utf-8", "surrogateescape")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
