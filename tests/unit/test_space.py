"""Who fills the guest's disk: told by its name, with the command that frees the room."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from vmoat import culprits

MIB = 1024
CID = "c" * 64
CHAIN = hashlib.sha256(f"sha256:{'1' * 64} sha256:{'2' * 64}".encode()).hexdigest()
ANSWER = f"""\
\x1elayers
{900 * MIB}\toverlay2/{"a" * 64}
{300 * MIB}\toverlay2/{"b" * 64}
{1 * MIB}\toverlay2/{"b" * 64}-init
{500 * MIB}\toverlay2/kzq1
{200 * MIB}\toverlay2/kzq2
{4 * MIB}\toverlay2/l
{1905 * MIB}\toverlay2
\x1evolumes
{700 * MIB}\tvolumes/shop_db
{701 * MIB}\tvolumes
\x1elogs
{150 * MIB}\tcontainers/{CID}/{CID}-json.log
\x1enames
containers/{CID}/config.v2.json:"Name":"/shop-web-1"
\x1emounts
image/overlay2/layerdb/mounts/{CID}/mount-id:{"b" * 64}
\x1echains
image/overlay2/layerdb/sha256/{"1" * 64}/cache-id:{"d" * 64}
image/overlay2/layerdb/sha256/{CHAIN}/cache-id:{"a" * 64}
image/overlay2/layerdb/sha256/{"9" * 64}/cache-id:kzq2
\x1eimages
"diff_ids":["sha256:{"1" * 64}","sha256:{"2" * 64}"]
\x1efiles
{2000 * MIB}\t/data/cache/it's big
\x1efolders
{2000 * MIB}\t/data/cache
{120 * MIB}\t/data/containerd
{2120 * MIB}\t/data
"""


def test_each_part_of_docker_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprits, "MOST", 99)
    assert [one.told() for one in culprits.parse(ANSWER)] == [
        "2000 MiB  /data/cache/it's big  → vmoat ssh sudo rm '/data/cache/it'\"'\"'s big'",
        "900 MiB  images  → vmoat ssh docker image prune -af",
        "700 MiB  the build cache  → vmoat ssh docker builder prune -af",
        "700 MiB  the volume shop_db  → vmoat ssh docker volume rm shop_db",
        "301 MiB  files in the container shop-web-1  → vmoat ssh docker rm -f shop-web-1",
        "150 MiB  the log of the container shop-web-1  → vmoat ssh sudo truncate -s 0 "
        f"/var/lib/docker/containers/{CID}/{CID}-json.log",
        "120 MiB  /data/containerd",
    ]


def test_only_the_largest_are_told_and_nothing_of_a_broken_answer() -> None:
    assert len(culprits.parse(ANSWER)) == culprits.MOST
    assert culprits.parse("") == culprits.parse("du: no such file\n\x1efiles\nx\ty\n") == []


def test_of_the_system_only_what_is_the_users_is_offered_for_removal() -> None:
    found = culprits.parse(
        f"\x1efiles\n{300 * MIB}\t/tmp/a\n{400 * MIB}\t/usr/lib/b\n"
        f"\x1efolders\n{450 * MIB}\t/home/me/many\n{400 * MIB}\t/usr/lib\n{1150 * MIB}\t/\n"
    )
    assert [(one.what, one.cure) for one in found] == [
        ("/home/me/many", "vmoat ssh sudo rm -r /home/me/many"),
        ("/usr/lib/b", ""),
        ("/tmp/a", "vmoat ssh sudo rm /tmp/a"),
    ]


def test_the_questions_are_bash() -> None:
    for mounts in (["/"], ["/var/lib/docker"], ["/", "/var/lib/docker"]):
        subprocess.run(["bash", "-n", "-c", culprits.script(mounts)], check=True)


def test_large_files_are_found_on_a_real_disk(tmp_path: Path) -> None:
    """The system's question on a folder that stands for the root."""
    (tmp_path / "tmp").mkdir()
    with open(tmp_path / "tmp" / "big", "wb") as file:
        for _ in range(101):
            file.write(b"x" * 2**20)
    text = culprits.SYSTEM.replace("find / ", f"find {tmp_path} ").replace("3 /", f"3 {tmp_path}")
    answer = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert str(tmp_path / "tmp" / "big") in culprits.parse(answer.stdout)[0].told()
