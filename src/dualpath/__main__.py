"""``python -m dualpath`` is ``dualpath``."""

import sys

from dualpath.cli.main import main

sys.exit(main())
