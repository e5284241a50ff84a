"""Numerical checks of a device against a CPU: precision, compilation, resumption, determinism, synchronisation."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from statistics import fmean

import torch

from scaling.check.bench import Bench, losses
from scaling.check.findings import Finding, within
from scaling.training.device import be_deterministic
from scaling.training.evaluate import autocast
from scaling.training.recipe import Compiled, Precision

STEPS, LAST = 50, 10
"""Length of a loss curve, and of its end, which is compared."""
LEARNS = 0.9
"""The loss must fall at least to this fraction, otherwise the curve shows nothing."""
GRADIENT_BOUNDS = {"fp32": 1e-3, "tf32": 0.02, "bf16": 0.1, "fp16": 0.02}
CURVE_BOUNDS = {"tf32": 0.05, "bf16": 0.1, "fp16": 0.05}
SAME = 1e-3
"""Tolerance for losses of the same steps in fp32, since kernels add in another order."""


def versions(bench: Bench) -> Finding:
    """Versions of PyTorch, CUDA and driver, and whether PyTorch has kernels for the device."""
    if bench.device.type == "cpu":
        features = torch.backends.cpu.get_cpu_capability()
        return Finding(check="versions", verdict="ok", found=f"torch {torch.__version__}, kernels for {features}")
    major, minor = torch.cuda.get_device_capability(bench.device)
    built = torch.cuda.get_arch_list()
    suited = [
        arch
        for arch in built
        if arch.startswith(("sm_", "compute_")) and int(arch.split("_")[1].rstrip("af")) // 10 == major
    ]
    found = (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, driver {_driver()}, compute capability {major}.{minor}"
    )
    return Finding(
        check="versions",
        verdict="ok" if suited else "differs",
        found=found + ("" if suited else f"; kernels for {', '.join(built)} only"),
        remedy="" if suited else "install a torch that is built for this device, or leave it out of the cluster",
    )


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown (no nvidia-smi)"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    return done.stdout.split("\n")[0].strip() or "unknown"


def products(bench: Bench) -> Finding:
    """A product of integer matrices in fp32, which is exact for any order of summation."""
    autocast(bench.device, "fp32")
    left, right = (torch.randint(-8, 9, (512, 512), generator=torch.Generator().manual_seed(n)).float() for n in (1, 2))
    wrong = int(((left.to(bench.device) @ right.to(bench.device)).cpu() != left @ right).sum())
    return Finding(
        check="matrix product",
        verdict="failed" if wrong else "ok",
        found=f"{wrong} of {512**2} elements wrong" if wrong else "exact",
        remedy="take the device out of the cluster: its memory or its arithmetic is damaged" if wrong else "",
    )


def gradients(bench: Bench) -> Finding:
    """Forward and backward pass of each rung in each precision, compared with fp32 on a CPU."""
    worst: dict[str, float] = dict.fromkeys(bench.precisions, 0.0)
    for width in bench.widths:
        expected = _gradient(bench, width, "fp32", torch.device("cpu"))
        for precision in bench.precisions:
            error = (_gradient(bench, width, precision, bench.device) - expected).norm() / expected.norm()
            worst[precision] = max(worst[precision], float(error.nan_to_num(math.inf)))
    remedy = "train in the precisions that agree; if fp32 differs, do not use the device"
    return within("gradients", worst, GRADIENT_BOUNDS, "relative difference from a CPU's in fp32", remedy)


def _gradient(bench: Bench, width: int, precision: Precision, device: torch.device) -> torch.Tensor:
    stepper = bench.stepper(width, precision, device=device)
    flux, labels = stepper.batches.batch(0)
    with autocast(device, precision):
        predicted = stepper.model(flux)
    stepper.scaler.scale((predicted.float() - labels).square().mean()).backward()
    flat = torch.cat([p.grad.flatten().cpu().double() for p in stepper.parameters if p.grad is not None])
    return flat / stepper.scaler.get_scale()


def curves(bench: Bench) -> Finding:
    """Final loss after some training steps in each precision, compared with fp32."""
    ends, full = dict[str, float](), math.nan
    for precision in bench.precisions:
        curve = losses(bench.stepper(bench.middle, precision), range(STEPS))
        end = fmean(curve[-LAST:])
        if precision == "fp32":
            full, first = end, fmean(curve[:3])
        else:
            ends[precision] = abs(end / full - 1) if math.isfinite(end) else math.inf
    if not full < LEARNS * first:
        found = f"w{bench.middle} learns nothing in {STEPS} steps of fp32: {first:.3g}, then {full:.3g}"
        return Finding(check="loss curves", verdict="differs", found=found, remedy="look at the other findings")
    what = f"{STEPS} steps of w{bench.middle}, {first:.2g} to {full:.2g} in fp32; relative difference of the end"
    return within("loss curves", ends, CURVE_BOUNDS, what, "train in the precisions that agree")


def resumes(bench: Bench) -> Finding:
    """Training resumed from a saved state, compared with uninterrupted training."""
    whole = bench.stepper(bench.middle)
    expected = losses(whole, range(10))
    before = bench.stepper(bench.middle)
    losses(before, range(5))
    saved = io.BytesIO()
    torch.save(before.state(), saved)
    saved.seek(0)
    after = bench.stepper(bench.middle)
    after.restore(torch.load(saved, map_location="cpu", weights_only=True))
    error = difference(losses(after, range(5, 10)), expected[5:])
    exact = bench.device.type == "cpu"
    what = "bit for bit on a CPU" if exact else "losses, relative difference"
    return within(
        "resumed", {"fp32": error}, {"fp32": 0.0 if exact else SAME}, what, "report it: results would depend on chance"
    )


def repeats(bench: Bench) -> Finding:
    """The same steps twice with deterministic kernels; the results must be identical."""
    be_deterministic(True)
    try:
        first, second = (losses(bench.stepper(bench.middle), range(10)) for _ in range(2))
    finally:
        be_deterministic(False)
    what, remedy = "losses of deterministic kernels, relative difference", "leave Placement.deterministic out"
    return within("repeated", {"fp32": difference(second, first)}, {"fp32": 0.0}, what, remedy)


def waits(bench: Bench) -> Finding | None:
    """Whether a step runs without synchronising with the GPU, in each precision. Not applicable to a CPU."""
    if bench.device.type == "cpu":
        return None
    bad = []
    for precision in bench.precisions:
        stepper = bench.stepper(bench.middle, precision)
        (run,) = stepper.recipe.runs(10**6)
        stepper.step(0, run)  # the first step creates the optimiser's state
        try:
            with waiting_refused():
                stepper.step(1, run)
        except RuntimeError as error:
            bad.append(f"{precision} ({str(error).splitlines()[0]})")
    return Finding(
        check="no waiting",
        verdict="differs" if bad else "ok",
        found=f"a step waits for the GPU in {', '.join(bad)}"
        if bad
        else "a step's kernels are launched ahead of the GPU",
        remedy="report it with the version of torch: training is slower than it need be, not wrong" if bad else "",
    )


@contextlib.contextmanager
def waiting_refused() -> Iterator[None]:
    """Within the block, GPU synchronisation raises a RuntimeError, as far as PyTorch detects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that detection is incomplete
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def compiled(bench: Bench) -> Finding:
    """`torch.compile` compared with eager PyTorch, on a GPU also with CUDA graphs."""
    modes: dict[str, Compiled] = {"compiled=True": True}
    if bench.device.type == "cuda":
        modes["compiled='reduce-overhead'"] = "reduce-overhead"
    expected = losses(bench.stepper(bench.middle), range(5))
    found = {
        name: difference(losses(bench.stepper(bench.middle, compiled=mode), range(5)), expected)
        for name, mode in modes.items()
    }
    what, remedy = "losses, relative difference from plain PyTorch's", "leave Placement.compiled out"
    return within("compiled", found, dict.fromkeys(modes, SAME), what, remedy)


def difference(found: list[float], expected: list[float]) -> float:
    """The largest relative difference; infinite if a value is not finite."""
    worst = max(abs(one / other - 1) for one, other in zip(found, expected, strict=True))
    return worst if math.isfinite(sum(found)) else math.inf
