"""Attention transfer (Zagoruyko and Komodakis, 2017): a student learns where its teacher's stages are active."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher, TrainingTask, resolve_classification_loss
from timm.task.distillation import FeatureDistillationTrainableModule
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..counts import require_counts
from ..data.statistics import model_data_config

__all__ = ["AttentionTransferTask", "TeacherOutputs", "attention_maps", "attention_transfer_loss"]

Mode = Literal["code", "paper"]

_logger = logging.getLogger(__name__)


def attention_maps(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Makes the attention map of each feature map: the mean of A² over channels, over its L2 norm per image.

    Args:
        features: Feature maps (N, C, H, W).

    Returns:
        Attention maps (N, H, W), in float32 or finer, and zero where an image has no activation.
    """
    return [_attention_map(feature) for feature in features]


def _attention_map(feature: torch.Tensor) -> torch.Tensor:
    # Squares and norms of bfloat16 and float16 lose digits or overflow; autocast leaves these operations as they come.
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    energy = feature.square().mean(dim=1)
    return F.normalize(energy.flatten(1)).view_as(energy)


def attention_transfer_loss(
    student_features: Sequence[torch.Tensor],
    teacher_features: Sequence[torch.Tensor],
    beta: float = 1000.0,
    mode: Mode = "code",
) -> torch.Tensor:
    """Measures how far a student's attention is from its teacher's, at L pairs of features (N, C, H, W).

    Height and width of a pair must agree, channels need not. No gradient flows to the teacher's features.

    Args:
        student_features: Feature maps of the student.
        teacher_features: Those of the teacher.
        beta: Weight of the loss.
        mode: With q the attention maps, 'code' is what the authors' code trains with, β · 3/L · Σ_stages
            mean((q_s - q_t)²), the mean over images and positions. 'paper' is the paper's equation 1,
            β · Σ_stages mean(‖q_s - q_t‖₂), with the norm of each image over positions and the mean over images.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: Sizes differ, or there is no such mode.
    """
    _check_mode(mode)
    return _loss_of_maps(attention_maps(student_features), attention_maps(teacher_features), beta, mode)


def _loss_of_maps(
    student_maps: Sequence[torch.Tensor], teacher_maps: Sequence[torch.Tensor], beta: float, mode: Mode
) -> torch.Tensor:
    student_sizes, teacher_sizes = _sizes(student_maps), _sizes(teacher_maps)
    if student_sizes != teacher_sizes:
        raise ValueError(
            f"the student's maps are {', '.join(student_sizes)} and the teacher's {', '.join(teacher_sizes)} "
            "(images x height x width); choose stages, and give both networks images, of the same sizes"
        )
    gaps = [student - teacher.detach() for student, teacher in zip(student_maps, teacher_maps, strict=True)]
    if mode == "paper":
        return beta * torch.stack([torch.linalg.vector_norm(gap, dim=(1, 2)).mean() for gap in gaps]).sum()
    return beta * 3 / len(gaps) * torch.stack([gap.square().mean() for gap in gaps]).sum()


def _sizes(maps: Sequence[torch.Tensor]) -> list[str]:
    return ["x".join(map(str, each.shape)) for each in maps]


def _check_mode(mode: str) -> None:
    if mode not in ("code", "paper"):
        raise ValueError(f"mode is 'code' or 'paper', not {mode!r}")


class _Student(FeatureDistillationTrainableModule):
    """The student as DDP, EMA and optimizers see it: its parameters are named `student.…`, as in timm's own task."""

    def __init__(self, student: nn.Module, stages: Sequence[int]) -> None:
        super().__init__(student)
        self.stages = list(stages)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:  # type: ignore[override]
        """Gives logits and attention maps, in one pass."""
        student: Any = self.student
        if not self.stages:
            return student(input), []
        features, intermediates = student.forward_intermediates(input, indices=self.stages)
        return student.forward_head(features), attention_maps(intermediates)


class TeacherOutputs(NamedTuple):
    """A teacher's outputs for a minibatch: attention maps of its stages, and logits if soft labels are used."""

    maps: list[torch.Tensor]
    logits: torch.Tensor | None = None


def _run_teacher(model: Any, input: torch.Tensor, stages: list[int], logits: bool) -> TeacherOutputs:
    if not stages:
        return TeacherOutputs([], model(input) if logits else None)
    if not logits:
        maps = model.forward_intermediates(input, indices=stages, stop_early=True, intermediates_only=True)
        return TeacherOutputs(attention_maps(maps))
    features, maps = model.forward_intermediates(input, indices=stages)
    return TeacherOutputs(attention_maps(maps), model.forward_head(features))


class AttentionTransferTask(TrainingTask):
    """Trains a student by attention transfer, and by hard and soft labels, from any frozen network of timm.

    The teacher stays in evaluation mode and gets the images in its own normalisation, where both networks have a
    `pretrained_cfg`.

    With soft labels of weight 0.9 the loss is 0.1 · cross-entropy + 0.9 · T² · KL(teacher ‖ student), the logits of
    both over the temperature T (Hinton et al., arXiv:1503.02531), + attention transfer. It is the loss of timm's
    `LogitDistillationTask` with a `task_loss_weight` of 0.1, from the same pass of each network.

    Args:
        student: The network to train.
        teacher: A network, the name of one that timm has weights for, or timm's `DistillationTeacher`.
        criterion: The loss of hard labels; cross-entropy by default.
        beta: Weight of attention transfer; the paper has 1000 for CIFAR and 750 for ImageNet. With 0 no stages are
            compared, so that soft labels can come from any network that classifies.
        mode: Form of the loss, as of `attention_transfer_loss`.
        stages: Indices, in `feature_info`, of the outputs to compare: of both networks, unless `teacher_stages` is
            given. Where both are left out it is every output of the student but the stem's, and, where the teacher has
            more, those of its outputs that have the same reductions.
        teacher_stages: Those of the teacher.
        soft_labels: Weight, 0 to 1, of the teacher's soft labels; hard labels have the rest.
        temperature: Temperature of soft labels.
        teacher_size: Side in pixels to which the teacher's images are resized, for one that knows larger images than
            the student's; None gives it the student's. Attention is compared where the maps have one size.
        criterion_kwargs: Arguments for timm's choice of a criterion.
        device: The device of the task.
        dtype: The type of the task's buffers.
        verbose: Whether to log the settings.

    Raises:
        TypeError: A network does not give features as timm's do.
        ValueError: Numbers of outputs, channels or classes of the networks differ, or a setting is out of its range.

    Example:
        ```python
        task = AttentionTransferTask(student, teacher, beta=1000).train()
        task(images, labels)["loss"].backward()
        ```
    """

    student_mean: torch.Tensor | None
    student_std: torch.Tensor | None

    def __init__(
        self,
        student: nn.Module,
        teacher: str | nn.Module | DistillationTeacher,
        criterion: nn.Module | Callable[..., torch.Tensor] | None = None,
        beta: float = 1000.0,
        mode: Mode = "code",
        stages: Sequence[int] | None = None,
        teacher_stages: Sequence[int] | None = None,
        soft_labels: float = 0.0,
        temperature: float = 4.0,
        teacher_size: int | None = None,
        criterion_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        _check_mode(mode)
        inner = unwrap_model(student)
        if not isinstance(teacher, DistillationTeacher):
            teacher = DistillationTeacher(
                teacher,
                # A head of other classes would be a new one, whose soft labels are noise: it keeps its own.
                num_classes=None if soft_labels else getattr(inner, "num_classes", None),
                in_chans=getattr(inner, "in_chans", 3),
                device=self.device,
                dtype=self.dtype,
            )
        own = others = []
        if beta:
            own = _stages_of(student, stages, "student")
            others = _stages_of(teacher.model, stages if teacher_stages is None else teacher_stages, "teacher")
        if stages is None and teacher_stages is None and len(others) > len(own):
            others = _stages_like(student, own, teacher.model, others)
        if len(own) != len(others):
            raise ValueError(
                f"the student has {_described(student, own)} and the teacher {_described(teacher.model, others)}; "
                "name as many of each, of the same reductions, by stages=(…) and teacher_stages=(…), or use beta=0 "
                "for soft labels alone"
            )
        self.trainable_module: nn.Module = _Student(student, own)
        self.teacher = teacher.eval().requires_grad_(False)
        self.teacher_stages = others
        self.beta = beta
        self.mode: Mode = mode
        if not 0 <= soft_labels <= 1 or not temperature > 0:
            raise ValueError(f"soft_labels is 0 to 1 and temperature above 0, not {soft_labels} and {temperature}")
        classes = [getattr(model, "num_classes", None) for model in (inner, unwrap_model(teacher.model))]
        if soft_labels and classes[0] != classes[1]:
            raise ValueError(
                f"soft labels are for a teacher of the student's {classes[0]} classes, this one has {classes[1]}; use "
                "soft_labels=0, which leaves attention transfer"
            )
        require_counts(teacher_size=teacher_size)
        self.soft_labels, self.temperature, self.teacher_size = soft_labels, temperature, teacher_size
        self.criterion = resolve_classification_loss(criterion, self.device, criterion_kwargs=criterion_kwargs)
        models = inner, unwrap_model(teacher.model)
        channels = [getattr(model, "in_chans", None) for model in models]
        if None not in channels and channels[0] != channels[1]:
            raise ValueError(
                f"the student has in_chans={channels[0]} and the teacher in_chans={channels[1]}; use the same for both"
            )
        ours, theirs = map(model_data_config, models)
        # timm takes a teacher without cfg to be normalised as for ImageNet; better not to convert than wrongly.
        # Equal normalisations are not handed on either: timm would compare them at each minibatch, and wait for a GPU.
        known = all((getattr(model, "pretrained_cfg", None) or {}).get("mean") for model in models)
        convert = known and any(ours[name] != theirs[name] for name in ("mean", "std"))
        for name in ("mean", "std"):
            value = self._per_channel(ours[name]) if convert else None
            self.register_buffer(f"student_{name}", value, persistent=False)
            # timm goes by the cfg of the teacher's weights, which may have another number of channels.
            if value is not None and getattr(teacher, f"{name}_kd").shape != value.shape:
                setattr(teacher, f"{name}_kd", self._per_channel(theirs[name]))
        self._run_teacher: Callable[..., TeacherOutputs] = _run_teacher
        if verbose:
            _logger.info(
                f"AttentionTransferTask: {mode=}, {beta=}, stages {own} of the student, {others} of the teacher"
            )

    def _per_channel(self, values: Sequence[float]) -> torch.Tensor:
        """Puts one number a channel into the shape of images."""
        return torch.tensor(values, device=self.device, dtype=self.dtype).view(1, -1, 1, 1)

    def train(self, mode: bool = True) -> AttentionTransferTask:
        """Sets the mode of the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> AttentionTransferTask:
        """Wraps the student in DistributedDataParallel; the teacher has nothing to synchronise."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(  # type: ignore[override]
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module:
        """Compiles the student, for training and for evaluation, and the teacher; returns the one for evaluation."""
        compiled: Any = functools.partial(torch.compile, backend=backend, mode=mode, **compile_kwargs)
        self.eval_model: nn.Module = compiled(unwrap_model(self.trainable_module).student)
        self.trainable_module = compiled(self.trainable_module)
        self._run_teacher = compiled(_run_teacher)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Returns the student, or its average, as a network that gives logits only."""
        resolved = super().get_eval_model(module=module, ema=ema)
        inner = unwrap_model(resolved)
        return inner.student if isinstance(inner, _Student) else resolved

    @torch.no_grad()
    def teacher_outputs(self, input: torch.Tensor) -> TeacherOutputs:
        """Computes the teacher's outputs for images; several students can share them.

        Args:
            input: Images (N, C, H, W), normalised for the student, of its size.

        Returns:
            What `forward` of each task takes.
        """
        size = input.shape[-2:] if self.teacher_size is None else (self.teacher_size, self.teacher_size)
        if input.shape[-2:] != size:
            # Antialiased bicubic interpolation is Pillow's, by which timm's loaders resize.
            input = F.interpolate(input, size, mode="bicubic", antialias=True)
        input = self.teacher.normalize_input(input, self.student_mean, self.student_std)
        return self._run_teacher(self.teacher.model, input, self.teacher_stages, self.soft_labels > 0)

    def forward(
        self, input: torch.Tensor, target: torch.Tensor, teacher_outputs: TeacherOutputs | None = None
    ) -> dict[str, torch.Tensor]:
        """Computes the loss on a minibatch.

        Args:
            input: Images (N, C, H, W), normalised for the student.
            target: Labels (N,).
            teacher_outputs: What `teacher_outputs()` returned for the same images; the teacher is then not run.

        Returns:
            `loss`; its parts before they are weighted, `task_loss`, `attention_loss` (with its beta) and, where there
            are soft labels, `soft_loss`; and `output`, the logits.
        """
        output, student_maps = self.trainable_module(input)
        if teacher_outputs is None:
            teacher_outputs = self.teacher_outputs(input)
        task_loss = self.criterion(output, target)
        attention_loss = task_loss.new_zeros(())
        if self.beta:
            attention_loss = _loss_of_maps(student_maps, teacher_outputs.maps, self.beta, self.mode)
        result = {"output": output, "task_loss": task_loss, "attention_loss": attention_loss}
        if not self.soft_labels:
            return {"loss": task_loss + attention_loss, **result}
        assert teacher_outputs.logits is not None
        # In float32 or finer, as the attention maps: autocast does the same to softmax.
        ours, theirs = (
            F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature, dim=-1)
            for logits in (output, teacher_outputs.logits)
        )
        soft_loss = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        loss = (1 - self.soft_labels) * task_loss + self.soft_labels * soft_loss + attention_loss
        return {"loss": loss, **result, "soft_loss": soft_loss}


def _stages_of(model: nn.Module, indices: Sequence[int] | None, whose: str) -> list[int]:
    """Lists the stages asked for, or all but the stem, from the first on."""
    for name in ("feature_info", "forward_intermediates", "forward_head"):
        if not hasattr(model, name):
            raise TypeError(
                f"the {whose}, {type(model).__name__}, has no {name}; make it with timm.create_model, "
                "and leave wrapping it to prepare_distributed"
            )
    count = len(_feature_info(model))
    if indices is None:
        # A stem goes by another name than the stages do: conv1 or act1 before layer1, stem before s1 or stages.0.
        names = [info["module"].rstrip(".0123456789") for info in _feature_info(model)[:2]]
        return list(range(len(set(names)) - 1, count))
    stages = [index + count if index < 0 else index for index in indices]
    # timm returns intermediates from first to last, whatever the order of the indices.
    if not stages or stages != sorted({*range(count)} & {*stages}):
        raise ValueError(f"stages of the {whose} are different indices from 0 to {count - 1}, in order, not {indices}")
    return stages


def _stages_like(student: nn.Module, own: list[int], teacher: nn.Module, others: list[int]) -> list[int]:
    """Picks, of the teacher's stages, the last of each reduction that the student has; all where one is missing."""
    last = {_feature_info(teacher)[stage]["reduction"]: stage for stage in others}
    reductions = [_feature_info(student)[stage]["reduction"] for stage in own]
    return [last[each] for each in reductions] if {*reductions} <= last.keys() else others


def _described(model: nn.Module, stages: list[int]) -> str:
    reductions = ", ".join(str(_feature_info(model)[stage]["reduction"]) for stage in stages)
    return f"{len(stages)} stages ({', '.join(map(str, stages))}, of reduction {reductions})"


def _feature_info(model: nn.Module) -> Sequence[dict[str, Any]]:
    info: Any = model.feature_info
    return info
