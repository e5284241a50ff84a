"""Callbacks that end a Ray Train run at once on user errors, and free its devices if its workers cannot start.

Ray is imported only when a guard is created: see `scaling.sweep.cluster`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from scaling.errors import NodeError, UserError


def stop_at_mistakes() -> Any:
    """A Ray Train callback that ends a run, on all its workers, when a worker raises a `UserError`.

    Ray Train restarts the workers after any of their exceptions; only an exception from a callback ends a run at once.
    """
    from ray.train import UserCallback

    class StopAtMistakes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, UserError):
                    raise error

    return StopAtMistakes()


def free_failed_starts(max_failures: int) -> Any:
    """A Ray Train callback that removes the placement group of workers that could not start, and reports the error.

    Ray Train (2.60) loses track of the group if an error occurs after the workers' creation, such as PyTorch without NCCL:
    their GPUs stay reserved until the job ends and block everything that waits for them. It also retries forever if workers
    die while they start.

    Args:
        max_failures: Number of restarts of workers that died while starting.
    """
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.util import get_current_placement_group, remove_placement_group

    class FreeFailedStarts(WorkerGroupCallback):
        """Runs in the controller; its hooks are called on each start of the workers."""

        def __init__(self) -> None:
            self.workers: list[Any] = []
            self.group, self.died = None, 0

        def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
            """Called once the workers exist, before anything runs on them."""
            self.workers, self.group = workers, ray.get(workers[0].execute_async(get_current_placement_group))
            return {}

        @contextlib.contextmanager
        def on_worker_group_start(self) -> Iterator[None]:
            """Wraps the whole start."""
            self.workers, self.group = [], None
            try:
                yield
            except Exception as error:
                if self.group is not None:
                    remove_placement_group(self.group)
                died = isinstance(error.__cause__ or error, ray.exceptions.RayActorError)
                self.died += died
                if isinstance(error, ray.exceptions.RayTaskError) or (died and self.died > max_failures):
                    raise self.node_error(error) from error
                raise

        def node_error(self, error: Exception) -> NodeError:
            """The error in one line, with the node of the worker that raised it if known."""
            cause = getattr(error, "cause", None) or error.__cause__ or error
            found = NodeError(f"the workers cannot start: {str(cause).strip().splitlines()[0]}")
            workers = (worker.metadata for worker in self.workers)  # Ray names the process only in the text
            raised = (each.node_id for each in workers if f"pid={each.pid}, ip={each.node_ip}" in str(error))
            found.node = next(raised, "")
            return found

    return FreeFailedStarts()
