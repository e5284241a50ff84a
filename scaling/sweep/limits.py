"""How often what fails is tried again, and how long what is late is waited for: each stands only here."""

ATTEMPTS = 3
"""Errors or losses of a trial without progress between them after which it gets a row that says failed."""
ALIKE = 4
"""Trials that fail with the same words, and none that succeeds between them, after which the sweep stops."""
WORKER_FAILURES = 3
"""Losses or errors of Ray Train's workers after which it starts them again; the next one is an error of the trial."""
CHECKS = 3
"""Attempts to check a node whose check is lost before the node is set aside."""
BAD_NODES = 3
"""Nodes that trials had set aside, one after the other without a finished trial between, that stop the sweep."""
BEGIN_SECONDS = 180.0
"""A trial that was given a node and has no devices there after this is handed out elsewhere: other users have them."""
BUSY_SECONDS = 120.0
"""How long such a node is then left alone."""
SETTLE_SECONDS = 5.0
"""How long a row is waited for that a trial must have left: a network file system may show it late."""
SAY_WAITING_SECONDS = 30.0
"""After this it is said what is waited for, and again at ten times as much."""
WAIT_SECONDS = 3600.0
"""A sweep of which nothing runs or fits stops after this."""
