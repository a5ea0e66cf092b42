"""A reader that skims: an encoder with a question-answering head, a skimmer beside it."""

from pathlib import Path

from torch import nn

from qalib.data.batches import Batch
from qalib.errors import QalibError
from qalib.skim.skimmer import Skimmer, SkimOutput
from qalib.skim.storage import load_skimmer
from qalib.skim.wishes import Wish, load_calibration
from qalib.spans import ReaderOutput


class SkimReader(nn.Module):
    """From Batch to ReaderOutput, like the encoder reader it is made of.

    In training every predictor is asked and all of a passage is read, unless ``skims_in_training``;
    in evaluation it skims as the skimmer is set. The output's ``attentions`` hold, beside nothing
    else: ``layer l`` (B, K), the predictor's logits, -inf or lowest where there is no block;
    ``blocks`` (B, L), the block of every position; ``read`` (B,), the share of the passage that
    was read to the end; ``dropped`` (B,) bool, and ``best`` (B,), see ``SkimOutput``. A batch's
    inputs may hold ``blocks`` (B, L), cut elsewhere, and ``optional`` (B,), see ``Skimmer.run``.
    """

    def __init__(self, reader: nn.Module, skimmer: Skimmer, skims_in_training: bool = False):
        super().__init__()
        self.reader, self.skimmer = reader, skimmer
        self.skims_in_training = skims_in_training
        self.promise = ""  # what a wish was granted with

    @classmethod
    def load(
        cls,
        reader: nn.Module,
        folder: str | Path,
        beside: str = "",
        wish: Wish | None = None,
        drop: float | None = None,
    ) -> "SkimReader":
        """A reader with the skimmer in a folder, which is to have been trained ``beside`` it.

        ``wish`` and ``drop`` change how the skimmer is set. Raises QalibError as ``load_skimmer``,
        if the wish cannot be granted, and if ``drop`` would take back what it was granted with.
        """
        skims = cls(reader, load_skimmer(folder, reader.encoder, reader=beside))
        if wish is not None:
            calibration = load_calibration(folder)
            point = calibration.grant(wish)
            skims.skimmer.tune(**point.settings)
            skims.promise = calibration.promise(point)
            if drop is not None and drop > point.threshold:
                raise QalibError(
                    f"windows below {drop:g} cannot be dropped, as the wish was granted with a "
                    f"threshold of {point.threshold:.4f}; drop below that at most."
                )
            skims.skimmer.tune(drop=min(skims.skimmer.config.drop, point.threshold))
        if drop is not None:
            skims.skimmer.tune(drop=drop)
        return skims

    @property
    def tokenizer(self):
        """The reader's tokenizer."""
        return self.reader.tokenizer

    @property
    def drops(self) -> bool:
        """Whether it may leave windows of long passages."""
        return self.skimmer.config.drop > 0

    @property
    def frozen(self) -> bool:
        """Whether nothing of the encoder is trained."""
        return not any(p.requires_grad for p in self.reader.parameters())

    def train(self, mode: bool = True) -> "SkimReader":
        """Training mode; a frozen encoder stays as it answers, without dropout."""
        super().train(mode)
        self.reader.train(mode and not self.frozen)
        return self

    def run(self, batch: Batch, skim: bool | None = None) -> SkimOutput:
        """The skimmer's own account of a batch; ``skim`` as of ``Skimmer.run``."""
        inputs = dict(batch.inputs)
        of = inputs.pop("blocks", None)  # blocks cut elsewhere, at sentences for instance
        optional = inputs.pop("optional", None)
        if not self.reader.uses_types:
            inputs.pop("token_type_ids")
        passage = batch.mask.clone()
        passage[:, 0] = False  # [CLS] may be "no answer"; it is no part of the passage
        if skim is None:
            skim = self.skims_in_training if self.training else None
        model = self.reader.encoder
        more = {"passage": passage, "of": of, "skim": skim, "optional": optional}
        return self.skimmer.run(model, **inputs, **more)

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits over every position.  (B, L) -> start_logits, end_logits, mask, each (B, L)"""
        output = self.run(batch)
        told = {f"layer {number}": scores for number, scores in output.scores.items()}
        for number, (start, end) in output.early.items():
            told |= {f"start {number}": start, f"end {number}": end}
        told |= {"blocks": output.blocks.of, "read": output.read}
        told |= {"dropped": output.dropped, "best": output.best}
        return ReaderOutput(output.start_logits, output.end_logits, batch.mask, told)
