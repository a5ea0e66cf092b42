"""A reader that skims: an encoder with a span head, and a skimmer.

answerer = load_skim_answerer()
answerer.answer("Who built the bridge?", passage)[0].text
print(answerer.reader.operating_point)
sentences, share = extract_sentences(answerer, "Who built the bridge?", passage)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from qalib.data.augment import sentence_starts
from qalib.data.batching import Batch, inference_batches
from qalib.data.schema import Example, check_example
from qalib.decoding import ReaderOutput
from qalib.inference import AnswerConfig, QuestionAnswerer
from qalib.models.encoder import EncoderReader
from qalib.skim.skimmer import Skimmer, SkimOutput
from qalib.skim.storage import DEFAULT_SKIMMER, load_calibration, load_skimmer

BF16_MIN_TOKENS = 256  # shorter inputs are not worth pruning in bf16 on a CPU (notebook 06)


class SkimReader(nn.Module):
    """An encoder reader with a skimmer, from Batch to ReaderOutput.

    In training every predictor is run, and blocks are pruned only with ``skims_in_training`` and
    after ``first_skim`` steps; in evaluation blocks are pruned as the skimmer is configured. The
    output's ``aux`` is a ``SkimOutput``.
    """

    def __init__(self, reader: EncoderReader, skimmer: Skimmer, skims_in_training: bool = False):
        super().__init__()
        self.reader, self.skimmer, self.tokenizer = reader, skimmer, reader.tokenizer
        self.skims_in_training = skims_in_training
        self.first_skim = 0  # first training step, from 0, that prunes
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # saved in checkpoints
        self.operating_point = ""  # description of the calibration, if there is one

    def train(self, mode: bool = True) -> "SkimReader":
        """Training mode; a frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        frozen = not any(p.requires_grad for p in self.reader.parameters())
        self.reader.train(mode and not frozen)
        return self

    def run(self, batch: Batch, skim: bool | None = None) -> SkimOutput:
        """The skimmer's output for a batch; ``skim`` as in ``Skimmer.run``."""
        inputs = dict(batch.inputs)
        if not self.reader.uses_types:
            inputs.pop("token_type_ids", None)
        passage = batch.mask.clone()
        passage[:, 0] = False  # [CLS] may be "no answer", but is not in the passage
        if skim is None and self.training:
            skim = self.skims_in_training and int(self.steps) >= self.first_skim
            self.steps += 1
        return self.skimmer.run(self.reader.encoder, passage=passage, skim=skim, **inputs)

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits at every position.  (B, L) -> start_logits, end_logits, mask, each (B, L)"""
        output = self.run(batch)
        return ReaderOutput(output.start_logits, output.end_logits, batch.mask, aux=output)


def load_skim_answerer(
    model: str | Path = "",
    skimmer: str | Path = "",
    config: AnswerConfig | None = None,
    *,
    device: str = "",
) -> QuestionAnswerer:
    """A question answerer that skims, with the reader of ``QuestionAnswerer.load``.

    ``skimmer``: its folder, by default that of ``model``; without both, the published ones.
    Without ``model``, the reader is the one in the skimmer's folder, if any. Raises QalibError if
    there is no skimmer, if it was trained with another reader, or if it has no threshold yet.
    """
    model, folder = skimmer_folders(model, skimmer)
    answerer = QuestionAnswerer.load(model, config, device)
    loaded = load_skimmer(folder, answerer.reader.encoder).to(answerer.device)
    reader = SkimReader(answerer.reader, loaded)
    lines = load_calibration(folder).describe().splitlines()
    reader.operating_point = "; ".join([*lines[:2], lines[-1]])
    on_cpu = answerer.device.type == "cpu"
    if on_cpu and answerer.precision == "bf16" and loaded.config.min_tokens:
        loaded.set_options(min_tokens=max(BF16_MIN_TOKENS, loaded.config.min_tokens))
    return QuestionAnswerer(reader, answerer.config)


def skimmer_folders(model: str | Path, skimmer: str | Path) -> tuple[str | Path, Path]:
    """The model and the skimmer's folder, of which one or both may be left out."""
    if skimmer and not model and (Path(skimmer) / "config.json").is_file():
        model = skimmer
    return model, Path(skimmer or model or DEFAULT_SKIMMER)


@dataclass(frozen=True)
class Sentence:
    """Characters [start, end) of a passage, and the highest probability of its blocks."""

    text: str
    start: int
    end: int
    probability: float


def extract_sentences(
    answerer: QuestionAnswerer, question: str, passage: str
) -> tuple[list[Sentence], float]:
    """The sentences to read for a question, and their share of the characters of all sentences.

    A sentence is kept if a block that it touches reaches the last threshold or has the highest
    score, however short the passage. Raises QalibError on empty text.
    """
    example = Example("question", question, passage)
    check_example(example, "passage and question")
    skimmer, given = answerer.reader.skimmer, answerer.reader.skimmer.config
    layer, threshold = skimmer.config.prune_layers[-1], skimmer.config.thresholds[-1]
    windows = answerer.make_windows([example])
    starts = sentence_starts(passage)
    best = np.zeros(len(starts))
    for rows in inference_batches(list(map(len, windows)), answerer.config.tokens_per_batch):
        chosen = [windows[row] for row in rows]
        try:
            skimmer.set_options(min_tokens=0, min_pruned_fraction=0.0)
            output = answerer.forward(answerer.collate(chosen, [example])).aux
        finally:
            skimmer.config = given
        scores = output.blocks.to_positions(output.scores[layer].sigmoid(), 0.0).cpu().numpy()
        for window, of_token in zip(chosen, scores, strict=True):
            number = np.searchsorted(starts, window.offsets[:, 1] - 1, side="right") - 1
            np.maximum.at(best, number, of_token[window.context_start :][: len(number)])
    sentences = []
    for start, end, score in zip(starts, [*starts[1:], len(passage)], best.tolist(), strict=True):
        text = passage[start:end].strip()
        start = passage.find(text, start)
        sentences.append(Sentence(text, start, start + len(text), score))
    limit = min(threshold, max(best))
    kept = [sentence for sentence in sentences if sentence.text and sentence.probability >= limit]
    total = sum(len(sentence.text) for sentence in sentences)
    return kept, sum(len(sentence.text) for sentence in kept) / total
