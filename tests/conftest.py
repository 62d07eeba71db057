"""What holds for every test."""

from __future__ import annotations

import signal

# `nohup` and shells without job control start programs with HUP or INT ignored, and every child
# inherits that: tests of these signals would wait for ever.  A handler is not inherited.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
