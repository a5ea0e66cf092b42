"""Encoders as teachers and students: their outputs, and a student of fewer layers.

An encoder reads passage and question together; the attention of its passage tokens on the question
is its alignment map. Encoders of different depths are compared at one third, two thirds and all of
their layers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from qalib.data.batching import MULTIPLE, inference_batches
from qalib.distill.alignment import TokenSpan
from qalib.distill.objective import Distillation
from qalib.distill.teacher_cache import Outputs, TeacherTargets
from qalib.errors import QalibError
from qalib.losses import DistillConfig
from qalib.models.bf16 import choose_precision
from qalib.models.encoder import EncoderReader
from qalib.progress import progress_bar
from qalib.training import TrainingTask, make_accelerator


def distilled_task(
    task: TrainingTask,
    spans: Sequence[TokenSpan],
    targets: TeacherTargets,
    config: DistillConfig,
    **options,
) -> TrainingTask:
    """The task with the objective of :class:`Distillation` (``options``) in place of its loss."""
    joint = Distillation(task.collate, spans, targets, config, **options)
    return replace(task, collate=joint.collate, loss=joint.loss, log_metrics=joint.log_metrics)


def teacher_outputs(
    reader: nn.Module, task: TrainingTask, precision: str = "auto", progress: str = ""
) -> Outputs:
    """Yield (rows, a reader's output for them) for all rows of a task, batched by length.

    ``progress``: the label of a progress bar, "" for none.
    """
    device = make_accelerator().device  # the one that training uses
    reader = reader.to(device).eval()
    bf16 = choose_precision(precision, device.type)[0] == "bf16"
    bar = progress_bar(len(task.lengths), progress, "window", show=bool(progress))
    multiple = getattr(reader, "multiple", MULTIPLE)
    for rows in inference_batches(task.lengths, 8192, multiple):
        batch = task.collate(rows).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            yield rows, reader(batch)
        bar.update(len(rows))
    bar.close()


def align_layers(reader: EncoderReader) -> int:
    """Add the attention of three evenly spaced layers to the reader's outputs.  -> 3"""
    layers = spread_layers(3, reader.encoder.config.num_hidden_layers)
    reader.align([max(1, layer) for layer in layers])
    return len(layers)


def spread_layers(count: int, depth: int) -> tuple[int, ...]:
    """``count`` of ``depth`` layers, evenly spaced up to the last, from 1: 3 of 6 are 2, 4, 6."""
    return tuple((i + 1) * depth // count for i in range(count))


def keep_layers(model: nn.Module, numbers: Sequence[int]) -> None:
    """Remove all layers of an encoder except the given ones, numbered from 1, in place.

    Raises QalibError if a number does not exist or none is given, and for a model whose layers are
    not in one list (ALBERT's layers share one) or differ from each other (ModernBERT's first).
    """
    config, depth = model.config, model.config.num_hidden_layers
    lists = [
        (owner, name, child)
        for owner in model.base_model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(lists) != 1:
        raise QalibError(
            f"the layers of {type(model).__name__} are not one list to choose from; name a folder "
            "of a model as the student."
        )
    wrong = [number for number in numbers if not 1 <= number <= depth]
    if wrong or not numbers:
        raise QalibError(f"there is no layer {(wrong or [0])[0]} of {depth} to keep.")
    owner, name, layers = lists[0]
    setattr(owner, name, nn.ModuleList(layers[number - 1] for number in numbers))
    for place, layer in enumerate(getattr(owner, name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # where a decoder caches keys and values
                module.layer_idx = place
    config.num_hidden_layers = len(numbers)
    for key, value in list(vars(config).items()):  # such as Longformer's attention_window
        if isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[number - 1] for number in numbers])
    with torch.device("meta"):
        same = type(model)(config).state_dict().keys() == model.state_dict().keys()
    if not same:
        raise QalibError(
            f"the layers of {type(model).__name__} have different weights, so these do not fit; "
            "name a folder of a model as the student."
        )
