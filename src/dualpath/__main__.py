"""``python -m dualpath`` is ``dualpath``."""

import sys

from dualpath.launch.cli import main

sys.exit(main())
