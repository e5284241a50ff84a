"""Does the demo's forecast hold because the study is good, or by luck? The demo again, on other simulated spectra.

    python -m benchmarks.demo_redraws --redraws 10 --store DIR [--out benchmarks/demo_redraws.md]

A redraw has other stars and other noise (another seed of the simulation) and no baselines, and is otherwise the demo, run and
scored by `scaling run`'s own code; a repeated command resumes. Targets over all: at least 85 % of the held-out runs inside their
90 % interval, no redraw judged failed (less than half inside), a mean miss of at most 5 %. The demo's own seed, 0, is excluded.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

from experiments.demo import STUDY as DEMO
from scaling.data.batches.cache import default_cache_root
from scaling.results import Row
from scaling.study.declaration import Simulation
from scaling.study.store import Store
from scaling.sweep.run import run_study

COLUMNS = (
    "simulation's seed",
    "trials",
    "test MAE, worst to best cell (dex)",
    "neighbouring cells that do not improve",
    "held-out runs inside",
    "mean miss",
    "form",
    "minutes",
)


@dataclasses.dataclass(frozen=True)
class Redraw:
    """The demo's outcome on one simulation; `steps` counts pairs of adjacent cells, `rises` those not improving."""

    seed: int
    trials: int
    worst: float
    best: float
    steps: int
    rises: int
    held: int
    inside: int
    miss: float
    form: str
    minutes: float

    @property
    def failed(self) -> bool:
        """Whether the report states that the forecast failed."""
        return self.inside < self.held / 2

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        inside = f"{self.inside} of {self.held}" + (" **failed**" if self.failed else "")
        return (
            str(self.seed),
            str(self.trials),
            f"{self.worst:.3f} to {self.best:.3f}",
            f"{self.rises} of {self.steps}",
            inside,
            f"{100 * self.miss:.1f} %",
            self.form,
            f"{self.minutes:.1f}",
        )


def redraw(seed: int, root: Path) -> Redraw:
    """Run the demo on spectra simulated with this seed, and read its score from the report."""
    source = DEMO.data.source
    assert isinstance(source, Simulation)
    data = dataclasses.replace(DEMO.data, source=dataclasses.replace(source, seed=seed))
    study, store = dataclasses.replace(DEMO, data=data, baselines=()), Store(str(root / f"seed-{seed}"))
    began = time.monotonic()
    rows = run_study(study, store.uri, address=None, cache=default_cache_root(), retry=False, say=print)
    minutes = (time.monotonic() - began) / 60
    fit = json.loads(store.read(f"{study.name}/report/fit.json") or b"")
    errors = best_errors(rows)
    steps = neighbours(errors)
    return Redraw(
        seed=seed,
        trials=len(rows),
        worst=max(errors.values()),
        best=min(errors.values()),
        steps=len(steps),
        rises=sum(larger >= smaller for smaller, larger in steps),
        held=fit["held_out"]["excluded"],
        inside=fit["held_out"]["inside"],
        miss=fit["held_out"]["mean_abs_log_error"],
        form=fit["form"],
        minutes=minutes,
    )


def best_errors(rows: list[Row]) -> dict[tuple[int, int], float]:
    """Test error by N and D: of the trial with the best validation error, averaged over seeds."""
    by_cell = lambda row: (row.num_params, row.num_spectra)  # noqa: E731
    found = {}
    for cell, mine in itertools.groupby(sorted((r for r in rows if r.status == "done"), key=by_cell), by_cell):
        seeds: dict[int, Row] = {}
        for row in mine:
            if row.seed not in seeds or row.val_error < seeds[row.seed].val_error:
                seeds[row.seed] = row
        found[cell] = sum(row.test_error for row in seeds.values()) / len(seeds)
    return found


def neighbours(errors: dict[tuple[int, int], float]) -> list[tuple[float, float]]:
    """Pairs of errors of each cell and the next larger one, along N and along D."""
    pairs = list[tuple[float, float]]()
    for axis in (0, 1):
        key = lambda cell, axis=axis: (cell[1 - axis], cell[axis])  # noqa: E731
        for a, b in itertools.pairwise(sorted(errors, key=key)):
            if a[1 - axis] == b[1 - axis]:
                pairs.append((errors[a], errors[b]))
    return pairs


def table(redraws: list[Redraw]) -> str:
    """The outcomes as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(each.cells() for each in redraws)]
    inside, held = sum(each.inside for each in redraws), sum(each.held for each in redraws)
    miss = sum(each.miss * each.held for each in redraws) / held
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + f"\n\nOver all {len(redraws)}: {inside} of {held} held-out runs inside their 90 % interval ({100 * inside / held:.0f} %), "
        f"mean miss {100 * miss:.1f} %, {sum(each.failed for each in redraws)} judged failed.\n"
    )


def main() -> None:
    """Run the redraws, one after another, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraws", type=int, default=10)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    for seed in range(1, options.redraws + 1):
        found.append(redraw(seed, options.store))
        text = table(found)
        print(text, flush=True)
        if options.out is not None:
            command = f"python -m benchmarks.demo_redraws --redraws {options.redraws}"
            options.out.write_text(f"# The demo on other spectra\n\n`{command}`\n\n{text}")


if __name__ == "__main__":
    main()
