"""The validation and test spectra with their noise, identical for all trials of a study."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scaling.data.batches.cache import MappedSplit, map_split
from scaling.data.batches.noise import add_noise_
from scaling.data.batches.rules import READ_ROWS, DataRules, Standardisation, read_labels
from scaling.data.batches.worker import Worker
from scaling.data.seeds import stable_seed
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, row_groups
from scaling.data.spectra import ROW_ID
from scaling.errors import UserError
from scaling.files import Location

EVALUATION_SHARE = 0.1
"""Share of a trial's GPU memory that an evaluation split may occupy; a larger split is copied in batches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationSplit:
    """A worker's share of a noisy split: every `world`-th row from row `rank`.

    Attributes:
        flux: The first draw, standardised; on the device, or in pinned memory where it exceeds the trial's share.
        labels: Normalised, on the device.
        rules: Its `eval_draws` is the number of draws.
        standardisation: Normalises flux and labels.
        worker: The worker whose share this is.
        mapped: The noise-free spectra, for further draws; None if there is only one draw.
    """

    flux: Float[Tensor, "row pixel"]
    labels: Float[Tensor, "row label"]
    rules: DataRules
    standardisation: Standardisation
    worker: Worker
    mapped: MappedSplit | None

    @classmethod
    def load(
        cls,
        shards: Location,
        rules: DataRules,
        split: Literal["val", "test"],
        worker: Worker,
        standardisation: Standardisation | None = None,
    ) -> EvaluationSplit:
        """Draw the split's noise once, on the CPU in row order from `eval_seed`, as the original study does.

        By default `standardisation` is computed from the shard set's own training split.
        """
        used = standardisation or Standardisation.of(shards, rules)
        mapped = map_split(shards, split, Manifest.load(shards).num_rows(split), worker.cache_root)
        labels = used.normalise_labels(
            read_labels(mapped.params(list(rules.labels)), rules.labels, f"{shards}, {split}")
        )
        flux = _noisy(mapped, rules, used, worker, draw=0)
        if rules.eval_draws == 1:
            mapped.close()
        return cls(
            flux=_placed(flux, worker),
            labels=torch.from_numpy(labels[worker.rank :: worker.world].copy()).to(worker.device),
            rules=rules,
            standardisation=used,
            worker=worker,
            mapped=mapped if rules.eval_draws > 1 else None,
        )

    def draws(self) -> Iterator[Float[Tensor, "row pixel"]]:
        """Yield the standardised flux of each noise draw, on the same device as the first.

        All but the first are redrawn on every call and freed one after the other, so that memory does not grow with
        their number. They depend only on the seed, the draw and the row.
        """
        yield self.flux
        for draw in range(1, self.rules.eval_draws):
            assert self.mapped is not None
            yield _placed(_noisy(self.mapped, self.rules, self.standardisation, self.worker, draw), self.worker)


def _placed(flux: Float[Tensor, "row pixel"], worker: Worker) -> Float[Tensor, "row pixel"]:
    return flux.to(worker.device) if flux.nbytes <= EVALUATION_SHARE * worker.room() else flux.pin_memory()


def _noisy(
    mapped: MappedSplit, rules: DataRules, standardisation: Standardisation, worker: Worker, draw: int
) -> Float[Tensor, "row pixel"]:
    """A worker's rows of a split under one noise draw, standardised. Noise is drawn for all rows, in row order."""
    total, _, pixels = mapped.spectra.shape
    rank, world, standardise = worker.rank, worker.world, standardisation.flux_on(torch.device("cpu"))
    seed = stable_seed("evaluation", rules.eval_seed, draw) if draw else rules.eval_seed
    generator = torch.Generator().manual_seed(seed)
    flux = torch.empty(len(range(rank, total, world)), pixels)
    for start in range(0, total, READ_ROWS):
        stop = min(start + READ_ROWS, total)
        noise = torch.randn(stop - start, pixels, generator=generator)
        mine = np.arange(start + (rank - start) % world, stop, world)
        clean, error = torch.from_numpy(mapped.flux[mine]), torch.from_numpy(mapped.error[mine])
        flux[mine // world] = standardise(add_noise_(clean, error, noise[mine - start], rules.noise_level))
    return flux


def evaluation_pin(shards: Location, rules: DataRules) -> str:
    """Hash of the validation and test spectra with their noise; only rows with equal pins may be compared."""
    manifest = Manifest.load(shards)
    parts = [manifest.digest(split, manifest.num_rows(split)) for split in ("val", "test")]
    parts += [rules.target, str(rules.eval_seed), repr(rules.noise_level)]
    parts += [f"{rules.eval_draws} draws"] if rules.eval_draws > 1 else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def check_labels(manifest: Manifest, rules: DataRules) -> None:
    """Check up front that every spectrum of all splits has the labels that the rules name.

    Raises:
        UserError: A label is unknown, constant, on one side of the boundary, or not finite in some spectrum.
    """
    for label in rules.labels:
        if label in manifest.labels and (missing := manifest.labels[label].nan):
            raise UserError(
                f"{manifest.dest}: label {label!r} is NaN in {missing} training spectra; choose another label, or remove them"
            )
    Standardisation.of(manifest.dest, rules)
    for shard in (*manifest.shards("val"), *manifest.shards("test")):
        for table in row_groups(manifest.folder, shard.file, columns=[ROW_ID, *rules.labels]):
            where = f"{manifest.folder.locate(shard.file)}, rows from {column_values(table, ROW_ID)[0]}"
            read_labels(table.to_pandas(), rules.labels, where)
