"""What do the features of pretrained weights know? A linear classifier on them, and on those of random weights.

    python -m benchmarks.weights.linear_probe --data-dir path/to/cifar10

The network stays as it is. Its pooled features of CIFAR-10's images, resized, are standardised, and a multinomial
logistic regression with an L2 penalty is fitted to those of the training images (L-BFGS to convergence, or `--steps`).
Errors are on the test images, without augmentation. Random weights have BN statistics measured on a few minibatches,
without which their features say still less.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from itertools import islice

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn

import blockswap_models  # noqa: F401
from benchmarks.lib.images import cifar_images, noise_images
from benchmarks.lib.report import processor, versions
from benchmarks.lib.scripts import require_model, run_script
from blockswap_models.data.cifar import CifarLoader
from blockswap_models.machine import keep_memory
from blockswap_models.nets.native_norm import use_native_norms

# Minibatches that measure the BN statistics of random weights.
BN_MINIBATCHES = 20
Images = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def features_of(model: nn.Module, images: Images, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Computes the pooled features of all images, (N, features)."""
    found = []
    with ExitStack() as undo:
        use_native_norms(model, undo)
        for each, _ in loader(model, images, size):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                found.append(model.forward_head(model.forward_features(each), pre_logits=True).float())
    return torch.cat(found)


def loader(model: nn.Module, images: Images, size: int) -> CifarLoader:
    """Gives the images at a size, normalised for the model."""
    cfg = model.pretrained_cfg
    return CifarLoader(*images, 250, size=size, mean=cfg["mean"], std=cfg["std"], channels_last=True)


def probe(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, penalty: float, steps: int) -> torch.Tensor:
    """Fits a linear classifier to features, and returns the classes that it gives to others."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    linear = nn.Linear(train.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(linear(train), labels) + penalty * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return linear(test).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="data", help="the folder of CIFAR-10 (%(default)s)")
    parser.add_argument("--name", default="blockswap_resnet34_3m", help="the network (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels (%(default)s)")
    parser.add_argument("--images", type=int, help="training images, the first (all)")
    parser.add_argument("--penalty", type=float, default=1e-4, help="factor of the L2 penalty (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="most steps of L-BFGS (%(default)s)")
    parser.add_argument("--amp", choices=["bfloat16"], help="precision of the network (float32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few images of noise, and random weights alone")
    run_script(parser, run, name="blockswap_wrn16_1", size=16, steps=3, threads=1)


def run(options: argparse.Namespace) -> None:
    require_model(options.name, weights=not options.smoke)
    torch.set_num_threads(options.threads)
    keep_memory()
    kinds = {"random": False} if options.smoke else {"pretrained": True, "random": False}
    train, test = noise_images(16) if options.smoke else cifar_images(options.data_dir)
    train = train[0][: options.images], train[1][: options.images]
    dtype = torch.float32 if options.amp is None else torch.bfloat16
    print(
        f"{versions()}; {processor()}; {options.threads} thread\n{options.name}: linear classifier on its features, "
        f"{len(train[0]):,} training images of {options.size} px, {options.amp or 'float32'}, seed {options.seed}\n\n"
        f"{'weights':44}{'error, %':>9}{'seconds':>9}"
    )
    for kind, pretrained in kinds.items():
        start = time.perf_counter()
        torch.manual_seed(options.seed)
        model = timm.create_model(options.name, pretrained=pretrained).to(memory_format=torch.channels_last)
        tag = kind
        if pretrained:
            tag = f"{kind} ({model.pretrained_cfg['tag']})"
        else:
            minibatches = islice(loader(model, train, options.size), BN_MINIBATCHES)
            update_bn(((each, None) for each, _ in minibatches), model)
        model.eval()
        features = [features_of(model, each, options.size, dtype) for each in (train, test)]
        classes = probe(features[0], train[1], features[1], options.penalty, options.steps)
        error = 100 * (classes != test[1]).float().mean().item()
        print(f"{tag:44}{error:9.2f}{time.perf_counter() - start:9.0f}", flush=True)


if __name__ == "__main__":
    main()
