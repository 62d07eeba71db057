"""What holds for every test."""

from __future__ import annotations

import signal

# A shell without job control starts what it puts in the background with SIGINT ignored, and every
# child inherits that: the tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
