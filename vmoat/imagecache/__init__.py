"""A pull-through cache of container images on the host, shared by all VMs.

A small forward proxy of our own, because none of the kept ones fits: Docker's ``registry-mirrors``
serves Docker Hub alone; CNCF Distribution's proxy mode serves one upstream a process, refuses
pushes, and logs in with fixed credentials instead of the user's; squid does not store answers to
requests that carry Authorization, which every pull from Docker Hub does; mitmproxy needs an open
TCP port and a tree of dependencies.  What is needed is narrow, and content has its digest as its
name, so a wrong answer cannot be stored.

``dockerd`` in the VM, and nothing else there, has it as its HTTPS_PROXY, through an ssh forward to
a Unix socket.  One server a VM; all share one store.

- ``protocol``: paths, ranges, manifests; pure.
- ``walls``: where a VM may not be taken; the rules of ``netguard``.
- ``upstream``: connections to the registries, through the host's own proxies where it has any.
- ``store``: blobs by digest, what a tag led to, which hosts are registries.
- ``authority``: the certificates that end dockerd's TLS here.
- ``registries``: which hosts are registries.  TLS of all others goes through untouched, so that
  git, `ADD https://…` and token servers are spoken to end to end.
- ``server``: the proxy.

What follows for users: blobs and manifests in the store are served to each VM of this user that
names their digest, without asking the registry whether it may.  Tags and everything else are the
registry's to answer; only where it is away does a remembered tag count.  Tokens and passwords pass
through and are neither kept nor logged.
"""

from __future__ import annotations

from vmoat.imagecache.authority import Authority, usable_authority
from vmoat.imagecache.server import ImageCache, Server
from vmoat.imagecache.walls import HOST_NAME
from vmoat.netports import CACHE_PORT as GUEST_PORT

__all__ = ["GUEST_PORT", "HOST_NAME", "Authority", "ImageCache", "Server", "usable_authority"]
