"""Export of a model as a folder for the Hugging Face hub: weights, config, the required code, and a model card.

`AutoModel.from_pretrained(DIR, trust_remote_code=True)` loads it in a process that has transformers and not this project.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import uuid
from pathlib import Path

from safetensors import SafetensorError

from scaling.errors import UserError
from scaling.inference.trained import TrainedModel
from scaling.results import Row

CARD = "README.md"


def check_folder(folder: Path) -> None:
    """Check that a folder can be written, before anything is computed.

    Raises:
        UserError: It exists and is not empty, or cannot be created.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder}: is there already: name a new folder")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"{folder}: there is no folder {folder.absolute().parent}: make it, or name another")


def write_hub(model: TrainedModel, folder: Path) -> None:
    """Write the folder; it is renamed into place once complete.

    Raises:
        UserError: See `check_folder`; or writing to disk fails.
    """
    from scaling.model.modeling_specvit import SpecViTConfig, SpecViTForRegression

    check_folder(folder)
    config = SpecViTConfig(about=model.about, **dataclasses.asdict(model.model.config))
    made = SpecViTForRegression(config).eval()
    made.model.load_state_dict(model.model.state_dict())
    for name, values in model.statistics.items():
        made.statistics.get_buffer(name).copy_(values)
    temporary = folder.absolute().with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        made.save_pretrained(temporary)
        # The weights file is created readable by its owner only.
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")
        (temporary / CARD).write_text(card(model), encoding="utf-8")
        temporary.replace(folder.absolute())
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{folder}: cannot be written ({reason}): make room, or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card(model: TrainedModel) -> str:
    """The model card in Markdown: what it predicts, how well, from which data, and its limits."""
    row, config, rules = _row(model), model.model.config, model.rules
    wave, spectra = model.wave, model.about.get("num_spectra")
    grid = (
        "of unknown wavelengths"
        if wave is None
        else f"from {wave[0]:.2f} to {wave[-1]:.2f} Å (vacuum; the buffer `statistics.wave`)"
    )
    labels = ", ".join(f"`{name}`" for name in rules.labels) + " in the units of its training set (log g in dex)"
    answers = labels if rules.boundary is None else f"the probability that {rules.target}"
    return f"""---
library_name: transformers
tags: [astronomy, spectroscopy, stellar-parameters, regression]
---
# {model.name}

A SpecViT, a 1-D Vision Transformer, that estimates {answers}, from a spectrum of {config.num_pixels} pixels {grid}.

| parameters N | training spectra D | {"test error" if rules.boundary is None else "test error rate"} |
|---|---|---|
| {model.num_params:,} | {"not known" if spectra is None else f"{spectra:,}"} | {_error(row)} |

Width {config.width}, depth {config.depth}, {config.num_heads} heads, MLP {config.mlp_width}; {config.tokenizer} patches of \
{config.patch_size} pixels every {config.step}; positions {config.positions}.

## Use

    from transformers import AutoModel
    model = AutoModel.from_pretrained("DIR", trust_remote_code=True)   # runs this folder's code
    answer = model(flux)            # flux (batch, {config.num_pixels}), float32, as observed: noise included, not standardised
    answer.predictions              # (batch, {config.num_outputs}): {", ".join(rules.labels)}

## Training data

{_training(model)}

## Limits

{_limits(row, model)}
"""


def _row(model: TrainedModel) -> Row | None:
    """The row beside a trial's model file, if it belongs to that trial."""
    file = model.path / "model.safetensors" if model.path.is_dir() else model.path
    beside = file.with_name(f"{file.stem.replace('model', 'row', 1)}.json")
    if not beside.is_file():
        return None
    row = Row.from_json(beside.read_bytes(), str(beside))
    return row if (row.study, row.trial) == (model.about.get("study"), model.about.get("trial")) else None


def _error(row: Row | None) -> str:
    if row is None:
        return "not measured here; `scaling evaluate` measures it on a shard set"
    if row.measure.unit:
        return (
            f"MAE {row.test_mae_dex:.4f} ± {row.test_mae_sem_dex:.4f} dex = {row.test_mae_z:.4f} ± {row.test_mae_sem_z:.4f} "
            f"standard deviations of the training labels; R² {row.test_r2:.4f}; {row.num_test:,} spectra"
        )
    return f"{row.test_error:.4f}; {row.num_test:,} spectra"


def _training(model: TrainedModel) -> str:
    rules, about = model.rules, model.about
    source = f"study {about['study']}, trial {about['trial']}" if "study" in about else f"imported from {model.name}"
    noise = "drawn afresh in every epoch" if rules.noise == "fresh" else "drawn once for each spectrum"
    return (
        f"From {source}. Flux with Gaussian noise of {rules.noise_level:g} times the spectrum's 1σ errors, {noise}; "
        f"standardised by statistics of the training split (input norm {rules.input_norm})."
    )


def _limits(row: Row | None, model: TrainedModel) -> str:
    lines = [
        "- Spectra on another wavelength grid, at another resolution or in another flux unit than the training set's give wrong labels, "
        "without a warning.",
        "- It gives no uncertainty of a single estimate.",
    ]
    if row is not None and row.measure.unit:
        for column, what in (("test_by_label", f"true {row.label}"), ("test_by_snr", "signal to noise")):
            bins = json.loads(getattr(row, column))
            lines += (
                [f"- Tested at {what} from {bins[0]['low']:.4g} to {bins[-1]['high']:.4g}; what lies outside was not."]
                if bins
                else []
            )
        lines.append(
            f"- Always answering the training mean has an MAE of {row.test_guess_mae_dex:.4f} dex on the same spectra."
        )
    if model.wave is None:
        lines.append("- Its wavelengths are not known: only the number of pixels can be compared.")
    return "\n".join(lines)
