"""The certificates that end dockerd's TLS at the cache.

One authority a user, made once; its key never leaves the host, and nothing trusts it but the
dockerd of this user's VMs.  Made by ``openssl ca``, the one of its commands that can date a
certificate back in every version: a guest's clock may be behind, after the host slept by hours.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import ssl
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from vmoat import paths, proc
from vmoat.errors import Code, VmoatError

_CONTEXTS = 256  # hosts whose certificates are kept in memory
_SINCE, _UNTIL = "20200101000000Z", "20491231235959Z"

_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = vmoat image cache
[ca]
default_ca = here
[here]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = policy
unique_subject = no
[policy]
commonName = supplied
[authority]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
"""

_LEAF = """\
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {name}
"""

_KEY = ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


class Authority:
    """The authority in a folder (0700) of its own; threads and processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contexts: OrderedDict[str, ssl.SSLContext] = OrderedDict()
        self._lock = threading.Lock()

    def certificate(self) -> str:
        """Its certificate (PEM), made at the first call.

        Raises MISSING where there is no ``openssl`` or the folder cannot be written.
        """
        place = self.folder / "ca.crt"
        if not place.exists():
            self._make()
        return place.read_text()

    def context(self, host: str) -> ssl.SSLContext:
        """TLS as this host's server; raises what ``certificate`` does."""
        with self._lock:
            if host in self._contexts:
                self._contexts.move_to_end(host)
                return self._contexts[host]
        self.certificate()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            self._sign(Path(folder), host)
            context.load_cert_chain(Path(folder) / "leaf.crt", self.folder / "leaf.key")
        with self._lock:
            self._contexts[host] = context
            while len(self._contexts) > _CONTEXTS:
                self._contexts.popitem(last=False)
        return context

    def _make(self) -> None:
        """Make everything beside its place, then put it there; the first to do so wins."""
        paths.make_private(self.folder.parent)
        work = Path(tempfile.mkdtemp(prefix=self.folder.name + ".", dir=self.folder.parent))
        try:
            for name in ("ca", "leaf"):
                _secret(work / f"{name}.key", _openssl(work, *_KEY))
                _prepare(work, "")
                csr = _openssl(work, "req", "-new", "-config", "config", "-key", f"{name}.key")
                (work / f"{name}.csr").write_text(csr)
            _ca(work, "authority", "-selfsign", "-in", "ca.csr", "-keyfile", "ca.key",
                "-out", "ca.crt")  # fmt: skip
            for name in ("ca.csr", "config", "index.txt"):
                (work / name).unlink()
            with contextlib.suppress(OSError):
                os.rename(work, self.folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _sign(self, work: Path, host: str) -> None:
        try:
            name = f"IP:{ipaddress.ip_address(host)}"
        except ValueError:
            name = f"DNS:{host}"
        _prepare(work, _LEAF.format(name=name))
        mine = self.folder
        _ca(work, "leaf", "-in", mine / "leaf.csr", "-keyfile", mine / "ca.key",
            "-cert", mine / "ca.crt", "-out", "leaf.crt")  # fmt: skip


def _prepare(work: Path, more: str) -> None:
    """What ``openssl ca`` wants to find in its folder."""
    (work / "config").write_text(_CONFIG + more)
    (work / "index.txt").write_text("")


def _ca(work: Path, extensions: str, *words: str | Path) -> None:
    options = ("-batch", "-notext", "-config", "config", "-extensions", extensions)
    dates = ("-startdate", _SINCE, "-enddate", _UNTIL)
    _openssl(work, "ca", *options, *dates, *words)


def _openssl(work: Path, *words: str | Path) -> str:
    argv = ["openssl", *words]
    return proc.run(argv, cwd=work, timeout=60, code=Code.MISSING).out


def usable_authority() -> Authority | None:
    """The authority of this user, made if need be; None where this machine cannot make it.

    Without ``openssl`` (`vmoat doctor` tells) dockerd pulls by itself.
    """
    found = Authority(paths.cache_authority_dir())
    try:
        found.certificate()
    except VmoatError:
        return None
    return found


def _secret(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
