"""For all tests: a run under `nohup` would hand an ignored SIGHUP down to what it starts."""

from __future__ import annotations

import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)
