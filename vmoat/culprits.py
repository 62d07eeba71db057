"""Who fills a guest's disk, in the user's terms, and the command that frees the room.

dockerd may be dead of it, so its files are read and not its API: the layout of
``/var/lib/docker`` with overlay2 (moby's ``layer`` and ``volume`` packages, version 26).  A layer
that neither a container nor an image claims belongs to the build cache.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

DOCKER = "/var/lib/docker"
LARGE = 100
"""MiB from which on something is told."""
MOST = 6

FREE = ("/tmp/", "/var/tmp/", "/home/", "/root/", "/opt/", "/srv/", "/data/", "/var/log/",
        f"{DOCKER}/")  # fmt: skip
"""Below these, what is there is the user's: a command that removes it is offered."""

CONTAINERD = "/data/containerd/"

DATA = f"""\
mark() {{ printf '\\036%s\\n' "$1"; }}
cd {DOCKER} || exit
mark layers; du -xk --max-depth=1 overlay2
mark volumes; du -xk --max-depth=1 volumes
mark logs; du -k containers/*/*.log*
mark names; grep -Ho '"Name":"/[^"]*"' containers/*/config.v2.json
mark mounts; grep -H . image/overlay2/layerdb/mounts/*/mount-id
mark chains; grep -H . image/overlay2/layerdb/sha256/*/cache-id
mark images; grep -Eho '"diff_ids":\\[[^]]*\\]' image/overlay2/imagedb/content/sha256/*
mark files; find /data -xdev \\( -path '/data/docker/overlay2' -o -path '/data/docker/volumes' \\
  -o -path '/data/docker/containers' \\) -prune -o -type f -size +{LARGE}M -printf '%k\\t%p\\n' |
  sed 's|\\t/data/docker|\\t{DOCKER}|'
mark folders; du -xk --max-depth=2 --exclude=/data/docker /data
"""
SYSTEM = f"""\
mark() {{ printf '\\036%s\\n' "$1"; }}
mark files; find / -xdev -type f -size +{LARGE}M -printf '%k\\t%p\\n'
mark folders; du -xk --max-depth=3 /
"""
"""The same for the system disk."""


@dataclass(frozen=True)
class Culprit:
    """One of them; ``cure`` is a command line, "" where none can be named."""

    mib: int
    what: str
    cure: str = ""

    def told(self) -> str:
        return f"{self.mib} MiB  {self.what}" + (f"  → {self.cure}" if self.cure else "")


def script(mounts: Iterable[str]) -> str:
    """What root runs in the guest where these mounts are full."""
    parts = [SYSTEM if mount == "/" else DATA for mount in mounts]
    return "\n".join(f"({part}) 2>/dev/null" for part in parts)


def parse(text: str) -> list[Culprit]:
    """The largest first.  Pure."""
    found: dict[str, list[str]] = {}
    for part in text.split("\x1e")[1:]:
        name, _, body = part.partition("\n")
        found.setdefault(name, []).extend(body.splitlines())
    rows = [*_layers(found), *_volumes(found), *_logs(found), *_files(found)]
    large = [row for row in rows if row.mib >= LARGE]
    return sorted(large, key=lambda row: -row.mib)[:MOST]


def _sizes(lines: Sequence[str]) -> Iterable[tuple[int, str]]:
    """du's rows: KiB and path."""
    for line in lines:
        size, _, path = line.partition("\t")
        if size.isdigit() and path:
            yield int(size), path


def _names(found: dict[str, list[str]]) -> dict[str, str]:
    """container id → its name"""
    text = "\n".join(found.get("names", ()))
    return dict(re.findall(r'^containers/(\w+)/config\.v2\.json:"Name":"/([^"]*)"', text, re.M))


def _layers(found: dict[str, list[str]]) -> Iterable[Culprit]:
    names = _names(found)
    text = "\n".join(found.get("mounts", ()))
    mounts = {layer: cid for cid, layer in re.findall(r"/mounts/(\w+)/mount-id:(\S+)", text)}
    images = _image_layers(found)
    sums: Counter[tuple[str, str]] = Counter()
    for size, path in _sizes(found.get("layers", ())):
        layer = path.removeprefix("overlay2/").removesuffix("-init")
        if layer in ("overlay2", "l"):
            continue
        if layer in mounts:
            sums["container", names.get(mounts[layer], mounts[layer][:12])] += size
        else:
            sums["images" if layer in images else "cache", ""] += size
    for (kind, name), size in sums.items():
        if kind == "container":
            what, cure = f"files in the container {name}", f"docker rm -f {shlex.quote(name)}"
        elif kind == "images":
            what, cure = "images", "docker image prune -af"
        else:
            what, cure = "the build cache", "docker builder prune -af"
        yield Culprit(size >> 10, what, f"vmoat ssh {cure}")


def _image_layers(found: dict[str, list[str]]) -> set[str]:
    """The layers that images stand on.

    A layer is filed under its chain's id: its own digest, hashed onto that of the chain below it
    (image-spec, Layer ChainID).
    """
    text = "\n".join(found.get("chains", ()))
    by_chain = dict(re.findall(r"/sha256/(\w+)/cache-id:(\S+)", text))
    layers = set()
    for line in found.get("images", ()):
        chain = ""
        for digest in re.findall(r"sha256:\w+", line):
            joined = f"{chain} {digest}"
            chain = f"sha256:{sha256(joined.encode()).hexdigest()}" if chain else digest
            layers.add(by_chain.get(chain.removeprefix("sha256:"), ""))
    return layers


def _volumes(found: dict[str, list[str]]) -> Iterable[Culprit]:
    for size, path in _sizes(found.get("volumes", ())):
        name = path.removeprefix("volumes/")
        if path != "volumes":
            cure = f"vmoat ssh docker volume rm {shlex.quote(name)}"
            yield Culprit(size >> 10, f"the volume {name}", cure)


def _logs(found: dict[str, list[str]]) -> Iterable[Culprit]:
    names = _names(found)
    for size, path in _sizes(found.get("logs", ())):
        cid = path.split("/")[1]
        what = f"the log of the container {names.get(cid, cid[:12])}"
        yield Culprit(size >> 10, what, f"vmoat ssh sudo truncate -s 0 {DOCKER}/{path}")


def _files(found: dict[str, list[str]]) -> Iterable[Culprit]:
    """Large files, and the deepest folders that are large without one."""
    files = list(_sizes(found.get("files", ())))
    yield from (_removable(size, path, "rm") for size, path in files)
    told: Counter[str] = Counter()
    for size, path in files:
        for folder in _above(path):
            told[folder] += size
    folders = sorted(_sizes(found.get("folders", ())), key=lambda row: -row[1].count("/"))
    for size, path in folders:
        rest = size - told[path]
        if path not in ("/", "/data") and rest >= LARGE << 10:
            yield _removable(rest, path, "rm -r")
            for folder in _above(path):
                told[folder] += rest


def _above(path: str) -> Iterable[str]:
    while "/" in path[1:]:
        path = path.rpartition("/")[0]
        yield path


def _removable(size: int, path: str, how: str) -> Culprit:
    folder = f"{path}/"
    mine = folder.startswith(FREE) and folder not in FREE and not folder.startswith(CONTAINERD)
    return Culprit(size >> 10, path, f"vmoat ssh sudo {how} {shlex.quote(path)}" if mine else "")
