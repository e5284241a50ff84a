"""One warm-up-stable-decay run with branches against separate cosine runs: savings, and difference in errors.

    python -m benchmarks.branches [--store results] [--seeds 3] [--json OUT]

On cells of the demo, with its recipe, data and learning rates: cosine runs of a quarter, a half and the whole of its budget, and one
"wsd" run with branches at these. As in the demo, each method and budget selects the better of two learning rates by its own
validation error. Differences are of test MAE, paired by cell and seed. The demo's spectra are created in the store if missing.

Measured on two cores (widths 8 and 16 on 1,024 and 8,192 spectra, three seeds, so 12 pairs; 4 minutes): the branched run saves 34 % of
the steps. It saved 19 % of the seconds on a machine that was busy meanwhile, 25 to 43 % in four repeats of single cells. Its
MAE relative to separate cosine runs: -6.2 ± 1.1 % at a quarter of the budget (0.230 dex), -4.8 ± 1.2 % at a half (0.195),
-1.9 ± 1.3 % at the whole (0.173). These models are small and trained on 82k samples, at learning rates near the largest the
demo allows: longer runs may differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.small_demo import STUDY
from scaling.study.declaration import Cell
from scaling.study.prepare import is_prepared, prepare_data, shards_path
from scaling.study.store import Store
from scaling.sweep.cluster import ray_cluster
from scaling.training.loop import train
from scaling.training.recipe import Budget, Recipe
from scaling.training.task import Context, Outcome, Task

SHARES = (0.25, 0.5, 1.0)
WIDTHS, SPECTRA = (8, 16), (1024, 8192)
WSD = dataclasses.replace(STUDY.recipe, schedule="wsd", branches=SHARES[:-1])


def cosine(share: float) -> Recipe:
    """The demo's recipe with a fraction of its budget."""
    assert STUDY.recipe.budget.samples is not None
    return dataclasses.replace(STUDY.recipe, budget=Budget(samples=round(share * STUDY.recipe.budget.samples)))


def run(shards: Path, cache: Path, cell: Cell, recipe: Recipe, lr: float) -> list[Outcome]:
    """Train once and return the outcome of every budget, shortest first."""
    task = Task(
        shards=shards,
        cache_root=cache,
        rules=STUDY.data.rules,
        num_spectra=cell.num_spectra,
        model=STUDY.model(cell.width),
        recipe=recipe,
        lr=lr,
        seed=cell.seed,
    )
    branches: list[Outcome] = []
    context = Context(
        rank=0,
        world=1,
        device=torch.device("cpu"),
        report=lambda metrics, state: None,
        load=lambda: None,
        branch=branches.append,
    )
    last = train(task, context)
    return [*branches, last]


@dataclasses.dataclass(frozen=True)
class Result:
    """One method's results in a cell: the selected test MAE of each share, and the cost of all its runs."""

    mae: tuple[float, ...]
    steps: int
    seconds: float


def best(tried: list[list[Outcome]], steps: int) -> Result:
    """Select the better learning rate of each share. `tried`: the outcomes of each learning rate, by share."""
    chosen = [min(pair, key=lambda outcome: outcome.val.mae) for pair in zip(*tried, strict=True)]
    seconds = sum(outcome.added_seconds for outcomes in tried for outcome in outcomes)
    return Result(mae=tuple(outcome.test.mae for outcome in chosen), steps=steps * len(tried), seconds=seconds)


def compare(shards: Path, cache: Path, seeds: int) -> Iterator[tuple[Cell, Result, Result]]:
    """Both methods in every cell."""
    for width in WIDTHS:
        for num_spectra in SPECTRA:
            for seed in range(1, seeds + 1):
                cell = Cell(width=width, num_spectra=num_spectra, seed=seed)
                rates = [STUDY.search.centre(width) * factor for factor in (1.0, 2.0)]
                separate = [[run(shards, cache, cell, cosine(s), lr)[0] for s in SHARES] for lr in rates]
                branched = [run(shards, cache, cell, WSD, lr) for lr in rates]
                alone = sum(cosine(share).runs(num_spectra)[0].total for share in SHARES)
                runs = WSD.runs(num_spectra)
                shared = sum(schedule.fork for schedule in runs[:-1])
                yield cell, best(separate, alone), best(branched, sum(each.total for each in runs) - shared)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def main() -> None:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="results", help="with the demo's spectra, or where they are made")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(options.store)
    if not is_prepared(STUDY, store):
        with ray_cluster(None):
            prepare_data(STUDY, store, print)
    found = []
    with tempfile.TemporaryDirectory(prefix="branches-") as cache:
        for cell, separate, branched in compare(shards_path(STUDY, store), Path(cache), options.seeds):
            found.append((cell, separate, branched))
            errors = ", ".join(f"{a:.4f} / {b:.4f}" for a, b in zip(separate.mae, branched.mae, strict=True))
            print(f"{cell.key}: test MAE, cosine / wsd, at {SHARES} of the budget: {errors}", flush=True)
    steps, seconds = (
        1 - sum(getattr(b, name) for _, _, b in found) / sum(getattr(a, name) for _, a, _ in found)
        for name in ("steps", "seconds")
    )
    print(f"saved: {100 * steps:.0f} % of the steps, {100 * seconds:.0f} % of the seconds")
    document: dict[str, object] = {"saved_steps": steps, "saved_seconds": seconds, "shares": {}}
    for place, share in enumerate(SHARES):
        alone = np.array([a.mae[place] for _, a, _ in found])
        difference = np.array([b.mae[place] for _, _, b in found]) - alone
        (dex, sem), (part, part_sem) = mean_and_error(difference), mean_and_error(difference / alone)
        print(
            f"{share:4g} of the budget: cosine {alone.mean():.4f} dex; wsd {1000 * dex:+.1f} ± {1000 * sem:.1f} mdex, "
            f"{100 * part:+.1f} ± {100 * part_sem:.1f} % ({len(found)} pairs)"
        )
        document["shares"] |= {str(share): {"cosine": alone.tolist(), "difference": difference.tolist()}}  # type: ignore[operator]
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
