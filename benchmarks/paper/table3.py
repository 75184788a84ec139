"""Table 3 of the paper: students of ResNet-34 for ImageNet, of BlockSwap, of one block type, and ResNet-18.

    python -m benchmarks.paper.table3
    torchrun --nproc-per-node 8 -m benchmarks.paper.table3 --train blockswap-3m --data path/to/imagenet

Counts every network of the table and prints the paper's figures beside. With --train it trains one of them by attention
transfer and the paper's recipe for ImageNet, on any folder with `train` and `val` of one folder of images a class.
Options that are not its own are those of `blockswap train`, such as --num-classes, --amp or --teacher-checkpoint. The
same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import nn

from benchmarks.lib.images import write_noise
from benchmarks.lib.report import versions
from blockswap_models import count
from blockswap_models.cli.main import main as blockswap
from blockswap_models.layout import Layout

TEACHER = "resnet34.tv_in1k"
RESNET34 = "blockswap_resnet34"
# Without a GPU.
REDUCED_EPOCHS = 1
REMARKS = f"""\
Parameters: weights and biases of convolutions, BN and linear layers. MACs: those of convolutions and linear layers, for
one image of 224 x 224. The paper counts BN too: with one operation for each output of BN all but blockswap-8m come
within 2 M of its figures. Errors in percent: top-1 and top-5. The teacher is not trained here:
`blockswap evaluate {TEACHER} --data path/to/imagenet/val` has its error."""


@register_model
def resnet18_half(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with half the channels in the last three stages (paper, section 6), as a model of timm."""
    first, *others = Layout.named("resnet18").channels
    # Its images are those of the other networks: the tag says how they are cropped.
    return timm.create_model("resnet18.tv_in1k", channels=(first, *(each // 2 for each in others)), **kwargs)


@dataclass(frozen=True)
class Row:
    """A network of the table; parameters, MACs and errors are as the paper prints them."""

    label: str
    model: str
    params: str
    macs: str
    errors: str
    genome: str | None = None
    note: str = ""

    def build(self) -> nn.Module:
        """Builds it on the meta device."""
        return timm.create_model(self.model, genome=self.genome, device="meta")


def single(block: str) -> str:
    """Writes the genome of ResNet-34 whose blocks are all of one type."""
    return "/".join(f"{depth}x{block}" for depth in Layout.named("resnet34").depths)


ROWS = {
    "resnet34": Row("ResNet-34 teacher", RESNET34, "21.8M", "3.669G", "26.73 8.57"),
    "resnet18": Row("ResNet-18", "blockswap_resnet18", "11.7M", "1.818G", "29.18 10.05"),
    "g4": Row("ResNet-34-G(4)", RESNET34, "8.1M", "1.395G", "26.58 8.43", single("G4")),
    "blockswap-8m": Row(
        "BlockSwap",
        "blockswap_resnet34_8m",
        "8.1M",
        "1.242G",
        "26.24 7.75",
        note="rounded it is 8.2 M; with one operation for each output of BN its MACs are 1,205.0 M; not explained",
    ),
    "resnet18-half": Row("ResNet-18-0.5", "resnet18_half", "3.2M", "909M", "37.20 15.02"),
    "gn": Row("ResNet-34-G(N)", RESNET34, "3.1M", "559M", "30.16 10.66", single("W1")),
    "blockswap-3m": Row("BlockSwap", "blockswap_resnet34_3m", "3.1M", "812M", "29.57 10.20"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", choices=[name for name in ROWS if name != "resnet34"], help="the row to train")
    parser.add_argument("--data", help="the folder of images, with train and val")
    parser.add_argument("--out", default="imagenet", metavar="FOLDER", help="where runs go (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny form, on images of noise")
    options, others = parser.parse_known_args()
    if others and not options.train:
        parser.error(f"options of training, {' '.join(others)}, are for --train")
    if options.smoke:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as options.out:
            out = Path(options.out)
            write_noise(out / "images", classes=2, number=1, size=64)
            code = train("resnet18-half", str(out / "images"), out, _smoke(out))
            print_table(out)
        raise SystemExit(code)
    code = 0
    if options.train:
        if options.data is None:
            parser.error("training needs a folder of images; use --data")
        code = train(options.train, options.data, Path(options.out), others)
    if not code and int(os.environ.get("RANK", 0)) == 0:
        print_table(Path(options.out))
    raise SystemExit(code)


def train(name: str, data: str, out: Path, others: list[str]) -> int:
    """Trains a row, or resumes it, by `blockswap train`; returns its exit code."""
    row, folder = ROWS[name], out / name
    arguments = [row.model, "--recipe", "imagenet", "--data", data, "--out", str(folder), "--teacher", TEACHER]
    if row.genome is not None:
        arguments += ["--genome", row.genome]
    if (folder / "log.jsonl").exists():
        arguments.append("--resume")
    if not torch.cuda.is_available() and not any(each.partition("=")[0] == "--epochs" for each in others):
        print(f"reduced form, without a GPU: {REDUCED_EPOCHS} epoch (the paper: 100)")
        arguments += ["--epochs", str(REDUCED_EPOCHS)]
    return blockswap(["train", *arguments, *others])


def _smoke(folder: Path) -> list[str]:
    """Makes a teacher with random weights, since those of timm may not be there; returns the options of a tiny run."""
    weights = folder / "teacher.pth"
    torch.save(timm.create_model(TEACHER, num_classes=2).state_dict(), weights)
    small = "--num-classes 2 --batch-size 2 --workers 0 --device cpu --epochs 1"
    print("reduced form: 1 epoch of 2 images of white noise (the paper: 100 epochs of ImageNet)")
    return ["--teacher-checkpoint", str(weights), *small.split()]


def print_table(out: Path) -> None:
    print(versions())
    print(f"{'':30s}{'parameters':>18s}   {'MACs (M)':>16s}   top-1, top-5 error (%)")
    print(f"{'row':14s}{'network':18s}{'ours':>10s}{'paper':>6s}   {'ours':>8s}{'paper':>8s}   {'ours':36s}paper")
    for name, row in ROWS.items():
        cost = count(row.build())
        print(
            f"{name:14s}{row.label:18s}{cost.params:>10,}{row.params:>6s}   {cost.macs / 1e6:>8,.1f}{row.macs:>8s}   "
            f"{error_text(out / name / 'summary.json'):36s}{row.errors}"
        )
    for name, row in ROWS.items():
        if row.note:
            print(f"{name}: {row.note}")
    print(REMARKS)


def error_text(path: Path) -> str:
    if path.parent.name == "resnet34":
        return "-"
    if not path.exists():
        return "not trained yet"
    summary = json.loads(path.read_text())
    tested = f"{summary['recipe']['epochs']} ep., {summary['test_images']:,} images"
    return f"{summary['top1_error']:.2f} {summary['top5_error']:.2f} ({tested})"


if __name__ == "__main__":
    main()
