"""``python -m vmoat``."""

import sys

from vmoat.cli import main

sys.exit(main())
