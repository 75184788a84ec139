"""How fast the zoo's networks for ImageNet are, beside torchvision's and timm's of like size, on a CPU.

    python -m benchmarks.speed.latency
    python -m benchmarks.speed.latency --networks torchvision/resnet18 blockswap_resnet34_3m --ways eager --threads 1

Every network runs in every way, in turn, round after round, so that all suffer alike where the machine drifts. A figure
is the median of the rounds: milliseconds for batches of one image, images a second for larger ones. Beside it stands
the ratio of the network's time to that of the first network, torchvision's ResNet-18, in the same way and round, again
the median: above 1 the network is slower. timm's ResNet-18 is the same network, and says how far to trust a ratio.

'eager' is the network as it is made; 'folded' has its BN folded into the convolutions, by `fold_batchnorm`, as all have
in the ways that follow: 'compiled' by torch.compile, once for each batch and number of threads, which takes longer than
all else; 'onnxruntime' runs the file that `export_model` writes. Weights are random, which matters to none. All is in
float32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from benchmarks.lib.scripts import run_script
from blockswap_models.export import export_model, fold_batchnorm
from blockswap_models.machine import threads_set
from blockswap_models.nets.cost import count
from blockswap_models.nets.devices import describe_device
from blockswap_models.searching.profile import Stopwatch

REFERENCE = "torchvision/resnet18"
OURS = ("blockswap_resnet34", "blockswap_resnet34_8m", "blockswap_resnet34_3m")
OTHERS = (
    *("torchvision/resnet34", "resnet18", "regnetx_008", "efficientnet_lite0"),
    *("mobilenetv3_large_100", "mobilenetv3_small_100"),
)
WAYS = ("eager", "folded", "compiled", "onnxruntime")

Run = Callable[[torch.Tensor], Any]


class Bench:
    """The networks, in the ways that work here."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.failures: dict[tuple[str, str], str] = {}
        torch.manual_seed(0)
        self.networks = {name: build(name) for name in options.networks}
        self.folded = {name: fold_batchnorm(each) for name, each in self.networks.items()}
        # Each network is compiled for each batch and number of threads, and several have one class.
        torch._dynamo.config.cache_size_limit = 8 * len(self.networks) * len(options.threads) * len(options.batch_sizes)
        self.compiled = {name: torch.compile(each, fullgraph=True, dynamic=False) for name, each in self.folded.items()}
        size = (3, options.image_size, options.image_size)
        self.costs = {name: count(each, size) for name, each in self.networks.items()}
        self.images = {batch: torch.rand(batch, *size) for batch in options.batch_sizes}
        if "onnxruntime" in options.ways:
            for name in self.networks:
                self._try(name, "onnxruntime", lambda n=name: self._export(n, size))

    def _export(self, name: str, size: tuple[int, int, int]) -> None:
        export_model(self.networks[name], self._file(name), input_size=size)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.onnx"

    def _try(self, name: str, way: str, do: Callable[[], Any]) -> Any:
        if (name, way) in self.failures:
            return None
        try:
            return do()
        except Exception as error:
            # Of a missing package, of a missing compiler, of whatever a compiler does not know.
            self.failures[name, way] = (str(error).splitlines() or [type(error).__name__])[0]
            return None

    def run_of(self, name: str, way: str) -> Run:
        """What runs a network in a way, with as many threads as torch has now."""
        if way == "onnxruntime":
            import onnxruntime

            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(self._file(name), settings, providers=["CPUExecutionProvider"])
            return lambda x: session.run(None, {"images": x.numpy()})
        return {"eager": self.networks, "folded": self.folded, "compiled": self.compiled}[way][name]

    @torch.inference_mode()
    def measure(self, batch: int) -> dict[tuple[str, str], list[float]]:
        """The seconds of each network in each way, by round."""
        x, stopwatch = self.images[batch], Stopwatch(torch.device("cpu"))
        runs: dict[tuple[str, str], Run] = {}
        for way in self.options.ways:
            for name in self.networks:
                run = self._try(name, way, lambda n=name, w=way: self.run_of(n, w))
                # Compiles, and makes whatever a first pass makes.
                self._try(name, way, lambda r=run: r(x))
                if (name, way) not in self.failures:
                    runs[name, way] = run
        times: dict[tuple[str, str], list[float]] = {each: [] for each in runs}
        for _ in range(self.options.rounds):
            for each, run in runs.items():
                # One image takes so short a time that what ran before is still felt.
                if batch == 1:
                    run(x)
                passes = 3 if batch == 1 else 1
                times[each].append(statistics.median(stopwatch.whole(run, x) for _ in range(passes)))
        return times


def build(name: str) -> nn.Module:
    """Builds a network of timm, or of torchvision as torchvision/NAME; raises ValueError where there is none."""
    source, _, rest = name.rpartition("/")
    if source == "torchvision":
        return torchvision.models.get_model(rest).eval()
    if not timm.is_model(name):
        raise ValueError(f"no network '{name}'; use one of timm, or torchvision/NAME")
    return timm.create_model(name).eval()


def print_table(bench: Bench, batch: int, times: dict[tuple[str, str], list[float]]) -> dict[tuple[str, str], float]:
    """Prints a table, and returns its ratios."""
    first = bench.options.networks[0]
    ratios = {
        (name, way): statistics.median(
            one / other for one, other in zip(found, times.get((first, way), []), strict=True)
        )
        for (name, way), found in times.items()
        if (first, way) in times
    }
    threads, unit = torch.get_num_threads(), "ms" if batch == 1 else "images/s"
    print(
        f"\nbatch {batch}, {threads} {'thread' if threads == 1 else 'threads'}: {unit}, "
        f"and time by that of {first} in the same way"
    )
    ways = [way for way in bench.options.ways if any(each == way for _, each in times)]
    print(f"{'network':24s}{'params (M)':>11s}{'MACs (M)':>10s}" + "".join(f"{way:>18s}" for way in ways))
    for name, cost in bench.costs.items():
        cells = ""
        for way in ways:
            cell = "-"
            if (name, way) in times:
                middle = statistics.median(times[name, way])
                figure = f"{middle * 1000:.2f}" if batch == 1 else f"{batch / middle:,.1f}"
                cell = f"{figure}{f'{ratios[name, way]:.2f}' if (name, way) in ratios else '-':>7s}"
            cells += f"{cell:>18s}"
        print(f"{name:24s}{cost.params / 1e6:11.2f}{cost.macs / 1e6:10.1f}{cells}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks",
        nargs="+",
        default=[REFERENCE, *OURS, *OTHERS],
        help="of timm, or torchvision/NAME; ratios are to the first (%(default)s)",
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how to run them (all)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images at a time (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all networks and ways (%(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="height and width (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="one network, one round, tiny images; not compiled")
    smoke = {"networks": ["blockswap_wrn16_1"], "ways": ["eager", "folded", "onnxruntime"]}
    run_script(parser, run, threads=[1], batch_sizes=[1, 2], rounds=1, image_size=16, **smoke)


def run(options: argparse.Namespace) -> None:
    if min(*options.threads, *options.batch_sizes, options.rounds, options.image_size) < 1:
        raise ValueError("--threads, --batch-sizes, --rounds and --image-size are at least 1")
    about, start = describe_device(torch.device("cpu")), time.perf_counter()
    versions = f"torch {about['torch']}, torchvision {torchvision.__version__}, timm {about['timm']}"
    if "onnxruntime" in options.ways:
        try:
            import onnxruntime

            versions += f", onnxruntime {onnxruntime.__version__}"
        except ImportError:
            versions += ", no onnxruntime"
    print(
        f"{versions}\n{about['processor']}, threads {' and '.join(map(str, options.threads))}; float32, "
        f"3x{options.image_size}x{options.image_size}, medians of {options.rounds} rounds"
    )
    slower = []
    with tempfile.TemporaryDirectory() as folder, threads_set(options.threads[0]):
        bench = Bench(options, Path(folder))
        for threads in options.threads:
            torch.set_num_threads(threads)
            for batch in options.batch_sizes:
                ratios = print_table(bench, batch, bench.measure(batch))
                slower += [
                    f"{name} {way}, batch {batch}, threads {threads}: {ratio:.2f}"
                    for (name, way), ratio in ratios.items()
                    if name.startswith("blockswap_") and name != options.networks[0] and ratio > 1
                ]
    print(f"\nours slower than {options.networks[0]}:" + "".join(f"\n  {each}" for each in slower or ["none"]))
    for (name, way), reason in bench.failures.items():
        print(f"{way} failed for {name}: {reason}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
