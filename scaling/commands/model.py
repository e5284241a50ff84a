"""`scaling evaluate`, `predict` and `export`: commands for a trained model, from a trial or the original study."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.commands.common import AddCommand, inputs, load_study, say, write_json
from scaling.console import counting
from scaling.errors import UserError
from scaling.files import MODEL_STARTS, PARQUET_STARTS, check_output, location, output

if TYPE_CHECKING:
    import torch

    from scaling.inference.trained import Original


def add_commands(command: AddCommand) -> None:
    """Add these commands to the parser."""
    sub = command("evaluate", _evaluate, "Score a model on a shard set, as a trial's row has it.")
    _checkpoint(sub)
    sub.add_argument("data", type=location, metavar="SHARDS", help="a folder, or a URI such as s3://bucket/path")
    sub.add_argument("--split", choices=("val", "test"), default="test")
    sub.add_argument(
        "--noise-level", type=float, metavar="LEVEL", help="multiplies the errors (default: as in training)"
    )
    sub.add_argument("--draws", type=int, metavar="K", help="noise draws to average (default: as the trial was scored)")
    sub.add_argument("--cache", type=Path, metavar="DIR", help="folder of this node's memory maps")
    sub.add_argument("--json", type=Path, metavar="OUT")
    anchor = sub.add_argument_group("anchor", "Keep the score beside a study's results; its report then shows it.")
    anchor.add_argument("--anchor", metavar="STUDY", help="the study, a module or a file; its evaluation noise is used")
    anchor.add_argument("--store", metavar="URI", help="where its results are")
    anchor.add_argument("--name", metavar="NAME", help="of the anchor (default: the checkpoint's file name)")
    anchor.add_argument(
        "--num-spectra", type=int, metavar="D", help="what the model was trained on, if its file does not say"
    )
    _original(sub)

    sub = command("predict", _predict, "Predict the labels of all spectra of an HDF5 file.")
    _checkpoint(sub)
    sub.add_argument("spectra", type=Path, metavar="SPECTRA.h5")
    sub.add_argument("out", type=Path, metavar="OUT.parquet")
    sub.add_argument(
        "--array", choices=("flux", "noisy"), help="what the model sees (default: noisy where the file has it)"
    )
    sub.add_argument(
        "--noise-seed", type=int, metavar="SEED", help="add noise to the flux, drawn from the file's errors"
    )
    _original(sub)

    sub = command(
        "export",
        _export,
        "Write a checkpoint of the original as a model file, or any model as a folder for the Hugging Face hub.",
    )
    _checkpoint(sub)
    sub.add_argument("out", type=Path, nargs="?", metavar="OUT.safetensors", help="a model file of the checkpoint")
    sub.add_argument("--hub", type=Path, metavar="DIR", help="a new folder, which loads without this project")
    sub.add_argument("--num-spectra", type=int, metavar="D", help="what the model was trained on")
    _original(sub)


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a trial's model.safetensors or folder, a folder for the hub, or a .ckpt of the original study",
    )


def _original(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoints of the original", "What such a file does not say.")
    group.add_argument("--label", help="what it predicts (default: log_g)")
    group.add_argument(
        "--shards", type=location, metavar="SHARDS", help="the set it was trained on: wavelengths, label statistics"
    )
    group.add_argument("--label-mean", type=float, metavar="DEX", help="of the training spectra, with --label-std")
    group.add_argument("--label-std", type=float, metavar="DEX")
    group.add_argument("--heads", type=int, help="attention heads (default: the width over 32)")
    group.add_argument("--stride", type=int, metavar="PIXELS", help="from one patch to the next (default: no overlap)")


def _given(options: argparse.Namespace, pixels: int | None = None) -> Original:
    """The options for a checkpoint of the original study; `pixels` is the size of the spectra it is applied to."""
    from scaling.inference.trained import Original, of_this_project

    named = {"label": options.label} if options.label else {}
    return Original(
        **named,
        label_mean=options.label_mean,
        label_std=options.label_std,
        shards=options.shards,
        num_heads=options.heads,
        stride=options.stride,
        num_pixels=None if of_this_project(options.checkpoint) or options.shards else pixels,
    )


def _evaluate(options: argparse.Namespace) -> int:
    from scaling.data.batches.cache import default_cache_root
    from scaling.data.shards.manifest import Manifest
    from scaling.inference.evaluate import check_anchor, evaluate, rules_of_study, write_anchor
    from scaling.inference.trained import of_this_project, open_model
    from scaling.study.store import Store, StudyFolder

    if bool(options.anchor) != bool(options.store) or (options.anchor and options.split != "test"):
        raise UserError("--anchor STUDY and --store URI go together, on the test split; give both, or neither")
    if not options.anchor and (options.name or options.num_spectra):
        raise UserError("--name and --num-spectra: are of an anchor; give --anchor STUDY and --store URI too")
    manifest = Manifest.load(options.data)
    given = _given(options, manifest.pixels)
    if not of_this_project(options.checkpoint) and given.shards is None and given.label_mean is None:
        statistics = manifest.label(given.label)
        given = dataclasses.replace(given, label_mean=statistics.mean, label_std=statistics.std)
        print(f"label mean {statistics.mean:.6g} and std {statistics.std:.6g}: of the training split of {options.data}")
    model = open_model(options.checkpoint, given)
    study = load_study(options.anchor) if options.anchor else None
    rules = model.rules if study is None else rules_of_study(model, study)
    changes = {"noise_level": options.noise_level, "eval_draws": options.draws}
    rules = dataclasses.replace(rules, **{key: value for key, value in changes.items() if value is not None})
    name, said = options.name or options.checkpoint.stem, model.about.get("num_spectra")
    if said and options.num_spectra not in (None, said):
        raise UserError(
            f"--num-spectra {options.num_spectra}: {options.checkpoint} was trained on {said}; leave it out"
        )
    num_spectra = said or options.num_spectra
    folder = None if study is None else StudyFolder(Store(options.store), study.name)
    if folder is not None:
        check_anchor(folder, options.data, rules, name, num_spectra)
    cache = options.cache or default_cache_root()
    shown = functools.partial(counting, say=say)
    found = evaluate(model, options.data, options.split, rules, device=_device(), cache_root=cache, counting=shown)
    print(found.to_text())
    write_json(options, found.to_json())
    if folder is not None:
        print(f"anchor: {write_anchor(folder, found, name, num_spectra)}; `scaling report` shows it")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from scaling.data.hdf5.reader import open_spectra
    from scaling.inference.predict import choose_array, predict_file
    from scaling.inference.trained import open_model

    check_output(options.out, inputs(options), PARQUET_STARTS)
    with open_spectra(options.spectra) as file:
        model = open_model(options.checkpoint, _given(options, file.num_pixels))
        seed = options.noise_seed
        noisy = choose_array(file, options.array, seed)
        if model.wave is None:
            print(f"{options.checkpoint}: wavelengths unknown: only the number of pixels is compared")
        noise = "" if seed is None else f" with noise of seed {seed}, level {model.rules.noise_level:g}"
        array = "flux" if noisy is None else "noisy"
        print(f"predicting {', '.join(model.rules.labels)} of {file.num_rows:,} spectra from the array {array}{noise}")
        with counting("spectra", say) as progress:
            done = predict_file(model, file, noisy, seed, options.out, _device(), inputs(options), progress)
    if done.unusable:
        print(
            f"scaling: warning: {options.spectra}: {done.unusable} spectra cannot be used, first in row {done.first_unusable}: "
            "no prediction (NaN); `scaling inspect` says why",
            file=sys.stderr,
        )
    print(f"{done.rows:,} rows in {options.out}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from scaling.inference.hub import check_folder, write_hub
    from scaling.inference.trained import MODEL_SUFFIX, import_model, of_this_project, open_model

    out, hub = options.out, options.hub
    if out is None and hub is None:
        raise UserError("nothing to write: name OUT.safetensors, or --hub DIR")
    if out is not None:
        if out.suffix != MODEL_SUFFIX:
            raise UserError(f"{out}: a model file's name ends in {MODEL_SUFFIX}")
        check_output(out, inputs(options), MODEL_STARTS)
    if hub is not None:
        check_folder(hub)
    if out is None and of_this_project(options.checkpoint):
        if options.num_spectra:
            raise UserError(f"--num-spectra: {options.checkpoint} says it itself; leave it out")
        model = open_model(options.checkpoint, _given(options))
    else:
        model = import_model(options.checkpoint, _given(options), options.num_spectra)
    print(model.describe())
    if out is not None:
        with output(out, inputs(options), MODEL_STARTS) as temporary:
            temporary.write_bytes(model.to_bytes())
        print(f"written to {out}")
    if hub is not None:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        write_hub(model, hub)
        print(f"written to {hub}, its card in README.md")
    return 0


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
