"""`python -m training`; see `python -m training --help`."""

import os
import signal
import sys

from training.cli import main

if __name__ == "__main__":
    # Before torch is loaded, which reads it then: threads that wait for one another sleep instead of spinning. Beside
    # other work on the same two cores an epoch of MovieLens took 11 s so, and 104 s without.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A stop by systemd, cron's timeout or docker cleans up as Ctrl-C does. Not of torchrun's processes: one that waits for
    # another cannot be interrupted, and torchrun would wait for it.
    if "WORLD_SIZE" not in os.environ:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
