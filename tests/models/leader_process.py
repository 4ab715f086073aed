"""A leader that a test kills: prints its follower's process id, then waits."""

from __future__ import annotations

import sys
import time

from dualpath.models.parallel.leader import start_leader

if __name__ == "__main__":
    together = start_leader(sys.argv[1], 2, dtype="float32", fingerprint="00")
    print(together._followers[0].pid, flush=True)
    time.sleep(600)
