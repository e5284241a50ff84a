"""What ends a run of Ray Train at once, and what gives its devices back if its workers cannot start.

Ray is imported only when a guard is made: see `scaling.sweep.cluster`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from scaling.errors import NodeError, UserError


def stop_at_mistakes() -> Any:
    """A Ray Train callback that ends a run, on all its workers, at a worker's `UserError`.

    Ray Train starts the workers again whatever one of them raised; only what a callback raises ends a run at once.
    """
    from ray.train import UserCallback

    class StopAtMistakes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, UserError):
                    raise error

    return StopAtMistakes()


def free_failed_starts(max_failures: int) -> Any:
    """A Ray Train callback that removes the placement group of workers that could not start, and says what failed.

    Ray Train (2.60) forgets the group if an error comes after the workers' creation, as when PyTorch has no NCCL: until
    the job ends their GPUs stay reserved, and whatever waits for them waits. It also tries without end to start workers
    that die while they start.

    Args:
        max_failures: How often workers that died while they started are started again.
    """
    import ray
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.util import get_current_placement_group, remove_placement_group

    class FreeFailedStarts(WorkerGroupCallback):
        """Runs in the controller; its hooks are called for each start of the workers."""

        def __init__(self) -> None:
            self.workers: list[Any] = []
            self.group, self.died = None, 0

        def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
            """The workers are there, and nothing was run on them."""
            self.workers, self.group = workers, ray.get(workers[0].execute_async(get_current_placement_group))
            return {}

        @contextlib.contextmanager
        def on_worker_group_start(self) -> Iterator[None]:
            """Around the whole start."""
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
            """The error in one line, with the node of the worker that raised it where that is known."""
            cause = getattr(error, "cause", None) or error.__cause__ or error
            found = NodeError(f"the workers cannot start: {str(cause).strip().splitlines()[0]}")
            workers = (worker.metadata for worker in self.workers)  # Ray names the process in the text only
            raised = (each.node_id for each in workers if f"pid={each.pid}, ip={each.node_ip}" in str(error))
            found.node = next(raised, "")
            return found

    return FreeFailedStarts()
