"""Answer questions with a trained reader: n-best spans with probabilities, any passage length.

    answerer = QuestionAnswerer.load()
    answerer.answer("Who built the bridge?", passage)[0].text

A long passage is split into overlapping windows. The probability of a span is its share of the
spans of all windows, ``exp(score) / sum exp(score')``; if the windows allow "no answer", that
counts as one more span. Predictions do not depend on what else is in the batch.

A reader that skims (``qalib.skim.reader.SkimReader``) is used like any encoder reader; the ``aux``
of its output has ``token_fraction`` (B,), the share of each passage that all layers processed.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from qalib.data.batching import MULTIPLE, Batch, collate, inference_batches, padded_length
from qalib.data.bytes import PASSAGE_MULTIPLE, ByteConfig, QuestionRows, passage_features
from qalib.data.schema import Example, check_example
from qalib.data.windows import LazyWindows, Window, WindowConfig, check_windows, fit_windows
from qalib.data.words import WordConfig, WordWindow, collate_words, word_windows
from qalib.decoding import ReaderOutput, decode_spans
from qalib.errors import QalibError
from qalib.models.bf16 import choose_precision, to_bf16
from qalib.models.byte_reader import ByteReader
from qalib.models.encoder import EncoderReader
from qalib.models.folders import first_line
from qalib.models.mnemonic_reader import MnemonicReader
from qalib.models.pretrained import load_reader, windows_of
from qalib.progress import progress_bar
from qalib.settings import settings

# What transformers models raise on inputs or weights that do not fit.
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, NotImplementedError)
Count = Annotated[int, Field(ge=1)]
Precision = Literal["auto", "fp32", "bf16"]


@settings
class AnswerConfig:
    """How spans are decoded and how inputs are batched."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    n_best_size: Count = 1
    max_answer_length: Count = 30  # in tokens
    null_score_diff_threshold: float = 0.0  # SQuAD 2.0: no answer if null - best span is above
    tokens_per_batch: Count = 8192  # padded tokens
    precision: Precision = "auto"


@settings
class ByteAnswerConfig:
    """How the spans of a byte-level reader are decoded and how questions are batched."""

    text: ByteConfig = field(default_factory=ByteConfig)
    n_best_size: Count = 1
    max_answer_length: Count = 160  # in positions, as in the longest answer of SQuAD's dev set
    positions_per_batch: Count = 32768  # padded passage positions, counted once per question
    precision: Precision = "auto"


@dataclass(frozen=True)
class AnswerCandidate:
    """One answer: characters [start, end) of the passage; "no answer" is "" at [0, 0)."""

    text: str
    start: int
    end: int
    probability: float
    score: float  # start logit + end logit


@dataclass(frozen=True)
class Prediction:
    """The answers to one question, and how much of the passage was processed."""

    candidates: list[AnswerCandidate]  # best first
    token_fraction: float  # share of passage tokens that all layers process; 1 without skimming
    windows: int = 1  # number of windows of the passage
    null_odds: float | None = None  # score of "no answer" minus the best span's


class _Answering:
    """Base of all question answerers; subclasses define ``predict(examples, progress)``."""

    def __init__(self, reader: nn.Module, config):
        self.reader = reader.eval()
        self.config = config
        self.device = next(reader.parameters()).device
        self.precision, _ = choose_precision(config.precision, self.device.type)

    def answer(self, question: str, passage: str) -> list[AnswerCandidate]:
        """The n best answers to one question, best first. Raises QalibError on empty text."""
        return self.predict([Example("question", question, passage)])[0].candidates

    def answer_many(
        self, examples: Sequence[Example], progress: bool = False
    ) -> list[list[AnswerCandidate]]:
        """The n best answers to every question, best first, in the order of ``examples``."""
        return [prediction.candidates for prediction in self.predict(examples, progress)]

    def predictions(self, examples: Sequence[Example], progress: bool = False) -> dict[str, str]:
        """The best answer text by question id: the official prediction format."""
        found = self.answer_many(examples, progress)
        return {e.id: best[0].text for e, best in zip(examples, found, strict=True)}

    @torch.inference_mode()
    def forward(self, batch) -> ReaderOutput:
        """The reader's output. Raises QalibError if it fails or a logit is NaN or +infinity."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                output = self.reader(batch.to(self.device))
            if output.start_logits.shape != output.mask.shape:
                raise ValueError(f"logits of the shape {tuple(output.start_logits.shape)}")
        except torch.OutOfMemoryError:
            raise QalibError("the device's memory is full; lower the tokens of a batch.") from None
        except FAILURES as error:
            kind = type(getattr(self.reader, "encoder", self.reader)).__name__
            shape = tuple(batch.mask.shape)
            hint = "; try --precision fp32" if self.precision == "bf16" else ""
            raise QalibError(
                f"{kind} fails on a batch of the shape {shape}: {first_line(error)}{hint}"
            ) from error
        for logits in output[:2]:
            if (~(logits < torch.inf) & output.mask).any():
                raise QalibError(
                    f"the model gives NaN or infinity in {self.precision}; its weights are damaged "
                    "or too large for this precision."
                )
        return output


class QuestionAnswerer(_Answering):
    """Answer questions with an encoder reader."""

    def __init__(self, reader: EncoderReader, config: AnswerConfig | None = None):
        longest = getattr(reader, "max_length", None)
        config = config or AnswerConfig(windows=fit_windows(longest))
        check_windows(config.windows, longest)
        super().__init__(reader, config)
        self.multiple = getattr(reader, "multiple", MULTIPLE)

    @classmethod
    def load(
        cls, checkpoint: str | Path = "", config: AnswerConfig | None = None, device: str = ""
    ) -> "QuestionAnswerer":
        """An answerer with the reader of ``checkpoint``, found and checked as in ``load_reader``.

        Without ``config``, windows are those of training. In bf16 on a CPU, the weights are
        converted once. Raises QalibError if the reader or the device cannot be used.
        """
        config = config or AnswerConfig(windows=windows_of(checkpoint))
        device = choose_device(device)
        reader = load_reader(checkpoint)
        if device.type == "cpu" and choose_precision(config.precision, "cpu")[0] == "bf16":
            reader = EncoderReader(to_bf16(reader.encoder), reader.tokenizer)
        return cls(reader.to(device), config)

    def predict(self, examples: Sequence[Example], progress: bool = False) -> list[Prediction]:
        """Predictions for all examples, in their order. Raises QalibError on empty text."""
        _check(examples)
        windows = self.make_windows(examples)
        parts: list[dict[int, _ScoredWindow]] = [{} for _ in examples]
        lengths, budget = [len(window) for window in windows], self.config.tokens_per_batch
        for rows in _batches(lengths, budget, "window", progress, self.multiple):
            chosen = [windows[row] for row in rows]
            found = self._score_batch(self.collate(chosen, examples))
            for row, window, scored in zip(rows, chosen, found, strict=True):
                parts[window.example][row] = scored
        return [
            self._merge(example, [(windows[row], scored[row]) for row in sorted(scored)])
            for example, scored in zip(examples, parts, strict=True)
        ]

    def make_windows(self, examples: Sequence[Example]) -> Sequence[Window]:
        """The model inputs of ``examples``, in their order."""
        return LazyWindows(examples, self.reader.tokenizer, self.config.windows)

    def collate(self, windows: list[Window], examples: Sequence[Example]) -> Batch:
        """The padded batch of some windows, which were made from ``examples``."""
        pad_id = self.reader.tokenizer.pad_token_id or 0
        return collate(windows, pad_id, multiple=self.multiple)

    def _score_batch(self, batch: Batch) -> list["_ScoredWindow"]:
        output, config = self.forward(batch), self.config
        k = max(20, 4 * config.n_best_size)  # more than wanted: some spans have the same text
        spans = decode_spans(*output[:3], k=k, max_length=config.max_answer_length)
        null = output.start_logits[:, 0].float() + output.end_logits[:, 0].float()
        fraction = torch.ones(len(batch)) if output.aux is None else output.aux.token_fraction
        columns = [column.tolist() for column in (*spans, null, fraction)]
        return [_ScoredWindow(*row) for row in zip(*columns, strict=True)]

    def _merge(self, example: Example, parts: list[tuple[Window, "_ScoredWindow"]]) -> Prediction:
        """The prediction for one question: the n best distinct answers over all its windows."""
        tokens = sum(len(window.offsets) for window, _ in parts)
        processed = sum(len(window.offsets) * scored.token_fraction for window, scored in parts)
        null = min(scored.null for _, scored in parts)
        logs = [scored.log_total for _, scored in parts] + [null] * self.config.windows.null
        total = torch.tensor(logs).logsumexp(dim=0).item()
        found: dict[str, AnswerCandidate] = {}
        for window, scored in parts:
            for start, end, score in zip(scored.starts, scored.ends, scored.scores, strict=True):
                if score == -torch.inf:
                    break
                a, b = strip_span(example.context, *window.characters(start, end))
                text = example.context[a:b]
                if text and (text not in found or score > found[text].score):
                    share = probability(score, total)
                    found[text] = AnswerCandidate(text, a, b, share, score)
        ranked = sorted(found.values(), key=lambda c: -c.score)
        best = ranked[0].score if ranked else torch.finfo(torch.float32).min
        if self.config.windows.null or not ranked:
            no_answer = AnswerCandidate("", 0, 0, probability(null, total), null)
            threshold = self.config.null_score_diff_threshold
            # "no answer" is first if its lead exceeds the threshold, else it ranks second or lower
            if ranked and null - ranked[0].score <= threshold:
                ranked = [ranked[0], *sorted([*ranked[1:], no_answer], key=lambda c: -c.score)]
            else:
                ranked = [no_answer, *ranked]
        fraction = processed / tokens if tokens else 1.0
        candidates = ranked[: self.config.n_best_size]
        return Prediction(candidates, fraction, len(parts), null - best)


class WordQuestionAnswerer(QuestionAnswerer):
    """Answer questions with a word-level reader; ``text`` says how passages are split."""

    def __init__(
        self,
        reader: MnemonicReader,
        config: AnswerConfig | None = None,
        text: WordConfig | None = None,
    ):
        super().__init__(reader, config)
        self.text = text or WordConfig()

    def make_windows(self, examples: Sequence[Example]) -> list[WordWindow]:
        return word_windows(examples, self.reader.vocabulary, self.text)

    def collate(self, windows: list[WordWindow], examples: Sequence[Example]) -> Batch:
        return collate_words(windows)


class ByteQuestionAnswerer(_Answering):
    """Answer questions with a byte-level reader, which reads a passage without splitting it."""

    def __init__(self, reader: ByteReader, config: ByteAnswerConfig | None = None):
        super().__init__(reader, config or ByteAnswerConfig())

    def predict(self, examples: Sequence[Example], progress: bool = False) -> list[Prediction]:
        """Same as :meth:`QuestionAnswerer.predict`."""
        _check(examples)
        rows = QuestionRows(passage_features(examples, self.config.text), gold_only=False)
        found: dict[int, Prediction] = {}
        lengths = [padded_length(length, PASSAGE_MULTIPLE) for length in rows.lengths]
        for chosen in _batches(lengths, self.config.positions_per_batch, "question", progress):
            for row, candidates in zip(chosen, self._score(rows, chosen, examples), strict=True):
                found[rows.example(row)] = Prediction(candidates, token_fraction=1.0)
        return [found[index] for index in range(len(examples))]

    def _score(
        self, rows: QuestionRows, chosen: list[int], examples: Sequence[Example]
    ) -> list[list[AnswerCandidate]]:
        """The n best answers with distinct texts for each of the ``chosen`` rows."""
        output, n = self.forward(rows.collate(chosen)), self.config.n_best_size
        k = n if n == 1 else 8 * n  # more than wanted: some spans have the same text
        spans = decode_spans(*output[:3], k=k, max_length=self.config.max_answer_length)
        probabilities = (spans.scores - spans.log_total[:, None]).exp()
        columns = (spans.starts, spans.ends, probabilities, spans.scores)
        answers = []
        for row, *best in zip(chosen, *(c.tolist() for c in columns), strict=True):
            passage, feature = examples[rows.example(row)].context, rows.feature(row)
            found: dict[str, AnswerCandidate] = {}
            for start, end, probability, score in zip(*best, strict=True):
                if score > -torch.inf:  # a short passage has fewer spans than wanted
                    a, b = feature.characters(start, end)
                    text = passage[a:b]
                    found.setdefault(text, AnswerCandidate(text, a, b, probability, score))
            answers.append(list(found.values())[:n])
        return answers


@dataclass(frozen=True)
class _ScoredWindow:
    """The best spans of one window, as plain numbers."""

    starts: list[int]
    ends: list[int]
    scores: list[float]
    log_total: float
    null: float
    token_fraction: float


def choose_device(name: str = "") -> torch.device:
    """The device of that name (cuda, cuda:1, mps, cpu); "" is cuda if there is one, else cpu.

    Raises QalibError if the device cannot be used on this machine.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = first_line(error).rstrip(".")
        raise QalibError(f"device {name!r} cannot be used here ({reason}); use cpu.") from None
    return device


def _check(examples: Sequence[Example]) -> None:
    for example in examples:
        check_example(replace(example, answers=()), f"question {example.id!r}")


def _batches(
    lengths: Sequence[int], budget: int, unit: str, progress: bool, multiple: int = MULTIPLE
) -> Iterator[list[int]]:
    """Batches of rows of similar length, with a progress bar."""
    if not lengths:
        return
    with progress_bar(len(lengths), "answer", unit, show=progress) as bar:
        for rows in inference_batches(lengths, budget, multiple):
            yield rows
            bar.update(len(rows))


def strip_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Characters [start, end) of ``text``, less the white space at both ends.

    Combining marks that follow are added: tokenizers may drop accents, but "e" is not "é".
    """
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end = start + len(piece.strip())
    while start < end < len(text) and unicodedata.category(text[end]) == "Mn":
        end += 1
    return start, end


def probability(score: float, total: float) -> float:
    """exp(score - total); 0 if ``total`` is -inf."""
    return float(torch.tensor(score - total).exp()) if total > -torch.inf else 0.0
