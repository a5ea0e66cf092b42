"""Answering questions with a byte-level reader: n-best spans of characters, whole passages.

    answerer = ByteAnswerer(reader)
    answerer.answer("Who built the bridge?", passage)[0].text

A passage is read in one piece, whatever its length, and once for all questions about it that are
in a batch. Predictions do not depend on the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from qalib.answer import Candidate
from qalib.data.batches import inference_batches
from qalib.data.byte_batches import QuestionRows
from qalib.data.byte_features import ByteConfig, padded_length, passage_features
from qalib.data.squad import Example, check_example
from qalib.errors import QalibError
from qalib.readers.byte_reader import ByteReader
from qalib.spans import best_spans
from qalib.train import choose_precision


@dataclass(frozen=True)
class ByteAnswerConfig:
    """How spans are decoded and how questions are batched."""

    text: ByteConfig = field(default_factory=ByteConfig)
    n_best: int = 1
    max_answer: int = 160  # positions; the longest gold answer of SQuAD's dev set has 160
    positions_per_batch: int = 32768  # padded passage positions, counted for every question
    precision: str = "auto"  # auto, fp32 or bf16

    def __post_init__(self):
        for name in ("n_best", "max_answer", "positions_per_batch"):
            if getattr(self, name) < 1:
                raise QalibError(f"{name} must be at least 1, not {getattr(self, name)}.")


class ByteAnswerer:
    """Answers questions with a byte-level reader, like :class:`qalib.answer.Answerer`."""

    def __init__(self, reader: ByteReader, config: ByteAnswerConfig = ByteAnswerConfig()):
        self.reader = reader.eval()
        self.config = config
        self.device = next(reader.parameters()).device
        self.precision, _ = choose_precision(config.precision, self.device.type)

    def answer(self, question: str, passage: str) -> list[Candidate]:
        """The n best answers to one question, best first. Raises QalibError on empty text."""
        return self.answer_many([Example("question", question, passage)])[0]

    def answer_many(
        self, examples: Sequence[Example], progress: bool = False
    ) -> list[list[Candidate]]:
        """The n best answers of different text to every question, in the order of ``examples``.

        A candidate's probability is its share of exp(score) among all spans of the passage.
        """
        from tqdm import tqdm

        for example in examples:
            check_example(replace(example, answers=()), f"question {example.id!r}")
        rows = QuestionRows(passage_features(examples, self.config.text), gold_only=False)
        found: dict[int, list[Candidate]] = {}
        lengths = [padded_length(length) for length in rows.lengths]
        plan = inference_batches(lengths, self.config.positions_per_batch)
        hidden = None if progress else True  # None: no bar where nobody watches a terminal
        with tqdm(total=len(rows), desc="answer", unit="question", disable=hidden) as bar:
            for chosen in plan:
                for row, candidates in zip(
                    chosen, self._score(rows, chosen, examples), strict=True
                ):
                    found[rows.example(row)] = candidates
                bar.update(len(chosen))
        return [found[index] for index in range(len(examples))]

    def predictions(self, examples: Sequence[Example], progress: bool = False) -> dict[str, str]:
        """Question id to best answer text: the official prediction format."""
        found = self.answer_many(examples, progress)
        return {e.id: best[0].text for e, best in zip(examples, found, strict=True)}

    @torch.inference_mode()
    def _score(
        self, rows: QuestionRows, chosen: list[int], examples: Sequence[Example]
    ) -> list[list[Candidate]]:
        batch = rows.collate(chosen).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.reader(batch)
        wanted = self.config.n_best if self.config.n_best == 1 else 8 * self.config.n_best
        best = best_spans(*output[:3], k=wanted, max_length=self.config.max_answer)
        shares = (best.scores - best.log_total[:, None]).exp()
        columns = (best.starts, best.ends, shares, best.scores)
        answers = []
        for row, *spans in zip(chosen, *(c.tolist() for c in columns), strict=True):
            passage, feature = examples[rows.example(row)].context, rows.feature(row)
            different: dict[str, Candidate] = {}
            for start, end, share, score in zip(*spans, strict=True):
                if score > -torch.inf:  # fewer spans than wanted: the rest scores -inf
                    a, b = feature.characters(start, end)
                    different.setdefault(passage[a:b], Candidate(passage[a:b], a, b, share, score))
            answers.append(list(different.values())[: self.config.n_best])
        return answers
