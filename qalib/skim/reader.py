"""A reader that skims: an encoder with a question-answering head, a skimmer beside it."""

from torch import nn

from qalib.data.batches import Batch
from qalib.skim.skimmer import Skimmer, SkimOutput
from qalib.spans import ReaderOutput


class SkimReader(nn.Module):
    """From Batch to ReaderOutput, like the encoder reader it is made of.

    In training every predictor is asked and all of a passage is read, unless ``skims_in_training``;
    in evaluation it skims as the skimmer is set. The output's ``attentions`` hold, beside nothing
    else: ``layer l`` (B, K), the predictor's logits, -inf or lowest where there is no block;
    ``blocks`` (B, L), the block of every position; ``read`` (B,), the share of the passage that
    was read to the end.
    """

    def __init__(self, reader: nn.Module, skimmer: Skimmer, skims_in_training: bool = False):
        super().__init__()
        self.reader, self.skimmer = reader, skimmer
        self.skims_in_training = skims_in_training

    @property
    def tokenizer(self):
        """The reader's tokenizer."""
        return self.reader.tokenizer

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
        if not self.reader.uses_types:
            inputs.pop("token_type_ids")
        passage = batch.mask.clone()
        passage[:, 0] = False  # [CLS] may be "no answer"; it is no part of the passage
        if skim is None:
            skim = self.skims_in_training if self.training else None
        model = self.reader.encoder
        return self.skimmer.run(model, **inputs, passage=passage, of=of, skim=skim)

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits over every position.  (B, L) -> start_logits, end_logits, mask, each (B, L)"""
        output = self.run(batch)
        told = {f"layer {number}": scores for number, scores in output.scores.items()}
        for number, (start, end) in output.early.items():
            told |= {f"start {number}": start, f"end {number}": end}
        told |= {"blocks": output.blocks.of, "read": output.read}
        return ReaderOutput(output.start_logits, output.end_logits, batch.mask, told)
