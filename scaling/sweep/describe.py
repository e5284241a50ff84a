"""A plan as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from scaling.console import duration
from scaling.files import human, size_text
from scaling.study.declaration import Placement
from scaling.sweep.modelled import uses_gpus
from scaling.sweep.plan import Plan, Requirements, Trimmed
from scaling.sweep.trim import DRAWS


def describe(plan: Plan, needs: Requirements | None = None) -> str:
    """The plan as text: a line per rung, then totals and requirements."""
    study, search = plan.study, plan.study.search
    sizes = ", ".join(f"{n:,}" for n in study.data.num_spectra)
    expected, device = plan.sweep.trials.total(), "GPU" if uses_gpus(study) else "CPU"
    lines = [
        f"{study.name}: {study.question}",
        f"  {len(study.widths)} model sizes x {len(study.data.num_spectra)} numbers of spectra ({sizes}), "
        f"seeds {', '.join(map(str, study.seeds))}: {len(plan.cells)} cells",
        f"  trials: at most {plan.num_trials} ({search.trials} learning rates a cell, 1 of further seeds), expected {expected}, "
        "from a simulated search",
        f"  noise {study.data.rules.noise}, budget in {study.recipe.budget.kind}, {study.recipe.precision}, "
        f"batch {study.recipe.batch_size}",
        "",
        f"  {'rung':>6} {'layers':>6} {'tokens':>6} {'parameters':>11} {'epochs':>15} {'steps':>15} {'FLOPs/trial':>17} {'s/step':>8} "
        f"{'h/trial':>13} {'device-hours':>12} {'at most':>8} {'memory':>8}  runs on; speed from",
    ]
    for width in study.widths:
        mine = [cell for cell in plan.cells if cell.cell.width == width]
        config = study.model(width)
        where = sorted({f"{_where(cell.placement)}; {cell.cost.source}" for cell in mine})
        memory = "" if needs is None else size_text(needs.workers[f"w{width}"].total)
        lines.append(
            f"  {f'w{width}':>6} {config.depth:>6} {config.num_tokens:>6} {mine[0].num_params:>11,} "
            f"{_span([cell.epochs for cell in mine]):>15} {_span([cell.steps for cell in mine]):>15} "
            f"{_span([cell.trial_flops for cell in mine]):>17} {_span([cell.cost.step for cell in mine]):>8} "
            f"{_span([cell.cost.seconds / 3600 for cell in mine]):>13} {sum(c.device_hours for c in mine):>12,.3g} "
            f"{sum(c.device_hours / c.trials * c.at_most for c in mine):>8,.3g} {memory:>8}  {' | '.join(where)}"
        )
    held, sweep = sum(cell.held_out for cell in plan.cells), plan.sweep
    total = sum(cell.trials * cell.trial_flops for cell in plan.cells)
    assumed = any(cell.cost.source.startswith("assumed") for cell in plan.cells)
    chain = ", then ".join(cell.key for cell in sweep.chain_cells)
    lines += [
        "",
        f"  total {total:.3g} FLOPs; expected {plan.device_hours:,.3g} device-hours ({device}), at most {plan.most_device_hours:,.3g}"
        + ("; speeds are an assumption (--tflops, --mfu), --measure times them" if assumed else ""),
        f"  on {plan.cluster.describe()}: wall {duration(sweep.wall)}, {device}s in use {sweep.utilisation:.0%}; "
        f"all work over all devices {duration(sweep.work / sweep.devices)}, longest chain {duration(sweep.chain)} ({chain})",
        f"  {held} of {len(plan.cells)} cells are held out of the fit, to score its forecast",
    ]
    if study.baselines:
        each = ", ".join(f"{baseline.family} ({baseline.cpus} CPU)" for baseline in study.baselines)
        lines.append(
            f"  baselines: {each} at each number of spectra, on CPUs that trials leave free; not in these figures"
        )
    return "\n".join(lines + ([] if needs is None else _node_lines(needs)))


def to_json(plan: Plan, needs: Requirements, trimmed: Trimmed | None) -> dict[str, Any]:
    """The plan as plain JSON values."""
    found = {
        "device_hours": plan.device_hours,
        "most_device_hours": plan.most_device_hours,
        "trials": plan.num_trials,
        "expected_trials": plan.sweep.trials.total(),
        "cluster": asdict(plan.cluster),
        "wall_seconds": plan.sweep.wall,
        "utilisation": plan.sweep.utilisation,
        "work_seconds": plan.sweep.work,
        "chain_seconds": plan.sweep.chain,
        "chain": [cell.key for cell in plan.sweep.chain_cells],
        "cells": [asdict(cell) for cell in plan.cells],
        "workers": {rung: asdict(each) | {"total": each.total} for rung, each in needs.workers.items()},
        "node": asdict(needs.node),
        "problems": needs.problems,
    }
    if trimmed is None:
        return found
    study = trimmed.plan.study
    budget = {
        "device_hours": trimmed.plan.device_hours,
        "wall_seconds": trimmed.plan.sweep.wall,
        "widths": study.widths,
    }
    budget |= {"num_spectra": study.data.num_spectra, "full": asdict(trimmed.full), "trimmed": asdict(trimmed.trimmed)}
    return found | {"budget": {"hours": trimmed.budget, **budget, "expected_law": asdict(study.expected)}}


def _node_lines(needs: Requirements) -> list[str]:
    node = needs.node
    ways = ", ".join(f"{human(number)} {way}" for number, way in node.access.items())
    ways = ways if len(set(node.access.values())) > 1 else next(iter(node.access.values()))
    lines = [
        f"  a node: {size_text(node.maps)} of disk for memory maps, best in its page cache too; {size_text(node.memory)} of memory for "
        f"{node.trials} trials side by side (estimated)",
        f"  read from the shards: about {size_text(node.filled)} once a node"
        + (f", {size_text(node.streamed)} by each streamed trial" if node.streamed else "")
        + f"; access: {ways}",
    ]
    return lines + [f"  CANNOT FIT: {problem}" for problem in needs.problems]


def describe_trimmed(full: Plan, found: Trimmed) -> str:
    """The trimmed grid, and its effect on the forecast."""
    study, law = found.plan.study, full.study.expected
    gone = [f"w{width}" for width in full.study.widths if width not in study.widths]
    gone += [f"D = {size:,}" for size in full.study.data.num_spectra if size not in study.data.num_spectra]
    return "\n".join(
        [
            f"  --budget {found.budget:g}: " + (f"drop {', '.join(gone)} (the dearest)" if gone else "all rungs fit"),
            f"    leaves widths {', '.join(map(str, study.widths))} and D {', '.join(f'{size:,}' for size in study.data.num_spectra)}: "
            f"expected {found.plan.device_hours:,.3g} device-hours, wall {duration(found.plan.sweep.wall)}",
            f"    forecast at w{full.study.widths[-1]}, D = {full.study.data.num_spectra[-1]:,}, 90 % interval: {found.full.describe()} "
            f"from the full grid; {found.trimmed.describe()} from this one",
            f"    (the median of {DRAWS} studies simulated from Study.expected: {law.describe()})",
        ]
    )


def _where(placement: Placement) -> str:
    return placement.describe() + (" (Ray Train)" if placement.host == "ray_train" else "")


def _span(values: list[float] | list[int]) -> str:
    low, high = min(values), max(values)
    form = human if high < 1e12 else lambda value: f"{value:.1e}"
    return form(low) if form(low) == form(high) else f"{form(low)} ... {form(high)}"
