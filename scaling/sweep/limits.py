"""How often what fails is tried again: each count is of one kind of failure, and stands only here."""

TRIAL_FAILURES = 2
"""Errors of a trial's process after which Tune starts it again from its last state; the next one ends the trial."""
WORKER_FAILURES = 3
"""Losses or errors of Ray Train's workers after which it starts them again; the next one is an error of the trial."""
LOST = 2
"""How often a trial whose processes ended without a row or an error is handed out again."""
CHECKS = 3
"""Attempts to check a node whose check is lost before the node is set aside."""
BAD_NODES = 3
"""Nodes that trials had set aside, one after the other without a finished trial between, that stop the sweep."""
