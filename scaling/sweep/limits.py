"""All retry limits and timeouts of a sweep."""

ATTEMPTS = 3
"""Attempts of a trial that fail without progress in between, after which its row says failed."""
ALIKE = 4
"""Trials that fail with the same message, with no success in between, after which the sweep stops."""
WORKER_FAILURES = 3
"""Restarts of failed or lost Ray Train workers; the next failure is an error of the trial."""
CHECKS = 3
"""Attempts to check a node before it is set aside, if the check itself is lost."""
BAD_NODES = 3
"""Nodes set aside by trials in a row, with no finished trial in between, after which the sweep stops."""
BEGIN_SECONDS = 180.0
"""Time after which a trial without devices on its assigned node is moved elsewhere: other users have them."""
BUSY_SECONDS = 120.0
"""Time for which such a node is then left alone."""
SETTLE_SECONDS = 5.0
"""Wait for a row that a trial must have written: a network file system may show it late."""
SAY_WAITING_SECONDS = 30.0
"""Time after which the reason for waiting is reported; reported again after ten times as long."""
WAIT_SECONDS = 3600.0
"""Time with nothing running after which a sweep that waits for nodes stops."""
