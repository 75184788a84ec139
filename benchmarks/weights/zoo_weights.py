"""The weights of the zoo, trained and packed by one command, and what attention transfer gains.

    python -m benchmarks.weights.zoo_weights --data-dir path/to/cifar10 --out runs -- --amp bfloat16 --channels-last

First the teacher, WRN-40-2, by cross-entropy; then the students together, from the teacher as it is shipped; then one
student by itself with more seeds, with the teacher and without it. What stands after `--` goes to each `blockswap
train`. Every network is packed as it is finished, into blockswap_models/zoo/weights unless `--weights` names another
folder. Stopped at any moment, the same command goes on where it was; the errors so far are in `runs`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
from torchvision.io import write_png

import blockswap_models
from blockswap_models.zoo.genomes import GENOMES, PAPER_ERRORS

TEACHER = "wrn40_2"
STUDENTS = [name.removeprefix("blockswap_") for name in GENOMES if name.startswith(f"blockswap_{TEACHER}_")][::-1]
SHIPPED = Path(blockswap_models.__file__).parent / "zoo" / "weights"


class Zoo:
    """The runs of a zoo in a folder: trains what is not there yet, packs what is not packed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.runs, self.weights = Path(options.out), Path(options.weights)
        self.tag = f"cifar10{options.suffix}"
        self.data = ["--data", options.data]
        self.place = ["--data-dir", options.data_dir] if options.data_dir else []
        for name in ("device", "workers"):
            if (value := getattr(options, name)) is not None:
                self.place += [f"--{name}", str(value)]
        self.more = options.more

    def train(self, folder: str, names: list[str], *arguments: str) -> None:
        """Trains networks, or goes on training them, unless their run is finished."""
        runs = [self.runs / folder / (name if len(names) > 1 else "") for name in names]
        if all((run / "summary.json").exists() for run in runs):
            return
        place = self.runs / folder
        resume = ["--resume"] if (place / "log.jsonl").exists() else []
        command = ["train", *names, *self.data, *self.place, "--out", str(place), *arguments]
        call([*command, *self.more, *resume])

    def pack(self, folder: str, name: str, tag: str) -> None:
        """Packs the weights of a finished run, unless that has been done."""
        if not (self.weights / f"blockswap_{name}.{tag}.json").exists():
            call(["pack", str(self.runs / folder), "--tag", tag, *self.place, "--out", str(self.weights)])

    def teacher(self) -> list[str]:
        """The arguments that name the packed teacher: by its tag where it is shipped."""
        if self.weights.resolve() == SHIPPED.resolve():
            return ["--teacher", f"{TEACHER}.{self.tag}"]
        packed = self.weights / f"blockswap_{TEACHER}.{self.tag}.safetensors"
        return ["--teacher", TEACHER, "--teacher-checkpoint", str(packed)]

    def errors(self, *folders: str) -> list[float]:
        """The top-1 errors, in percent, of finished runs."""
        return [json.loads((self.runs / each / "summary.json").read_text())["top1_error"] for each in folders]


def call(arguments: list[str]) -> None:
    """Runs `blockswap`, in a process of its own: there the weights that were packed meanwhile are in the zoo."""
    print(f"$ blockswap {shlex.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "blockswap_models", *arguments]).returncode
    if status:
        sys.exit(status)


def run(options: argparse.Namespace) -> None:
    """Trains, packs, and prints the errors beside the paper's."""
    zoo, students = Zoo(options), options.students
    zoo.train("teacher", [TEACHER])
    zoo.pack("teacher", TEACHER, zoo.tag)
    together = [] if len(students) == 1 else students
    zoo.train("students", students, *zoo.teacher())
    folders = {name: f"students/{name}" if together else "students" for name in students}
    for name in students:
        zoo.pack(folders[name], name, f"at_{zoo.tag}")
    rows = [(TEACHER, "-", *zoo.errors("teacher")), *((name, TEACHER, *zoo.errors(folders[name])) for name in students)]
    print(f"\ntop-1 error in percent on CIFAR-10, seed 0, {torch.__version__=!s}; the paper's has 200 epochs")
    for name, teacher, error in rows:
        print(f"{name:14}  teacher {teacher:8}  {error:5.2f}   paper {PAPER_ERRORS[f'blockswap_{name}']}", flush=True)
    if options.gain is None:
        return
    # The seed of the run together is one of them.
    seeds = range(options.seeds)
    with_teacher = [folders[options.gain]] if options.gain in folders else []
    for seed in seeds:
        zoo.train(f"alone/seed{seed}", [options.gain], "--seed", str(seed))
        if seed or not with_teacher:
            zoo.train(f"taught/seed{seed}", [options.gain], *zoo.teacher(), "--seed", str(seed))
            with_teacher.append(f"taught/seed{seed}")
    print(f"\n{options.gain}, top-1 error in percent, seeds 0 to {options.seeds - 1}")
    means = {}
    for title, runs in {"attention transfer": with_teacher, "no teacher": [f"alone/seed{s}" for s in seeds]}.items():
        errors = zoo.errors(*runs)
        means[title] = statistics.fmean(errors)
        spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        print(f"{title:20} {means[title]:.2f}{spread}   ({', '.join(f'{error:.2f}' for error in errors)})")
    print(f"attention transfer gains {means['no teacher'] - means['attention transfer']:.2f} points")


def write_noise(folder: Path) -> None:
    """Writes a folder of small images, two of each of ten classes in each split."""
    generator = torch.Generator().manual_seed(0)
    for split, label in product(("train", "val"), range(10)):
        place = folder / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        for number in range(2):
            write_png(torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=generator), f"{place}/{number}.png")


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="the folder of CIFAR-10")
    parser.add_argument("--out", default="runs", help="the folder of the runs (%(default)s)")
    parser.add_argument("--weights", default=str(SHIPPED), help="where packed weights go (the package's own)")
    parser.add_argument("--suffix", default="", help="what the tags end in, such as _short (nothing)")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS, help="the students (all six)")
    parser.add_argument(
        "--gain", choices=STUDENTS, default="wrn40_2_404k", help="the student that is trained alone too"
    )
    parser.add_argument("--no-gain", dest="gain", action="store_const", const=None, help="train none alone")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of that student (%(default)s)")
    parser.add_argument("--device", help="where to train (cuda where there is a GPU, else cpu)")
    parser.add_argument("--smoke", action="store_true", help="two networks on noise in the place of CIFAR-10")
    parser.set_defaults(data="torch/cifar10", workers=None)
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    options.more = more
    if not options.smoke:
        run(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_noise(Path(folder) / "noise")
        options.data, options.data_dir, options.workers = f"{folder}/noise", None, 0
        options.out, options.weights = f"{folder}/runs", f"{folder}/weights"
        options.more = ["--recipe", "cifar10", "--epochs", "1", "--batch-size", "10"]
        options.seeds, options.device = 1, "cpu"
        options.students, options.gain, options.suffix = ["wrn40_2_162k"], "wrn40_2_162k", "_noise"
        run(options)


if __name__ == "__main__":
    main()
