"""The colima driver on a `colima` of recorded words: its contract, broken states, adoption, layers.

The guest is an sshd of this machine (see ``fakecolima``); without one these are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import drivers_contract as contract
import fakecolima
import pytest
from drivers_contract import Subject, quiet
from test_colima_argv import spec as plain_spec

from vmoat import paths
from vmoat.drivers import VmSpec, load
from vmoat.drivers.colima import checks, homes, look, machine, pids, record, starting
from vmoat.drivers.colima.argv import Host
from vmoat.drivers.colima.homes import Place
from vmoat.errors import Code, VmoatError
from vmoat.fleet import leftovers

pytestmark = pytest.mark.skipif(
    not os.access(fakecolima.SSHD, os.X_OK), reason="no sshd that could stand for the guest's"
)


class Scene:
    """Worktrees and VMs on a machine whose Colima is the fake one."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.driver = load("colima")
        self.made: list[str] = []

    def spec(self, name: str = "wt-feature", **more: object) -> VmSpec:
        worktree = self.root / "src" / name
        git = self.root / "src" / "app" / ".git"
        for one in (worktree, git / "worktrees" / name):
            one.mkdir(parents=True, exist_ok=True)
        (worktree / ".git").write_text(f"gitdir: {git}/worktrees/{name}\n")
        given = plain_spec(
            name=name, vm_id=f"{len(self.made):016x}"[::-1], worktree=worktree, common_dir=git,
            git_dir=git / "worktrees" / name, image_cache=False, disk_gib=20,
        )  # fmt: skip
        if name not in self.made:
            self.made.append(name)
            paths.make_private(paths.vm_dir(name))
            rows = (given.vm_id, given.git_dir, worktree, "colima")
            (paths.vm_dir(name) / "owner").write_text("".join(f"{row}\n" for row in rows))
        known = paths.vm_id(name)
        return replace(given, vm_id=known, **more)  # type: ignore[arg-type]

    def up(self, spec: VmSpec) -> list[str]:
        """Create and start it; what was said."""
        said: list[str] = []
        self.driver.create(spec, said.append)
        self.driver.start(spec, said.append)
        return said

    def subject(self, spec: VmSpec) -> Subject:
        return contract.of_colima(self.driver, spec)

    def ran(self) -> list[str]:
        return (self.folder / "ran").read_text().splitlines()

    def fail(self, how: str) -> None:
        (self.folder / "fail").write_text(how)

    def guest(self) -> list[str]:
        return (self.folder / "guest").read_text().splitlines()

    def close(self) -> None:
        for one in pids.with_mark(self.root):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if str(fakecolima.HERE).encode() in pids._facts(one.pid)[1]:
                    os.kill(one.pid, signal.SIGKILL)


@pytest.fixture
def scene(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    # Short: the sockets of a real Colima would have to fit as well.
    root = tmp_path_factory.mktemp("c")
    for name in ("STATE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(root / name.lower()))
    for name in ("COLIMA_HOME", "LIMA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(root / "home"))
    folder = fakecolima.install(root / "bin")
    monkeypatch.setenv("FAKE_COLIMA", str(folder))
    monkeypatch.setenv("PATH", f"{root}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "host", lambda: Host("Linux", "x86_64", kvm=True, kvm_there=True))
    monkeypatch.setattr(homes, "LIMIT", 200)
    monkeypatch.setattr(starting, "POLL", 0.02)
    made = Scene(root, folder)
    yield made
    made.close()


def test_the_contract(scene: Scene) -> None:
    subject = scene.subject(scene.spec())
    contract.a_vm_that_was_never_made(subject)
    boot, disk = contract.a_start(subject)
    contract.a_look(subject)
    contract.a_kill(subject)
    contract.a_stop(subject)
    again = contract.a_start(subject)
    assert again[0] != boot, "another boot"
    assert again[1] == disk, "the same disk"
    contract.a_removal(subject)


def test_a_home_is_left_behind_only_for_the_state_folder_that_it_was_made_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that share a data folder do not collect each other's VMs."""
    spec = scene.spec()
    scene.driver.create(spec, quiet)
    home = homes.place_of(spec.name).home
    shutil.rmtree(paths.vm_dir(spec.name))  # nobody knows it any more
    assert [found.name for found in leftovers._colima_homes([])] == [str(home)]
    monkeypatch.setenv("XDG_STATE_HOME", str(scene.root / "another"))
    assert list(leftovers._colima_homes([])) == []


def test_a_start_says_what_colima_says_and_which_walls_are_open_once(scene: Scene) -> None:
    spec = scene.spec()
    said = scene.up(spec)
    assert "colima: vm: creating and starting ..." in said
    assert [line for line in said if line.startswith("Colima holds fewer walls")]
    scene.driver.stop(spec.name)
    assert not [line for line in scene.up(spec) if "walls" in line]


def test_the_guest_is_prepared_by_lima_itself(scene: Scene) -> None:
    spec = scene.spec()
    scene.up(spec)
    token = scene.driver.status(spec.name).boot
    assert scene.guest() == [f"boot {token} copied=''"], "by its override.yaml, once"
    scene.driver.stop(spec.name)
    scene.up(spec)
    assert scene.guest()[-1] == "asked", "a known guest shows the key that it showed before"


def test_a_guest_that_says_nothing_on_its_console_is_asked(scene: Scene) -> None:
    (scene.folder / "quiet-console").touch()
    spec = scene.spec()
    scene.up(spec)
    token = scene.driver.status(spec.name).boot
    assert scene.guest() == [f"boot {token} copied=''", "asked"]


def test_nothing_of_the_users_own_is_touched(scene: Scene) -> None:
    scene.up(scene.spec())
    mine = [line for line in scene.ran() if line.startswith("colima start")]
    assert "--activate=false --ssh-config=false --template=false" in mine[0]
    assert not (scene.root / "home").exists()


# --- broken states


def broken(scene: Scene, spec: VmSpec) -> str:
    found = scene.driver.status(spec.name)
    assert found.state == "broken"
    return found.reasons[0]


@pytest.mark.parametrize(
    ("who", "why"), [("agent", "host agent ended"), ("machine", "the VM ended|killed")]
)
def test_one_process_of_two(scene: Scene, who: str, why: str) -> None:
    import re

    spec = scene.spec()
    scene.up(spec)
    place = homes.place_of(spec.name)
    one = look.agent(place) if who == "agent" else look.machine(place)
    assert one
    os.kill(one.pid, signal.SIGKILL)
    contract_wait(lambda: scene.driver.status(spec.name).state == "broken")
    assert re.search(why, broken(scene, spec))
    said = scene.up(spec)
    assert scene.driver.status(spec.name).state == "running"
    assert "the VM is repaired" in said[0]


def contract_wait(what: object, limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_running_but_never_set_up(scene: Scene) -> None:
    spec = scene.spec()
    scene.fail("guest")
    with pytest.raises(VmoatError):
        scene.up(spec)
    assert "never finished its set-up" in broken(scene, spec)
    scene.up(spec)
    assert scene.driver.status(spec.name).state == "running"


def test_a_folder_without_lima_yaml(scene: Scene) -> None:
    spec = scene.spec()
    scene.up(spec)
    scene.driver.stop(spec.name)
    (homes.place_of(spec.name).instance / "lima.yaml").unlink()
    assert "no lima.yaml" in broken(scene, spec)
    scene.up(spec)
    assert scene.driver.status(spec.name).state == "running"


def test_a_lock_that_a_crash_of_this_machine_left(scene: Scene) -> None:
    spec = scene.spec()
    scene.up(spec)
    place = homes.place_of(spec.name)
    for one in (look.machine(place), look.agent(place)):
        assert one
        os.kill(one.pid, signal.SIGKILL)
    contract_wait(lambda: not look.agent(place) and not look.machine(place))
    link = place.data_folder / "in_use_by"
    link.unlink(missing_ok=True)
    link.symlink_to("/gone")
    assert "killed, or this machine was restarted" in broken(scene, spec)
    scene.up(spec)
    assert scene.driver.status(spec.name).state == "running"


def test_a_pid_file_that_names_another_program_by_now(scene: Scene) -> None:
    spec = scene.spec()
    scene.up(spec)
    scene.driver.stop(spec.name)
    place = homes.place_of(spec.name)
    for name in ("ha.pid", "qemu.pid"):
        (place.instance / name).write_text(f"{os.getpid()}\n")
    assert scene.driver.status(spec.name).state == "stopped"


def test_a_data_disk_that_is_gone_is_not_replaced_silently(scene: Scene) -> None:
    spec = scene.spec()
    scene.up(spec)
    scene.driver.stop(spec.name)
    homes.place_of(spec.name).data_disk.unlink()
    assert "data disk is gone" in broken(scene, spec)
    with pytest.raises(VmoatError, match="data disk") as caught:
        scene.driver.start(spec, quiet)
    assert "vmoat destroy" in caught.value.hint


# --- starts that fail


def test_a_first_start_that_failed_half_way(scene: Scene) -> None:
    spec = scene.spec()
    scene.fail("halfway")
    with pytest.raises(VmoatError) as caught:
        scene.up(spec)
    assert caught.value.code == Code.VM
    assert "exit status 1" in caught.value.details[-1], "Colima's own last words"
    assert homes.place_of(spec.name).data_disk.exists()
    scene.up(spec)
    assert scene.driver.status(spec.name).state == "running"


def test_a_first_start_that_failed_leaves_nothing_after_destroy(scene: Scene) -> None:
    spec = scene.spec()
    scene.fail("halfway")
    with pytest.raises(VmoatError):
        scene.up(spec)
    contract.a_removal(scene.subject(spec))


def test_a_refused_image_names_the_cure(scene: Scene) -> None:
    scene.fail("image")
    with pytest.raises(VmoatError) as caught:
        scene.up(scene.spec(start_args=("--disk-image", "/x.qcow2")))
    assert caught.value.code == Code.VM
    assert "hash failure" in caught.value.details[-1]
    assert "--force-disk-image" in caught.value.hint


def test_a_start_that_hangs_ends_in_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "START_SECONDS", 1.0)
    scene.fail("hang")
    spec = scene.spec()
    with pytest.raises(VmoatError) as caught:
        scene.up(spec)
    assert caught.value.code == Code.TIMEOUT


def test_a_start_that_is_cancelled_leaves_nothing_running(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C on `vmoat up` does it: the worker raises what is no Exception."""
    from vmoat.worker import Cancelled

    def say(line: str) -> None:
        if "Waiting for" in line:
            raise Cancelled

    spec = scene.spec()
    scene.fail("hang")
    scene.driver.create(spec, quiet)
    with pytest.raises(Cancelled):
        scene.driver.start(spec, say)
    assert pids.with_mark(homes.place_of(spec.name).home) == []
    assert scene.driver.status(spec.name).reasons == ("its start was interrupted",)
    scene.up(spec)
    assert scene.driver.status(spec.name).state == "running"


def test_a_start_is_followed_while_its_program_replaces_itself(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between sh and colima a busy kernel shows a process without a command line."""
    from vmoat.worker import Cancelled

    facts = pids._facts
    monkeypatch.setattr(pids, "_facts", lambda pid: (facts(pid)[0], b""))

    def say(line: str) -> None:
        if "Waiting for" in line:
            monkeypatch.setattr(pids, "_facts", facts)
            raise Cancelled

    spec = scene.spec()
    scene.fail("hang")
    scene.driver.create(spec, quiet)
    with pytest.raises(Cancelled):
        scene.driver.start(spec, say)
    assert pids.with_mark(homes.place_of(spec.name).home) == []


def test_a_guest_that_does_not_see_the_worktree(scene: Scene) -> None:
    (scene.folder / "no-share").touch()
    with pytest.raises(VmoatError, match="does not see the worktree") as caught:
        scene.up(scene.spec())
    assert (caught.value.code, "9p" in caught.value.hint) == (Code.VM, True)


def test_a_start_whose_worker_was_killed_is_joined(scene: Scene) -> None:
    """`colima start` goes on without the worker; the next one follows it to its end."""
    spec = scene.spec()
    scene.driver.create(spec, quiet)
    code = (
        "import sys, pickle\n"
        "from vmoat.drivers import load\n"
        "from vmoat.drivers.colima import machine\n"
        "from vmoat.drivers.colima.argv import Host\n"
        "from vmoat.drivers.colima import homes\n"
        "homes.LIMIT = 200\n"
        "machine.host = lambda: Host('Linux', 'x86_64', kvm=True, kvm_there=True)\n"
        "load('colima').start(pickle.load(sys.stdin.buffer), lambda line: None)\n"
    )
    import pickle

    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert worker.stdin
    worker.stdin.write(pickle.dumps(spec))
    worker.stdin.close()
    contract_wait(lambda: (record.read(spec.name) or record.Record("")).phase == "starting")
    worker.kill()
    worker.wait()
    assert scene.driver.status(spec.name).state in ("starting", "running", "broken")
    said = []
    scene.driver.start(spec, said.append)
    assert scene.driver.status(spec.name).state == "running"
    assert len([line for line in scene.ran() if line.startswith("colima start")]) == 1


def test_two_first_starts_at_once(scene: Scene) -> None:
    specs = [scene.spec("wt-a"), scene.spec("wt-b")]
    errors: list[BaseException] = []

    def go(spec: VmSpec) -> None:
        try:
            scene.up(spec)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=go, args=(spec,)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [scene.driver.status(spec.name).state for spec in specs] == ["running", "running"]
    assert homes.place_of("wt-a").home != homes.place_of("wt-b").home
    scene.driver.delete("wt-a")
    assert scene.driver.status("wt-b").state == "running", "its network is its own"


# --- sizes


def test_another_size_counts_at_the_next_start(scene: Scene) -> None:
    spec = scene.spec()
    scene.up(spec)
    boot = scene.driver.status(spec.name).boot
    scene.driver.start(replace(spec, cpus=2), quiet)
    assert scene.driver.status(spec.name).boot != boot
    assert "--cpus 2" in scene.ran()[-1]


# --- another VM's images


def test_a_second_vm_begins_with_the_first_ones_data(scene: Scene) -> None:
    first = scene.spec("wt-a")
    scene.up(first)
    homes.place_of("wt-a").data_disk.write_text("images of a\n")
    scene.driver.stop("wt-a")
    second = scene.spec("wt-b")
    said = scene.up(second)
    assert homes.place_of("wt-b").data_disk.read_text() == "images of a\n"
    assert "its images and build cache begin as those of wt-a" in said
    assert scene.guest()[-1] == "clean", "none of its containers and volumes"
    assert "copied=1" in scene.guest()[-2]
    scene.driver.stop("wt-b")
    scene.up(second)
    assert scene.guest()[-2].endswith("copied=''"), "once"


@pytest.mark.parametrize("how", ["runs", "killed", "off", "another repository", "larger"])
def test_a_disk_that_is_not_safe_or_not_ours_is_left(scene: Scene, how: str) -> None:
    first = scene.spec("wt-a", disk_gib=40 if how == "larger" else 20)
    if how == "another repository":
        first = replace(first, common_dir=scene.root / "src" / "other" / ".git")
        first.common_dir.mkdir(parents=True)
    scene.up(first)
    if how == "killed":
        place = homes.place_of("wt-a")
        one = look.machine(place)
        assert one
        os.kill(one.pid, signal.SIGKILL)
        contract_wait(lambda: not look.machine(place))
    if how != "runs":
        scene.driver.stop("wt-a")
    second = scene.spec("wt-b", layers=how != "off")
    assert not [line for line in scene.up(second) if "begin as those" in line]
    assert homes.place_of("wt-b").data_disk.read_text().startswith("empty")


# --- the shell tool's VMs


def shell_tool_vm(scene: Scene, name: str, mount: Path) -> Place:
    place = Place(scene.root / "home" / ".colima", name, adopted=True)
    place.home.mkdir(parents=True)
    words = ["colima", "start", "-p", name, "--cpu", "2", "--mount", f"{mount}:w"]
    env = {**os.environ, "COLIMA_HOME": str(place.home)}
    subprocess.run(words, env=env, check=True, capture_output=True, timeout=60)
    return place


def test_a_vm_of_the_shell_tool_is_taken_over_as_it_is(scene: Scene) -> None:
    spec = scene.spec()
    place = shell_tool_vm(scene, spec.name, scene.root / "src")
    assert homes.user_vms("wt-") == [spec.name]
    found = scene.driver.status(spec.name)
    assert (found.state, found.boot) == ("running", ""), "its boot is not prepared yet"
    before = look.machine(place)
    scene.up(spec)
    assert look.machine(place) == before, "nothing was restarted"
    assert scene.driver.status(spec.name).boot
    assert scene.driver.ssh_endpoint(spec.name).port == look.port(place)
    assert len([line for line in scene.ran() if line.startswith("colima start")]) == 1
    scene.driver.stop(spec.name)
    scene.up(spec)
    assert "--mount" not in scene.ran()[-1]
    subject = scene.subject(spec)
    scene.driver.delete(spec.name)
    assert subject.driver.status(spec.name).state == "absent"
    assert not place.instance.exists()
    assert not place.data_folder.exists()
    assert not place.store.exists()
    assert f"docker context rm --force colima-{spec.name}" in scene.ran()


def test_a_vm_of_that_name_that_shares_another_folder_is_left_alone(scene: Scene) -> None:
    spec = scene.spec()
    shell_tool_vm(scene, spec.name, scene.root / "elsewhere")
    assert scene.driver.status(spec.name).state == "absent"
    scene.up(spec)
    assert homes.place_of(spec.name).home != homes.user_home()


def test_the_users_home_is_where_colima_looks_for_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert homes.user_home() == scene.root / "config" / "colima", "XDG_CONFIG_HOME"
    (scene.root / "home" / ".colima").mkdir(parents=True)
    assert homes.user_home() == scene.root / "home" / ".colima"
    monkeypatch.setenv("COLIMA_HOME", str(scene.root / "no-such"))
    assert homes.user_home() == scene.root / "home" / ".colima", "one that exists counts alone"
    (scene.root / "no-such").mkdir()
    assert homes.user_home() == scene.root / "no-such"


# --- what must be there


@pytest.mark.parametrize(
    ("gone", "cure"), [("colima", "brew install colima"), ("docker", "docker-cli")]
)
def test_a_missing_program_is_named_with_its_cure(
    scene: Scene, gone: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    for name in ("qemu-system-x86_64", "qemu-img", "ssh", "ssh-keyscan"):
        if not (scene.root / "bin" / name).exists():
            shutil.copy(scene.root / "bin" / "docker", scene.root / "bin" / name)
    monkeypatch.setenv("PATH", str(scene.root / "bin"))
    monkeypatch.setattr(checks.proc, "which", lambda name: shutil.which(name))
    checks.check_machine(machine.host())
    (scene.root / "bin" / gone).unlink()
    with pytest.raises(VmoatError, match=gone) as caught:
        checks.check_machine(machine.host())
    assert (caught.value.code, cure in caught.value.hint) == (Code.MISSING, True)


def test_a_colima_that_is_too_old_is_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(checks.proc, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(checks, "lima_version", lambda: (2, 2, 0))
    monkeypatch.setattr(checks, "colima_version", lambda: checks.version_of("colima version 0.8.4"))
    with pytest.raises(VmoatError, match=r"colima 0\.8\.4 is too old: 0\.9\.0") as caught:
        checks.check_machine(machine.host())
    assert caught.value.code == Code.MISSING
    monkeypatch.setattr(checks, "colima_version", lambda: checks.version_of("version development"))
    checks.check_machine(machine.host())  # a build of one's own counts as new


def test_root_is_told_that_lima_does_not_run_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(VmoatError, match="root") as caught:
        checks.check_machine(Host())
    assert caught.value.code == Code.MISSING


def test_a_home_that_is_too_long_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/" + "d" * 60)
    monkeypatch.setenv("HOME", "/home/" + "h" * 60)
    with pytest.raises(VmoatError, match="too long") as caught:
        homes.own_home("0123456789abcdef")
    assert caught.value.code == Code.CONFIG
    monkeypatch.setenv("HOME", "/home/ann")
    assert homes.own_home("0123456789abcdef") == Path("/home/ann/.vmoat/0123456789ab")
    socket = Place(homes.own_home("0123456789abcdef"), homes.PROFILE).instance / "ssh.sock"
    assert len(str(socket)) + 17 < 104
