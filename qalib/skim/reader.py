"""A reader that skims: an encoder with a span head, and a skimmer.

answerer = load_skim_answerer(target=OperatingPointTarget(min_recall=0.995))
answerer.answer("Who built the bridge?", passage)[0].text
print(answerer.reader.operating_point)
"""

from pathlib import Path

from torch import nn

from qalib.data.batching import Batch
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.models.encoder import EncoderReader
from qalib.models.pretrained import DEFAULT_CHECKPOINT, checkpoint_hash
from qalib.models.pretrained import SETTINGS as READER_SETTINGS
from qalib.skim.calibration import OperatingPointTarget, load_calibration
from qalib.skim.skimmer import Skimmer, SkimOutput
from qalib.skim.storage import DEFAULT_SKIMMER, load_skimmer

BF16_MIN_TOKENS = 256  # shorter inputs are not worth pruning in bf16 on a CPU (notebook 06)


class SkimReader(nn.Module):
    """From Batch to ReaderOutput, like the encoder reader it is made of.

    In training every predictor is run and nothing is pruned, unless ``skims_in_training``; in
    evaluation it prunes as the skimmer is set. The output's ``aux`` is a ``SkimOutput``. A batch's
    inputs may have ``block_ids`` (B, L), given blocks, and ``optional`` (B,), see ``Skimmer.run``.
    """

    def __init__(self, reader: EncoderReader, skimmer: Skimmer, skims_in_training: bool = False):
        super().__init__()
        self.reader, self.skimmer = reader, skimmer
        self.skims_in_training = skims_in_training
        self.operating_point = ""  # description of the calibrated one, where one was selected

    @property
    def tokenizer(self):
        """The reader's tokenizer."""
        return self.reader.tokenizer

    @property
    def drops_windows(self) -> bool:
        """Whether windows of long passages may be dropped; see ``qalib.inference``."""
        return self.skimmer.config.window_threshold > 0

    def train(self, mode: bool = True) -> "SkimReader":
        """Training mode; a frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        frozen = not any(p.requires_grad for p in self.reader.parameters())
        self.reader.train(mode and not frozen)
        return self

    def run(self, batch: Batch, skim: bool | None = None) -> SkimOutput:
        """The skimmer's output for a batch; ``skim`` as of ``Skimmer.run``."""
        inputs = dict(batch.inputs)
        if not self.reader.uses_types:
            inputs.pop("token_type_ids")
        passage = batch.mask.clone()
        passage[:, 0] = False  # [CLS] may be "no answer"; it is no part of the passage
        if skim is None:
            skim = self.skims_in_training if self.training else None
        return self.skimmer.run(self.reader.encoder, passage=passage, skim=skim, **inputs)

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits at every position.  (B, L) -> start_logits, end_logits, mask, each (B, L)"""
        output = self.run(batch)
        return ReaderOutput(output.start_logits, output.end_logits, batch.mask, aux=output)


def load_skim_answerer(
    checkpoint: str | Path = "",
    config: AnswerConfig | None = None,
    skimmer: str | Path = "",
    target: OperatingPointTarget | None = None,
    window_threshold: float | None = None,
) -> QuestionAnswerer:
    """A question answerer that skims, with a reader as ``QuestionAnswerer.load`` makes it.

    ``skimmer``: folder of the skimmer, by default that of ``checkpoint``, or the published one of
    the published reader. ``target`` selects a calibrated operating point and ``window_threshold``
    drops windows of long passages (see ``SkimConfig``); otherwise the skimmer's own settings apply.
    Raises QalibError if there is no skimmer, if it was trained with another reader, if no operating
    point meets the target, and for a window threshold above that of the operating point.
    """
    answerer = QuestionAnswerer.load(checkpoint, config)
    home = Path(checkpoint or DEFAULT_CHECKPOINT)
    folder = Path(skimmer or checkpoint or DEFAULT_SKIMMER)
    trained_with = checkpoint_hash(home) if (home / READER_SETTINGS).is_file() else ""
    loaded = load_skimmer(folder, answerer.reader.encoder, reader_hash=trained_with)
    reader = SkimReader(answerer.reader, loaded.to(answerer.device))
    _set_operating_point(reader, folder, target, window_threshold)
    on_cpu = answerer.device.type == "cpu"
    if on_cpu and answerer.precision == "bf16" and target is None and loaded.config.min_tokens:
        loaded.set_options(min_tokens=max(BF16_MIN_TOKENS, loaded.config.min_tokens))
    return QuestionAnswerer(reader, answerer.config)


def _set_operating_point(
    reader: SkimReader,
    folder: Path,
    target: OperatingPointTarget | None,
    window_threshold: float | None,
) -> None:
    skimmer = reader.skimmer
    if target is not None:
        calibration = load_calibration(folder)
        point = calibration.select(target)
        reader.operating_point = calibration.describe(point)
        if window_threshold is not None and window_threshold > point.threshold:
            raise QalibError(
                f"a window threshold of {window_threshold:g} would drop more than the operating "
                f"point allows, whose threshold is {point.threshold:.4f}; choose at most that."
            )
        window = min(skimmer.config.window_threshold, point.threshold)
        skimmer.set_options(**point.options, window_threshold=window)
    if window_threshold is not None:
        skimmer.set_options(window_threshold=float(window_threshold))
