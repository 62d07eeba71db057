"""How long whole commands take, each beside a yardstick of the same run.

``python tests/bench.py [--runs N] [--rounds N] [--share [--readme]] [--json FILE]``: medians of
processes as a user starts them, on real VMs with four packages, a script, a seed and a health URL.
The golden image has to be there (it is built first, and not counted).  ``--share`` measures the
worktree's share instead, by each way that this machine has (9p; virtiofs where there is a usable
virtiofsd), beside the VM's own disk; ``--readme`` writes those figures into the README.  Run it on
an idle machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "integration"))

from lab import FILES, Lab, Vm, add_worktree, git, make_repository

from vmoat import paths

APT = 'apt = ["tree", "inotify-tools"]'
SETTLES = 90
"""Seconds for the guest to take in 20,000 new files, a few milliseconds each."""
PACKAGES = 'apt = ["tree", "file", "bc", "time"]'


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds."""

    what: str
    median: float
    runs: int
    limit: str
    yardstick: str = ""


def timed(call: Callable[[], object], runs: int) -> float:
    """The median of some calls, in seconds."""
    times = []
    for _ in range(runs):
        began = time.monotonic()
        call()
        times.append(time.monotonic() - began)
    return statistics.median(times)


def quiet(argv: Sequence[str | Path]) -> Callable[[], object]:
    return lambda: subprocess.run(
        list(map(str, argv)), check=True, stdin=subprocess.DEVNULL, capture_output=True
    )


def command(vm: Vm, *words: str) -> Callable[[], object]:
    """A vmoat command that has to succeed."""

    def call() -> None:
        done = vm.cli(*words)
        if done.returncode != 0:
            raise SystemExit(f"vmoat {' '.join(words)}: exit {done.returncode}\n{done.stderr}")

    return call


def quick(vm: Vm, runs: int) -> list[Row]:
    """What changes nothing, on a VM that is up."""
    python = timed(quiet([sys.executable, "-c", "pass"]), max(runs, 10))
    config = vm.runtime() / "ssh_config"
    bare = timed(quiet(["ssh", "-F", config, "-T", "--", "vmoat", "true"]), runs)
    of_python, of_ssh = f"python -c pass: {python:.3f}", f"bare ssh true: {bare:.3f}"
    name = timed(command(vm, "name"), max(runs, 10))
    return [
        Row("name", name, max(runs, 10), f"<= {3 * python:.3f}", of_python),
        Row("ssh true", timed(command(vm, "ssh", "true"), runs), runs,
            f"<= {bare + 0.2:.3f}", of_ssh),
        Row("status", timed(command(vm, "status"), runs), runs, "<= 0.6", of_ssh),
        Row("plan", timed(command(vm, "plan"), runs), runs, "", of_ssh),
        Row("no-op up", timed(command(vm, "up"), runs), runs, "<= 1.0", of_ssh),
    ]  # fmt: skip


SLOW = {
    "first up (image there)": "<= 120",
    "down": "",
    "up after down": "<= 75",
    "second worktree's first up": "",
    "destroy": "",
}


def installing(vm: Vm) -> list[Row]:
    """2,000 small files unpacked, read and removed: a local folder beside its yardsticks."""
    vm.env["VMOAT_MOUNTS_LOCAL"] = "node_modules"
    command(vm, "up", "local")()
    script = (Path(__file__).parent / "integration" / "install.sh").read_text()
    line = f"mkdir -p out; bash -c {shlex.quote(script)} bash 200 "
    own, local = map(int, vm.ok(line + "5 /var/tmp node_modules", timeout=1200).split())
    share = int(vm.ok(line + "1 out", timeout=1200))
    beside = f"the guest's own disk: {own / 1000:.3f}"
    return [
        Row("2,000 files: local folder", local / 1000, 5, f"<= {1.2 * own / 1000:.3f}", beside),
        Row("2,000 files: the share", share / 1000, 1, "", beside),
    ]


def monitored(vm: Vm, runs: int) -> list[Row]:
    """`git status` in 20,000 files, warm, beside the same on the guest's own disk."""
    for number in range(20_000):
        folder = vm.worktree / "many" / str(number % 2000)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text("1")
    git(vm.worktree, "add", "-A")
    git(vm.worktree, "commit", "-qm", "many")
    vm.ok("git clone -q . /var/tmp/many", timeout=1200)
    time.sleep(SETTLES)
    clock = "s=$(date +%s%N); git status --short >/dev/null; echo $(($(date +%s%N) - s))"
    here, own = (
        statistics.median(int(vm.ok(f"cd {folder}; {clock}", timeout=300)) for _ in range(runs))
        for folder in (".", "/var/tmp/many")
    )
    limit, beside = f"<= {3 * own / 1e9:.3f}", f"the guest's own disk: {own / 1e9:.3f}"
    return [Row("git status, 20,000 files", here / 1e9, runs, limit, beside)]


SHARED = ("made", "stat'ed", "removed", "written", "read")
FILES_SHARED, MIB_SHARED = 20_000, 1024
EDITS = 5


def sharing(lab: Lab) -> list[Row]:
    """20,000 small files and a large one in the worktree, and how soon a host's edit is read."""
    from vmoat.drivers.qemu import virtiofs

    main = make_repository(lab.folder / "shared", FILES)
    rows: list[Row] = []
    own: list[int] = []
    for kind in ["9p", *([] if virtiofs.unusable() else ["virtiofs"])]:
        vm = lab.vm(add_worktree(main, lab.folder / "wt" / kind, kind), main)
        vm.env.update(VMOAT_VM_MOUNT_TYPE=kind, VMOAT_WATCH_ENABLED="false")
        command(vm, "up", "vm")()
        script = shlex.quote((Path(__file__).parent / "integration" / "share.sh").read_text())
        line = f"mkdir -p out; bash -c {script} bash {FILES_SHARED} {MIB_SHARED} "
        own = own or [int(word) for word in vm.ok(line + "/var/tmp", timeout=3600).split()]
        times = [int(word) for word in vm.ok(line + "out", timeout=7200).split()]
        for index, (what, mine, there) in enumerate(zip(SHARED, times, own, strict=True)):
            name = f"{FILES_SHARED:,} files {what}" if index < 3 else f"{MIB_SHARED:,} MiB {what}"
            beside = f"the VM's own disk: {there / 1000:.1f}"
            rows.append(Row(f"{kind}: {name}", mine / 1000, 1, "", beside))
        rows.append(Row(f"{kind}: a host's edit is read", edit_seen(vm), EDITS, "<= 1"))
        command(vm, "destroy", "-f")()
    return rows


README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- share figures -->\n", "<!-- /share figures -->\n"


def readme_table(rows: Sequence[Row]) -> str:
    """The shares side by side, as Markdown."""
    kinds = list(dict.fromkeys(row.what.partition(": ")[0] for row in rows))
    cells = {tuple(row.what.split(": ", 1)): row for row in rows}
    lines = [
        f"| seconds | the VM's own disk | {' | '.join(kinds)} |",
        "|---|---|" + "---|" * len(kinds),
    ]
    for what in dict.fromkeys(row.what.partition(": ")[2] for row in rows):
        each = [cells[kind, what] for kind in kinds]
        own = each[0].yardstick.rpartition(" ")[2] or "–"
        lines.append(f"| {what} | {own} | {' | '.join(f'{row.median:.1f}' for row in each)} |")
    return "\n".join(lines) + "\n"


def into_readme(text: str, table: str) -> str:
    """The README with the figures in their place."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table + END + rest.partition(END)[2]


def edit_seen(vm: Vm) -> float:
    """Seconds until a program in the VM that reads a file again and again has the host's edit: the
    median of some, one command's own time included."""
    file = vm.worktree / "edited"
    file.write_text("0")
    times = []
    for number in range(1, EDITS + 1):
        loop = f"until grep -qx {number} edited; do sleep 0.05; done"
        reader = vm.start("exec", loop)
        time.sleep(1.5)  # it reads by now
        began = time.monotonic()
        file.write_text(f"{number}\n")
        if reader.wait(60) != 0:
            raise SystemExit("the reader failed")
        reader.stdout.close()
        reader.stderr.close()
        times.append(time.monotonic() - began)
    return statistics.median(times)


def measure(lab: Lab, runs: int, rounds: int) -> list[Row]:
    """Every figure; each round makes two VMs anew."""
    files = {**FILES, "vmoat.toml": FILES["vmoat.toml"].replace(APT, PACKAGES)}
    assert PACKAGES in files["vmoat.toml"]
    main = make_repository(lab.folder / "bench", files)
    times: dict[str, list[float]] = {name: [] for name in SLOW}
    rows: list[Row] = []
    for number in range(rounds):
        vm, second = (
            lab.vm(add_worktree(main, lab.folder / "wt" / name, name), main)
            for name in (f"one{number}", f"two{number}")
        )
        steps = [(vm, "up"), (vm, "down"), (vm, "up"), (second, "up"), (second, "destroy", "-f")]
        for name, (which, *words) in zip(SLOW, steps, strict=True):
            times[name].append(timed(command(which, *words), 1))
        if number == 0:
            rows = [*quick(vm, runs), *installing(vm), *monitored(vm, runs)]
        times["destroy"].append(timed(command(vm, "destroy", "-f"), 1))
    slow = [
        Row(name, statistics.median(each), len(each), SLOW[name]) for name, each in times.items()
    ]
    return [*slow, *rows]


def table(rows: Sequence[Row]) -> str:
    """For a person."""
    lines = [f"{'':<28}{'seconds':>9}  {'runs':>4}  {'limit':<10} yardstick"]
    lines += [
        f"{r.what:<28}{r.median:>9.3f}  {r.runs:>4}  {r.limit:<10} {r.yardstick}" for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of each quick command (5)")
    parser.add_argument("--rounds", type=int, default=3, help="of two VMs made anew (3)")
    parser.add_argument("--share", action="store_true", help="the worktree's share instead")
    parser.add_argument("--readme", action="store_true", help="write them into the README")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    subprocess.run([sys.executable, "-P", "-m", "vmoat", "image", "build"], check=True)
    with tempfile.TemporaryDirectory(prefix="vmoat-bench-") as folder:
        lab = Lab(Path(folder), paths.images_dir())
        try:
            rows = sharing(lab) if options.share else measure(lab, options.runs, options.rounds)
        finally:
            lab.close()
    print(table(rows))
    if options.share and options.readme:
        README.write_text(into_readme(README.read_text(), readme_table(rows)))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
