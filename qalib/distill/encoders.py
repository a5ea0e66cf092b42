"""Encoders as teachers and students: their outputs, fewer layers, attention on the question.

Notation: B batch, L positions, N question tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from qalib.data.batching import Batch, inference_batches
from qalib.data.schema import Example
from qalib.data.windows import Window
from qalib.decoding import ReaderOutput
from qalib.distill.alignment import TokenSpan, token_spans
from qalib.distill.objective import Distillation
from qalib.distill.teacher_cache import Outputs, TeacherTargets
from qalib.errors import QalibError
from qalib.losses import DistillConfig
from qalib.models.encoder import EncoderReader
from qalib.progress import progress_bar
from qalib.training import TrainingTask, choose_precision

ALIGNMENT = "align 1"  # the name of the attention map


def distilled_task(
    task: TrainingTask,
    spans: Sequence[TokenSpan],
    targets: TeacherTargets,
    config: DistillConfig,
    **options,
) -> TrainingTask:
    """A task with the distillation objective in place of its own loss."""
    joint = Distillation(task.collate, spans, targets, config, **options)
    return replace(task, collate=joint.collate, loss=joint.loss, log_metrics=joint.log_metrics)


def teacher_outputs(
    reader: nn.Module, task: TrainingTask, name: str = "teacher", progress: bool = False
) -> Outputs:
    """A reader's outputs for all rows of a task, in batches of similar length."""
    device = next(reader.parameters()).device
    bf16 = choose_precision("auto", device.type)[0] == "bf16"
    bar = progress_bar(len(task.lengths), name, "window", show=progress)
    for rows in inference_batches(task.lengths, 8192):
        batch = task.collate(rows).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            yield rows, reader(batch)
        bar.update(len(rows))
    bar.close()


def spread_layers(count: int, depth: int) -> tuple[int, ...]:
    """``count`` of ``depth`` layers at equal distances, with the last one: 3 of 6 are 2, 4, 6."""
    return tuple((i + 1) * depth // count for i in range(count))


def keep_layers(model: nn.Module, numbers: Sequence[int]) -> None:
    """Remove all layers of an encoder but those of the given numbers, counted from 1, in place.

    Raises QalibError for a number that does not exist, and for a model whose layers are not one
    list (ALBERT shares one).
    """
    config = model.config
    depth = config.num_hidden_layers
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
    config.num_hidden_layers = len(numbers)
    for key, value in list(vars(config).items()):  # such as Longformer's attention_window
        if isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[number - 1] for number in numbers])


class AlignmentReader(EncoderReader):
    """An encoder whose output has the attention of its last layer on the question.

        E_ij = sum_h a_h(j, i) / sum_i' sum_h a_h(j, i')     i question tokens, j positions

    a_h(j, i): attention of head h from position j to i. The output's ``attentions`` are "align 1",
    E (B, L, N), and "question" (B, N) bool, the real tokens. Attention is computed step by step,
    since fused kernels do not return it.
    """

    def __init__(self, reader: EncoderReader):
        super().__init__(reader.encoder, reader.tokenizer)
        self.place = question_place(reader.tokenizer)
        self.last: Tensor | None = None  # (B, H, L, L) of the current batch
        self.encoder.set_attn_implementation("eager")
        self.encoder.register_forward_pre_hook(
            lambda _, args, named: (args, named | {"output_attentions": True}), with_kwargs=True
        )
        self.encoder.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _args: tuple, output) -> None:
        maps = output.attentions
        if not maps or maps[-1] is None or maps[-1].ndim != 4:
            raise QalibError(
                f"{type(self.encoder).__name__} does not return its attention; set the weight of "
                "attention to 0."
            )
        self.last = maps[-1]

    def forward(self, batch: Batch) -> ReaderOutput:
        """As of :class:`EncoderReader`, with the two attentions."""
        output = super().forward(batch)
        attention, self.last = self.last.float().mean(dim=1), None  # (B, L, L)
        begin, gap = self.place
        tokens = output.mask.int().argmax(dim=1) - begin - gap  # of the question, (B,)
        count = int(tokens.max())
        question = torch.arange(count, device=tokens.device) < tokens[:, None]
        table = attention[:, :, begin : begin + count].masked_fill(~question[:, None], 0.0)
        table = table / table.sum(dim=2, keepdim=True).clamp(min=1e-9)
        return output._replace(attentions={ALIGNMENT: table, "question": question})


def question_place(tokenizer) -> tuple[int, int]:
    """Special tokens before the question, and between it and the passage."""
    parts = tokenizer("a", "b").sequence_ids()
    last = len(parts) - 1 - parts[::-1].index(0)
    return parts.index(0), parts.index(1) - last - 1


def question_spans(
    windows: Sequence[Window], examples: Sequence[Example], tokenizer
) -> list[TokenSpan]:
    """The token spans of windows, with the number of question tokens that attention covers."""
    special = sum(question_place(tokenizer))
    return [
        span._replace(question_tokens=window.context_start - special)
        for span, window in zip(token_spans(windows, examples), windows, strict=True)
    ]
