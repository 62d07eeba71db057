"""Everything that helps to understand a failure, in one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vmoat.context import Context
from vmoat.errors import Code, VmoatError
from vmoat.state import current_run

GUEST = {
    "journal.txt": "journalctl -b --no-pager | tail -n 4000",
    "docker.txt": "docker ps -a; docker images; docker system df",
    "containers.txt": (
        'for c in $(docker ps -aq); do echo "== $c"; docker logs --tail 500 "$c" 2>&1; done'
    ),
    "stages.txt": "tail -n +1 /var/log/vmoat/*.log",
    "system.txt": "df -h; free -m; ip -br addr; mount",
}


def write(ctx: Context, folder: Path) -> Path:
    """Write the bundle; returns the folder.  What cannot be had is said in its file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VmoatError(
            f"cannot write {folder}: {error.strerror}", hint="name another folder", code=Code.USAGE
        ) from error
    _copy(ctx.driver.console_log(ctx.instance.name), folder / "console.txt")
    log = current_run(ctx.instance.folder)
    if log is not None:
        _copy(log.file, folder / "events.ndjson")
    _copy(ctx.store.file, folder / "stages.toml")
    rows = [row._asdict() for row in ctx.settings.dump()]
    (folder / "config.json").write_text(json.dumps(rows, indent=2, default=str))
    if ctx.facts() is None:
        return folder
    for name, command in GUEST.items():
        try:
            text = ctx.guest.run(command, root=True, check=False, timeout=60).out
        except VmoatError as error:
            text = f"{error}\n"
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    return folder


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
