"""Scores to compare the Fisher potential with: those of the paper's Table 1, and strong ones from the literature.

None of them changes the model; higher is better, as in its source. Dropout and stochastic depth are off, and BN is in
training mode unless stated otherwise.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from ..counts import require_counts
from ..messages import did_you_mean, listed, quote
from ..nets.cost import count
from ..nets.swap import is_activation
from .fisher import Score, at_least_float, fisher_balanced, fisher_potential, measure_blocks, set_scoring_modes
from .kernels import cast_like_images
from .probes import Blocks

__all__ = [
    "SCORES",
    "AfterTraining",
    "RankSum",
    "after",
    "compare_gradients",
    "count_agreements",
    "default_score",
    "fisher_printed",
    "gradient_norm",
    "has_relus",
    "images_of",
    "is_fast_in_bfloat16",
    "l2_norm",
    "log_determinant",
    "macs",
    "name_of",
    "naswot",
    "needs_float32",
    "params",
    "parts_of",
    "score_named",
    "synflow",
    "train_accuracy",
    "zico",
]


def fisher_printed(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, blocks: Blocks | None = None) -> float:
    """Sums Σ_c 1/(2N) Σ_n Σ_ij A² · g² over all blocks, as `fisher_potential` takes them: equation 2 as printed."""
    return sum(each.branch for each in measure_blocks(model, images, labels, _sum_of_squares, blocks))


def _sum_of_squares(product: torch.Tensor) -> torch.Tensor:
    return product.to(at_least_float(product)).square().sum(dtype=torch.float64)


def gradient_norm(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Sums the absolute gradients of the cross-entropy over all parameters (paper, section 4.2; Golub et al., 2019)."""
    with ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        set_scoring_modes(model, undo)
        # Gradients are taken of copies of the parameters, so that those of the parameters are kept.
        parameters = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
        logits = functional_call(model, parameters, images.contiguous())
        loss = F.cross_entropy(logits.to(at_least_float(logits)), labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return float(torch.stack([gradient.abs().sum(dtype=torch.float64) for gradient in gradients]).sum())


def l2_norm(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Takes the L2 norm of all parameters as one vector (paper, section 4.2); the minibatch is not used."""
    squares = [parameter.detach().double().square().sum() for parameter in model.parameters()]
    return float(torch.stack(squares).sum().sqrt())


def train_accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Measures the share of the minibatch that is classified correctly (paper, section 4.2)."""
    with ExitStack() as undo, torch.no_grad():
        set_scoring_modes(model, undo)
        return float((model(images.contiguous()).argmax(dim=1) == labels).double().mean())


def params(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Counts the parameters; the minibatch is not used."""
    return float(sum(parameter.numel() for parameter in model.parameters()))


def macs(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Counts the multiply-accumulates for one image of the size of `images`, which are not used otherwise."""
    _, channels, height, width = images.shape
    return float(count(model, (channels, height, width)).macs)


def naswot(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Takes log|det K_H|, how far apart the ReLUs' binary codes of the images are (Mellor et al., 2021, section 3).

    K_H counts the ReLUs that two images agree in. It is -inf where two images have the same code; an image that is
    there several times counts once. It is computed on the device and in the type of the images.
    """
    with ExitStack() as undo, torch.inference_mode(False), torch.no_grad():
        undo.enter_context(torch.autocast(images.device.type, enabled=False))
        set_scoring_modes(model, undo)
        cast_like_images(model, images, undo)
        kernel = count_agreements(model, images, undo)
        model(images)
    return log_determinant(kernel, images)


def has_relus(model: nn.Module) -> bool:
    """Whether all activations of a network are ReLUs: of others, and of gates of channels, `naswot` sees nothing."""
    activations = [module for module in model.modules() if is_activation(module)]
    return bool(activations) and all(isinstance(module, nn.ReLU) for module in activations)


def count_agreements(model: nn.Module, images: torch.Tensor, undo: ExitStack) -> torch.Tensor:
    """Makes the kernel K_H (N, N) of `naswot`, which the next forward pass of the images fills; `undo` ends that."""
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    if not relus:
        raise ValueError(
            f"{type(model).__name__} has no ReLU modules, whose codes naswot compares; use another score, as fisher"
        )
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)

    def compare(_: nn.Module, __: object, output: torch.Tensor) -> None:
        # A ReLU may overwrite its input, so the code is read from its output. The order of its numbers does not matter,
        # so it is that in memory.
        codes = output.detach().permute(0, *range(2, output.ndim), 1).flatten(1)
        # Sums of 0 and 1 are exact in float32 up to 2^24; autocast would round them.
        exact = torch.float32 if codes.shape[1] < 2**24 else torch.float64
        with torch.autocast(codes.device.type, enabled=False):
            active = torch.gt(codes, 0, out=torch.empty(codes.shape, dtype=exact, device=codes.device))
            both = (active @ active.T).double()
        # Two images agree in the ReLUs that both activate, and in those that neither does.
        own = both.diagonal()
        kernel.add_(2 * both + codes.shape[1] - own - own[:, None])

    for relu in relus:
        undo.callback(relu.register_forward_hook(compare).remove)
    return kernel


def log_determinant(kernel: torch.Tensor, images: torch.Tensor) -> float:
    """Takes log|det K_H| over the images, each once where it is there several times."""
    chosen: list[int] = []
    for index, row in enumerate((kernel == kernel.diagonal()).tolist()):
        # Only images of one code can be the same.
        if not any(row[other] and torch.equal(images[index], images[other]) for other in chosen):
            chosen.append(index)
    return float(torch.linalg.slogdet(kernel[chosen][:, chosen]).logabsdet)


def synflow(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Sums |θ ⊙ ∂R/∂θ| over the weights θ of convolutions and linear layers (Tanaka et al., 2020, equation 2).

    R is the sum of the logits for one image of ones, with the absolute values of all parameters, in float64. BN is in
    evaluation mode, as in the authors' code; on a fresh network that is BN left out (to its epsilon), the variant of
    zero-cost NAS (Abdelfattah et al., 2021). Warns if it overflows nevertheless.
    """
    with ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        set_scoring_modes(model, undo, train_norms=False)
        parameters = {name: each.detach().double().abs().requires_grad_() for name, each in model.named_parameters()}
        buffers = {name: each.double() for name, each in model.named_buffers() if each.is_floating_point()}
        ones = torch.ones(1, *images.shape[1:], dtype=torch.float64, device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            flow = functional_call(model, {**parameters, **buffers}, ones).sum()
        # Biases, and the scales and shifts of BN, have one dimension.
        weights = [parameter for parameter in parameters.values() if parameter.ndim > 1]
        gradients = torch.autograd.grad(flow, weights, materialize_grads=True)
    products = [(weight.detach() * gradient).abs().sum() for weight, gradient in zip(weights, gradients, strict=True)]
    score = float(torch.stack(products).sum())
    if not math.isfinite(score):
        warnings.warn(f"synflow of {type(model).__name__} overflows float64: {score}", RuntimeWarning, stacklevel=2)
    return score


def zico(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Sums log Σ_w E|g_w| / σ(g_w) over convolutions and linear layers (Li et al., 2023, equation 16).

    Mean and deviation are those of the gradients g of two minibatches, the two halves of `images`; weights whose
    gradients do not vary are left out. The deviation is that of g, as in the authors' code, not of |g|.
    """
    if len(images) < 4:
        raise ValueError(f"zico compares the gradients of two minibatches; give at least 4 images, not {len(images)}")
    half = len(images) // 2
    with ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        set_scoring_modes(model, undo)
        parameters = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
        # Biases, and the scales and shifts of BN, have one dimension.
        weights = [parameter for parameter in parameters.values() if parameter.ndim > 1]
        gradients = []
        for start in (0, half):
            some = slice(start, start + half)
            logits = functional_call(model, parameters, images[some].contiguous())
            loss = F.cross_entropy(logits.to(at_least_float(logits)), labels[some])
            gradients.append(torch.autograd.grad(loss, weights, materialize_grads=True))
    return compare_gradients(*gradients)


def compare_gradients(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Takes `zico` of the gradients of two minibatches by the weights of each layer."""
    score = 0.0
    for one, other in zip(first, second, strict=True):
        deviation = (one - other).abs().double() / 2
        ratio = (one.abs() + other.abs()).double() / 2 / deviation
        total = float(ratio[deviation > 0].sum())
        score += math.log(total) if total > 0 else 0.0
    return score


SCORES: dict[str, Score] = {
    "fisher": fisher_potential,
    "fisher-balanced": fisher_balanced,
    "fisher-printed": fisher_printed,
    "gradient-norm": gradient_norm,
    "l2-norm": l2_norm,
    "accuracy": train_accuracy,
    "params": params,
    "macs": macs,
    "naswot": naswot,
    "synflow": synflow,
    "zico": zico,
}

# With the same weights these rank genomes by 8 images as by 32, in half the time or less.
_OF_FEW_IMAGES = (fisher_potential, fisher_balanced, fisher_printed, gradient_norm, naswot)


def images_of(score: Score) -> int:
    """How many images a minibatch has by default."""
    return 8 if all(any(part is each for each in _OF_FEW_IMAGES) for _, part in parts_of(score)) else 32


def name_of(score: Score) -> str:
    """Names a score as `score_named` knows it, or by its own name; a part of a function with its arguments too."""
    known = next((name for name, each in SCORES.items() if each is score), None)
    if known is not None:
        return known
    if isinstance(score, functools.partial):
        arguments = [*map(repr, score.args), *(f"{key}={value!r}" for key, value in sorted(score.keywords.items()))]
        return f"{name_of(score.func)}({', '.join(arguments)})"
    return str(getattr(score, "__name__", type(score).__name__))


def score_named(score: Score | str | None, relus: bool = True) -> Score:
    """Finds a score by its name.

    Args:
        score: A name of `SCORES`, or several with `+` between them for the sum of their ranks, such as
            "fisher-balanced+naswot"; or a score, which is returned; or None for `default_score`.
        relus: Whether all activations of the networks are ReLUs (`has_relus`).

    Returns:
        The score.

    Raises:
        ValueError: There is no score of this name.
        TypeError: It is neither a name nor a function.
    """
    if score is None:
        return default_score(relus)
    if isinstance(score, str) and "+" in score:
        return RankSum.of([(name, score_named(name)) for name in map(str.strip, score.split("+"))])
    if isinstance(score, str):
        if score not in SCORES:
            raise ValueError(f"unknown score {quote(score)}; {did_you_mean(score, [*SCORES], f'use {listed(SCORES)}')}")
        return SCORES[score]
    if not callable(score):
        raise TypeError(f"a score is a name or a function of model, images and labels, not {type(score).__name__}")
    return score


def default_score(relus: bool = True) -> Score:
    """The score of a search that names none: of the ranks of Fisher potential and NASWOT, or the former alone.

    On trained networks this sum agrees better with accuracies than the Fisher potential, and from draw to draw (see
    `benchmarks/search`). `relus` is whether all activations of the networks are ReLUs (`has_relus`), as NASWOT needs.
    """
    return score_named("fisher+naswot" if relus else "fisher")


def needs_float32(score: Score) -> bool:
    """Whether a score runs its network on the images as they are, and so in float32, in which networks are made."""
    return any(
        isinstance(part, AfterTraining) or any(part is each for each in (gradient_norm, train_accuracy, zico))
        for _, part in parts_of(score)
    )


def is_fast_in_bfloat16(score: Score) -> bool:
    """Whether a score ranks networks in bfloat16 as in float32, but faster."""
    return all(part is fisher_potential or part is naswot for _, part in parts_of(score))


@dataclass(frozen=True)
class RankSum:
    """The sum of the ranks that candidates have by several scores, which a search computes from all of them.

    Args:
        parts: The scores, with a name for each.
    """

    parts: tuple[tuple[str, Score], ...]

    @classmethod
    def of(cls, parts: Iterable[tuple[str, Score]]) -> RankSum:
        """Makes a sum of scores by name; raises ValueError for a name that stands twice."""
        parts = tuple(parts)
        names = [name for name, _ in parts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{'+'.join(names)} has {quote(name)} {names.count(name)} times; use it once")
        return cls(parts)

    @property
    def __name__(self) -> str:
        """Names all parts, for the record of a search."""
        return "+".join(name for name, _ in self.parts)

    def __call__(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Raises TypeError: one network alone has no rank."""
        raise TypeError(f"{self.__name__} is a sum of ranks among candidates, and one network alone has none")


def parts_of(score: Score) -> tuple[tuple[str, Score], ...]:
    """The scores that are computed of a network, by name: those of a sum of ranks, or the score itself without one."""
    return score.parts if isinstance(score, RankSum) else (("", score),)


def after(score: Score, minibatches: int, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4) -> Score:
    """Makes the score "after n minibatches of training" (paper, Table 1); after 1 it is the score itself."""
    require_counts(minibatches=minibatches)
    if minibatches == 1:
        return score
    if isinstance(score, RankSum):
        trained = [(name, AfterTraining(part, minibatches, lr, momentum, weight_decay)) for name, part in score.parts]
        # The name says what the record of a search depends on.
        return RankSum(tuple((f"{name}{part.settings}", part) for name, part in trained))
    return AfterTraining(score, minibatches, lr, momentum, weight_decay)


@dataclass(frozen=True)
class AfterTraining:
    """A score of a copy of the model that is trained first: by SGD on all minibatches but the last, which is scored.

    The images it is given are split into that many minibatches of one size, in their order.
    """

    score: Score
    minibatches: int
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    @property
    def __name__(self) -> str:
        """Names the score and all settings that are not the default, for the record of a search."""
        return f"{name_of(self.score)}{self.settings}"

    @property
    def settings(self) -> str:
        """The end of the name: the number of minibatches, and what else is not the default."""
        changed = {each.name: value for each in fields(self)[2:] if (value := getattr(self, each.name)) != each.default}
        return f"_after_{self.minibatches}" + "".join(f"_{key}_{value}" for key, value in changed.items())

    def __call__(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Trains a copy of the model, all of it in training mode, and scores it; the model is not changed."""
        if len(images) % self.minibatches:
            raise ValueError(
                f"{len(images)} images do not split into {self.minibatches} minibatches of one size; "
                f"give {self.minibatches} times as many as one minibatch has"
            )
        size = len(images) // self.minibatches
        *training, last = zip(images.split(size), labels.split(size), strict=True)
        with torch.inference_mode(False), torch.enable_grad():
            model = copy.deepcopy(model).train().requires_grad_()
            optimizer = torch.optim.SGD(model.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)
            for some_images, some_labels in training:
                optimizer.zero_grad()
                logits = model(some_images)
                F.cross_entropy(logits.to(at_least_float(logits)), some_labels).backward()
                optimizer.step()
        return self.score(model, *last)
