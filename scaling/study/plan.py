"""What a study will cost, before it runs; and what it needs of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.errors import UserError
from scaling.model import ladder
from scaling.study.declaration import Cell, Placement, Study
from scaling.training.recipe import samples_seen


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """One cell's size and cost. `trial_flops` is one trial's; `device_hours` all its trials', at the assumed speed.

    `steps` and `samples_seen` are of the whole budget; the cost counts the decays of branches too.
    """

    cell: Cell
    num_params: int
    epochs: float
    steps: int
    samples_seen: int
    trial_flops: int
    device_hours: float
    placement: Placement
    held_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All cells of a study and the speed the hours are reckoned with: `tflops` peak of a device, `mfu` of it reached."""

    study: Study
    cells: tuple[CellPlan, ...]
    tflops: float
    mfu: float

    @property
    def num_trials(self) -> int:
        """Trials of all cells."""
        return len(self.cells) * self.study.search.trials

    @property
    def device_hours(self) -> float:
        """Hours of one device for the whole study."""
        return sum(cell.device_hours for cell in self.cells)


def make_plan(study: Study, *, tflops: float, mfu: float) -> Plan:
    """Reckon every cell's parameters, steps, FLOPs and hours.

    Raises:
        UserError: if a speed is not positive.
    """
    if not (tflops > 0 and 0 < mfu <= 1):
        raise UserError(f"--tflops {tflops} --mfu {mfu}: the first must be positive, the second in (0, 1]")
    cells = []
    for cell in study.cells():
        config, recipe = study.model(cell.width), study.recipe
        steps = recipe.budget.steps(cell.num_spectra, recipe.batch_size)
        seen = samples_seen(steps, cell.num_spectra, recipe.batch_size)
        decays = sum(run.total - run.fork for run in recipe.runs(cell.num_spectra)[:-1])
        flops = ladder.train_flops(config, seen + decays * recipe.batch_size)
        cells.append(
            CellPlan(
                cell=cell,
                num_params=ladder.count_parameters(config).reach_loss,
                epochs=seen / cell.num_spectra,
                steps=steps,
                samples_seen=seen,
                trial_flops=flops,
                device_hours=study.search.trials * flops / (tflops * 1e12 * mfu) / 3600,
                placement=study.placement(cell),
                held_out=study.held_out(cell),
            )
        )
    return Plan(study=study, cells=tuple(cells), tflops=tflops, mfu=mfu)


def describe(plan: Plan) -> str:
    """The plan as text: a line for each rung of size, then the totals."""
    study, search = plan.study, plan.study.search
    sizes = ", ".join(f"{n:,}" for n in study.data.num_spectra)
    lines = [
        f"{study.name}: {study.question}",
        f"  {len(study.widths)} model sizes x {len(study.data.num_spectra)} numbers of spectra ({sizes}) x {len(study.seeds)} seeds"
        f" = {len(plan.cells)} cells, {search.trials} learning rates each = {plan.num_trials} trials",
        f"  noise {study.data.rules.noise}, budget in {study.recipe.budget.kind}, {study.recipe.precision}, "
        f"batch {study.recipe.batch_size}",
        "",
        f"  {'rung':>6} {'layers':>6} {'tokens':>6} {'parameters':>11} {'epochs':>17} {'steps':>17} {'FLOPs/trial':>19} "
        f"{'device-hours':>12}  runs on",
    ]
    for width in study.widths:
        mine = [cell for cell in plan.cells if cell.cell.width == width]
        config = study.model(width)
        where = sorted({_where(cell.placement) for cell in mine})
        lines.append(
            f"  {f'w{width}':>6} {config.depth:>6} {config.num_tokens:>6} {mine[0].num_params:>11,} "
            f"{_span([cell.epochs for cell in mine]):>17} {_span([cell.steps for cell in mine]):>17} "
            f"{_span([cell.trial_flops for cell in mine]):>19} {sum(c.device_hours for c in mine):>12,.2f}  {'; '.join(where)}"
        )
    held = sum(cell.held_out for cell in plan.cells)
    total = search.trials * sum(cell.trial_flops for cell in plan.cells)
    lines += [
        "",
        f"  total {total:.3g} FLOPs, {plan.device_hours:,.1f} device-hours at {plan.tflops:g} TFLOP/s x {plan.mfu:.0%} "
        "(an assumption: --tflops, --mfu)",
        f"  {held} of {len(plan.cells)} cells are held out of the fit, to score its forecast",
    ]
    return "\n".join(lines)


def human(number: float) -> str:
    """A count as people say it: 512, 16k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def _where(placement: Placement) -> str:
    device = f"{placement.gpus:g} GPU" if placement.gpus else f"{placement.cpus:g} CPU"
    return f"{placement.workers} x {device} (Ray Train)" if placement.host == "ray_train" else device


def _span(values: list[float] | list[int]) -> str:
    low, high = min(values), max(values)
    form = human if high < 1e12 else lambda value: f"{value:.1e}"
    return form(low) if low == high else f"{form(low)} ... {form(high)}"
