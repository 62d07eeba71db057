"""PROVISION_APT: packages of the guest's distribution."""

from __future__ import annotations

import shlex

from vmoat.context import Context
from vmoat.guestwork import run_unit
from vmoat.stage import Stage, list_changes
from vmoat.state import Values


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("apt", "system packages (PROVISION_APT)", after, check, work, asked_for=asked_for)


def asked_for(ctx: Context) -> bool:
    return bool(ctx.settings.provision_apt)


def check(ctx: Context, values: Values) -> str:
    packages = sorted(ctx.settings.provision_apt)
    if not values:
        return "never run"
    if values.get("disk") != ctx.status.disk:
        return "a new disk"
    changes = list_changes(values.get("packages", ()), packages)
    return f"the package list changed: {changes}" if changes else ""


def work(ctx: Context) -> Values:
    packages = sorted(ctx.settings.provision_apt)
    if packages:
        run_unit(ctx, "apt", command(packages), key=packages, root=True)
    return {"packages": packages, "disk": ctx.status.disk}


def command(packages: list[str]) -> str:
    """Installs what dpkg misses.

    The image brings its package lists along, so that the first installation need not fetch
    them; where they are a week old, or a version that they name is gone, they are fetched.
    """
    names = " ".join(shlex.quote(name) for name in packages)
    return f"""\
export DEBIAN_FRONTEND=noninteractive
missing=
for name in {names}; do
  dpkg-query -W -f '${{db:Status-Status}}\\n' "$name" 2>/dev/null | grep -qx installed ||
    missing="$missing $name"
done
[ -n "$missing" ] || {{ echo "all installed"; exit 0; }}
lists=/var/lib/apt/lists
# What a stopped or crashed installation left half done, dpkg itself refuses to work with.
mend() {{
  dpkg --configure -a && apt-get -o DPkg::Lock::Timeout=300 -y -f install
}}
[ -z "$(ls -A /var/lib/dpkg/updates)" ] || mend
install() {{
  apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing
}}
fresh=$(find "$lists" -maxdepth 0 -mtime -7 2>/dev/null)
if [ -n "$fresh" ] && install; then exit 0; fi
mend && apt-get -o DPkg::Lock::Timeout=300 update && install
"""
