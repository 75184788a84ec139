"""Table 4 of the paper: Mask R-CNN on COCO, with ResNet-34-G(N) and BlockSwap for backbones, and ResNet-34.

    python -m benchmarks.paper.table4
    torchrun --nproc-per-node 8 -m benchmarks.paper.table4 --train blockswap-3m --data-dir path/to/coco

Counts the networks and prints the paper's figures beside. With --train it trains one of them from scratch by the
settings of torchvision's reference for Mask R-CNN, as the paper does, on any folder with `annotations`, `train2017` and
`val2017`, and measures its average precision by pycocotools. The same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.lib.report import versions
from benchmarks.paper.detecting import NORMS, Recipe, build, train, transforms
from benchmarks.paper.noise_coco import write_noise
from benchmarks.paper.table3 import single
from blockswap_models import count
from blockswap_models.data.coco import AP_NAMES, CocoObjects
from blockswap_models.machine import find_device, keep_memory
from blockswap_models.training.distributed import process_group, rank_and_size
from blockswap_models.training.evaluate import load_weights

RESNET34 = "blockswap_resnet34"
# Without a GPU: is overfitted to a few images. Two images a step are too few for BN.
REDUCED = {"epochs": 75, "batch_size": 2, "lr": 0.01, "image_size": 192, "rois": 64, "norm": "group"}
REDUCED_IMAGES = 16
_SMOKE = Recipe(epochs=1, batch_size=2, lr=0.001, image_size=64, rois=8)
REMARKS = """\
Parameters: 'network' is the network for ImageNet, as in Table 3, which is how the paper counts 3M; 'backbone' that
without its classifier; 'detector' the Mask R-CNN for 91 classes. MACs: those of convolutions and linear layers of the
backbone, without the pyramid, for one image of 800 x 1333. The paper does not say whether its figures are of boxes or
masks; they stand beside the boxes'. It does not print the genome that it found on COCO images: blockswap-3m is that of
Table 3, and `blockswap search resnet34 --params 3m --data coco` finds another for --genome."""


@dataclass(frozen=True)
class Row:
    """A network of the table, and what the paper says of it: the six figures of `AP_NAMES`."""

    label: str
    model: str
    params: str
    figures: tuple[float, ...] = ()
    genome: str | None = None


ROWS = {
    "resnet34": Row("ResNet-34", RESNET34, "-"),
    "gn": Row("ResNet-34-G(N)", RESNET34, "3M", (22.3, 38.9, 23.0, 12.9, 22.9, 30.7), single("W1")),
    "blockswap-3m": Row("BlockSwap", "blockswap_resnet34_3m", "3M", (23.4, 40.0, 24.7, 13.6, 24.2, 31.1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", choices=ROWS, help="the row to train")
    parser.add_argument("--genome", help="block types in place of the row's")
    parser.add_argument("--data-dir", help="the folder of COCO")
    for name, what in {"train": "train", "eval": "evaluate"}.items():
        default = {"train": "train", "eval": "val"}[name]
        parser.add_argument(f"--{name}-on", choices=("train", "val"), default=default, help=f"{what} on (%(default)s)")
    parser.add_argument(
        "--images",
        type=int,
        help=f"images to train and to test on, evenly spaced (all; without a GPU {REDUCED_IMAGES})",
    )
    for each in fields(Recipe):
        reduced = f"; without a GPU {REDUCED[each.name]}" if each.name in REDUCED else ""
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=type(each.default),
            choices=NORMS if each.name == "norm" else None,
            help=f"(torchvision's {each.default}{', for 16 images a step' * (each.name == 'lr')}{reduced})",
        )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and flips (%(default)s)")
    parser.add_argument("--device", help="where to train (cuda where there is a GPU, else cpu)")
    parser.add_argument("--amp", choices=("bfloat16",), help="precision of autocast (float32 throughout)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images (%(default)s)")
    parser.add_argument("--out", default="coco", metavar="FOLDER", help="where runs go (%(default)s)")
    parser.add_argument("--draw", metavar="FILE", help="draw what the trained network finds in an image (.png)")
    parser.add_argument("--smoke", action="store_true", help="a tiny form, on images of noise")
    options = parser.parse_args()
    try:
        _run(options)
    except (ValueError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {str(error).splitlines()[0]}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same command resumes\n")


def _run(options: argparse.Namespace) -> None:
    if options.smoke:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            options.train, options.data_dir, options.out = "blockswap-3m", folder, f"{folder}/runs"
            options.train_on = options.eval_on = "val"
            options.device, options.workers = "cpu", 0
            write_noise(Path(folder))
            print("images of white noise with random masks, in the place of COCO")
            _train(options, _SMOKE)
            print_table(Path(options.out))
        return
    if options.train:
        if options.data_dir is None:
            raise ValueError("training needs the folder of COCO; use --data-dir")
        if not _train(options, _recipe(options)):
            return
    elif options.draw:
        raise ValueError("--draw needs a trained network; use --train and --data-dir too")
    print_table(Path(options.out))


def _recipe(options: argparse.Namespace) -> Recipe:
    """Reads the recipe; on a GPU the learning rate goes with the batch size where it is not given."""
    given = {name: value for each in fields(Recipe) if (value := getattr(options, name := each.name)) is not None}
    if find_device(options.device).type == "cpu":
        return replace(Recipe(), **{**REDUCED, **given})
    return replace(
        Recipe(), **{"lr": Recipe.lr * given.get("batch_size", Recipe.batch_size) / Recipe.batch_size, **given}
    )


def _train(options: argparse.Namespace, recipe: Recipe) -> bool:
    """Trains a row, or resumes it, and prints its figures; says whether this is the first process."""
    row, device = ROWS[options.train], find_device(options.device)
    if device.type == "cpu":
        keep_memory()
    with process_group(device) as device:
        rank, _ = rank_and_size()
        dataset = CocoObjects(options.data_dir, options.train_on, training=True, transforms=transforms(True))
        test_dataset = CocoObjects(options.data_dir, options.eval_on, transforms=transforms(False))
        images = options.images
        if images is None and device.type == "cpu":
            images = min(REDUCED_IMAGES, len(dataset))
        if images is not None:
            dataset.keep(images)
            if options.train_on == options.eval_on:
                test_dataset.ids[:] = dataset.ids
            else:
                test_dataset.keep(min(images, len(test_dataset)))
        genome = options.genome or row.genome
        torch.manual_seed(options.seed)
        model = build(row.model, genome, max(dataset.coco.cats) + 1, recipe)
        folder = Path(options.out) / options.train
        if rank == 0:
            print(_form(recipe, dataset, test_dataset, options, device), flush=True)
        summary = train(
            model,
            dataset,
            test_dataset,
            recipe,
            folder,
            seed=options.seed,
            device=device,
            dtype=torch.float32 if options.amp is None else getattr(torch, options.amp),
            workers=options.workers,
            arguments={
                "name": options.train,
                "genome": genome,
                "train_on": options.train_on,
                "eval_on": options.eval_on,
                "train_images": len(dataset),
                "amp": options.amp,
            },
        )
    if rank:
        return False
    _print_run(summary)
    if options.draw:
        from benchmarks.paper.detection_picture import draw

        load_weights(model, folder / "model.safetensors")
        draw(model, test_dataset, options.draw)
    return True


def _form(
    recipe: Recipe, dataset: CocoObjects, test_dataset: CocoObjects, options: argparse.Namespace, device: torch.device
) -> str:
    full = replace(Recipe(), norm=recipe.norm)
    form = "" if recipe == full and len(dataset) > 100_000 else "reduced form (the paper: 26 epochs of COCO): "
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"
    return (
        f"{form}{epochs} of {len(dataset):,} images of {options.train_on}2017, "
        f"{recipe.image_size} pixels, {recipe.batch_size} a step, tested on {len(test_dataset):,} of "
        f"{options.eval_on}2017; {device.type}, {options.amp or 'float32'}"
    )


def _print_run(summary: dict[str, Any]) -> None:
    first, last = summary["first_epoch"], summary["last_epoch"]
    for name in first:
        if name.startswith("loss"):
            print(f"{name:18s}epoch 1: {first[name]:.3f}   epoch {last['epoch']}: {last[name]:.3f}")
    print(f"{summary['seconds']:,.0f} s of training")


def print_table(out: Path) -> None:
    print(versions())
    print(f"{'':34s}parameters                       MACs (G)")
    print(f"{'row':14s}{'network':18s}{'network':>10s}{'paper':>6s}{'backbone':>12s}{'detector':>12s}{'backbone':>10s}")
    paths = {name: out / name / "summary.json" for name in ROWS}
    summaries = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    genomes = {name: summaries.get(name, {}).get("genome", row.genome) for name, row in ROWS.items()}
    for name, row in ROWS.items():
        network = timm.create_model(row.model, genome=genomes[name], device="meta")
        with torch.device("meta"):
            detector = build(row.model, genomes[name], 91, Recipe())
        body = count(detector.backbone.body, (3, 800, 1333))
        whole = sum(each.numel() for each in detector.parameters())
        label = row.label if genomes[name] == row.genome else "another genome"
        print(
            f"{name:14s}{label:18s}{count(network).params:>10,}{row.params:>6s}{body.params:>12,}{whole:>12,}"
            f"{body.macs / 1e9:>10.1f}"
        )
    print(f"\n{'row':14s}{'':8s}" + "".join(f"{name:>7s}" for name in AP_NAMES))
    for name, row in ROWS.items():
        summary = summaries.get(name)
        for kind, told in {"bbox": "boxes", "segm": "masks"}.items() if summary else ():
            figures = "".join("      -" if each is None else f"{each:7.1f}" for each in summary[kind].values())
            tested = f"{summary['recipe']['epochs']} ep. of {summary['train_images']:,} images"
            print(f"{name:14s}{told:8s}{figures}   {tested}, {summary['test_images']:,} tested")
        if summary is None:
            print(f"{name:14s}{'ours':8s}  not trained yet")
        if row.figures:
            print(f"{name:14s}{'paper':8s}" + "".join(f"{each:7.1f}" for each in row.figures))
    for name, genome in genomes.items():
        if genome != ROWS[name].genome:
            print(f"{name}: trained with another genome (--genome): {genome}")
    print(REMARKS)


if __name__ == "__main__":
    main()
