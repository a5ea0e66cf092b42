"""Answering questions: n-best spans with probabilities, long passages, null answers, files.

transformers 5 dropped its question-answering pipeline; this is the replacement.

    answerer = Answerer.load()
    answerer.answer("Who built the bridge?", passage)[0].text
    answerer.answer_questions(["Who built it?", "When?"], passage)   # which is tokenised once

A long passage is read through overlapping windows, made batch by batch. A span's probability is
its share among all spans of all windows that were read, ``exp(score) / sum exp(score')``, so
windows compete. A skimmer whose ``drop`` is set leaves windows without a promising block at its
first skim point. Where that would be all of a passage, the most promising one is read after all:
what is read, and so the answer, does not depend on what else is in the batch.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from qalib.data.batches import Batch, collate, inference_batches
from qalib.data.features import Window, WindowConfig
from qalib.data.shared_windows import SharedWindows
from qalib.data.squad import Example, check_example
from qalib.errors import QalibError
from qalib.readers.encoder_reader import EncoderReader
from qalib.skim.reader import SkimReader
from qalib.skim.weights import halve
from qalib.skim.wishes import Wish
from qalib.spans import best_spans, mask_logits
from qalib.train import choose_precision

LIGHT = 256  # tokens from which asking a predictor pays in bf16 (notebook 06)


@dataclass(frozen=True)
class AnswerConfig:
    """How spans are decoded and how inputs are batched."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    n_best: int = 1
    max_answer_tokens: int = 30  # longest answer, in tokens
    null_threshold: float = 0.0  # SQuAD 2.0: no answer if its score passes the best span's by more
    tokens_per_batch: int = 8192  # padded tokens
    precision: str = "auto"  # auto, fp32 or bf16

    def __post_init__(self):
        for name in ("n_best", "max_answer_tokens", "tokens_per_batch"):
            if getattr(self, name) < 1:
                raise QalibError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Candidate:
    """One answer: characters [start, end) of the passage; "no answer" is "" at [0, 0)."""

    text: str
    start: int
    end: int
    probability: float
    score: float  # start logit + end logit


@dataclass(frozen=True)
class Answered:
    """All that is said about one question."""

    candidates: list[Candidate]  # best first
    read: float  # share of the passage's tokens that the reader read to the end; 1 without skimming
    windows: int = 1  # that the passage has
    dropped: int = 0  # of them, before they were read to the end


class Answerer:
    """Answers questions with a reader. Predictions do not depend on what else is in the batch."""

    def __init__(self, reader: EncoderReader, config: AnswerConfig = AnswerConfig()):
        self.reader = reader.eval()
        self.config = config
        self.device = next(reader.parameters()).device
        self.precision, _ = choose_precision(config.precision, self.device.type)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = "",
        config: AnswerConfig | None = None,
        skim: str | Path | bool = False,
        wish: Wish | None = None,
        drop: float | None = None,
    ) -> "Answerer":
        """The shipped reader, or one from a checkpoint folder. Raises QalibError if damaged.

        Without a ``config`` inputs are cut as they were in training. ``skim``: read only the
        blocks that matter, with the predictors that ship, or those of a folder; as sharply as the
        ``wish`` allows, and leaving windows of long passages by ``drop`` (see ``SkimConfig``), or
        as the skimmer is set; its ``min_tokens`` are at least ``LIGHT`` where a CPU reads in bf16.
        """
        from qalib.readers.shipped import load_reader, windows_of

        if not skim and (wish is not None or drop is not None):
            raise QalibError("a wish, or a bound to drop windows, is for skimming; add --skim.")
        config = config or AnswerConfig(windows=windows_of(checkpoint))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reader = load_reader(checkpoint)
        light = device == "cpu" and choose_precision(config.precision, device)[0] == "bf16"
        if light:
            reader = EncoderReader(halve(reader.encoder), reader.tokenizer)
        if skim:
            reader = skimming(reader, checkpoint, skim, wish, drop)
            if light and wish is None and reader.skimmer.config.min_tokens:
                reader.skimmer.tune(min_tokens=max(LIGHT, reader.skimmer.config.min_tokens))
        return cls(reader.to(device), config)

    def answer(self, question: str, passage: str) -> list[Candidate]:
        """The n best answers to one question, best first. Raises QalibError on empty text."""
        return self.answer_many([Example("question", question, passage)])[0]

    def answer_questions(
        self, questions: Sequence[str], passage: str, progress: bool = False
    ) -> list[list[Candidate]]:
        """The n best answers to each of many questions about one passage, which is cut once."""
        asked = [Example(str(n), question, passage) for n, question in enumerate(questions, 1)]
        return self.answer_many(asked, progress)

    def answer_many(
        self, examples: Sequence[Example], progress: bool = False
    ) -> list[list[Candidate]]:
        """The n best answers to every question, best first, in the order of ``examples``."""
        return [answered.candidates for answered in self.answer_all(examples, progress)]

    def answer_all(self, examples: Sequence[Example], progress: bool = False) -> list[Answered]:
        """As ``answer_many``, with what was read of each passage."""
        for example in examples:
            check_example(replace(example, answers=()), f"question {example.id!r}")
        windows = self.cut(examples)
        belong: list[list[int]] = [[] for _ in examples]
        for index, window in enumerate(windows):
            belong[window.example].append(index)
        several = {i for indices in belong if len(indices) > 1 for i in indices}
        found = self._score(windows, range(len(windows)), examples, several, progress)
        lost = [indices for indices in belong if all(found[i].dropped for i in indices)]
        best = [max(indices, key=lambda i: found[i].best) for indices in lost]
        found |= self._score(windows, best, examples)
        return [
            self._merge(example, [(windows[i], found[i]) for i in indices])
            for example, indices in zip(examples, belong, strict=True)
        ]

    def predictions(self, examples: Sequence[Example], progress: bool = False) -> dict[str, str]:
        """Question id to best answer text: the official prediction format."""
        found = self.answer_many(examples, progress)
        return {e.id: best[0].text for e, best in zip(examples, found, strict=True)}

    @torch.inference_mode()
    def token_probabilities(self, question: str, passage: str) -> list[tuple[str, float, float]]:
        """Each passage token of the first window: (text, p(starts here), p(ends here))."""
        examples = [Example("question", question, passage)]
        window = self.cut(examples)[0]
        batch = self.batch([window], examples).to(self.device)
        output = self.reader(batch)
        start, end = (
            mask_logits(logits, output.mask).softmax(dim=1)[0].tolist() for logits in output[:2]
        )
        first, offsets = window.first, window.offsets.tolist()
        return [
            (passage[a:b], start[first + i], end[first + i]) for i, (a, b) in enumerate(offsets)
        ]

    @torch.inference_mode()
    def _score(
        self,
        windows: Sequence[Window],
        chosen: Sequence[int],
        examples: Sequence[Example],
        optional: Collection[int] = (),
        progress: bool = False,
    ) -> dict[int, "_Scored"]:
        """Best spans of the chosen windows, by number, read in batches of like length.

        Those that are ``optional``, of passages with several, may be dropped.
        """
        scored: dict[int, _Scored] = {}
        plan = inference_batches([len(windows[i]) for i in chosen], self.config.tokens_per_batch)
        with _progress_bar(len(chosen), progress) as bar:
            for rows in plan:
                indices = [chosen[row] for row in rows]
                batch = self.batch([windows[i] for i in indices], examples)
                if optional and getattr(self.reader, "drops", False):
                    batch.inputs["optional"] = torch.tensor([i in optional for i in indices])
                scored |= zip(indices, self._score_batch(batch), strict=True)
                bar.update(len(indices))
        return scored

    def cut(self, examples: Sequence[Example]) -> Sequence[Window]:
        """The windows of some examples, as the reader takes them."""
        return SharedWindows(examples, self.reader.tokenizer, self.config.windows)

    def batch(self, windows: list[Window], examples: Sequence[Example]) -> Batch:
        """What the reader is given for some windows of ``examples``."""
        return collate(windows, self.reader.tokenizer.pad_token_id or 0)

    def _score_batch(self, batch: Batch) -> list["_Scored"]:
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.reader(batch)
        wanted = max(20, 4 * self.config.n_best)  # room for spans that turn out to be repeats
        best = best_spans(*output[:3], k=wanted, max_length=self.config.max_answer_tokens)
        null = output.start_logits[:, 0].float() + output.end_logits[:, 0].float()
        told, none = output.attentions, torch.zeros(len(batch))
        read, dropped = told.get("read", none + 1), told.get("dropped", none > 0)
        columns = (best.starts, best.ends, best.scores, best.log_total, null, read, dropped)
        columns += (told.get("best", none),)
        return [_Scored(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def _merge(self, example: Example, parts: list[tuple[Window, "_Scored"]]) -> Answered:
        """What all windows of one question say together."""
        read = [part for part in parts if not part[1].dropped]
        counts = len(parts), len(parts) - len(read)
        return Answered(self._rank(example, read), _share_read(parts), *counts)

    def _rank(self, example: Example, parts: list[tuple[Window, "_Scored"]]) -> list[Candidate]:
        """The n best distinct answers over the windows of one question that were read."""
        logs = [scored.log_total for _, scored in parts]
        null = min(scored.null for _, scored in parts)
        if self.config.windows.null:
            logs.append(null)
        total = torch.tensor(logs).logsumexp(dim=0).item()
        found: dict[str, Candidate] = {}
        for window, scored in parts:
            for start, end, score in zip(scored.starts, scored.ends, scored.scores, strict=True):
                if score == -torch.inf:
                    break
                a, b = window.characters(start, end)
                text = example.context[a:b]
                if text not in found or score > found[text].score:
                    found[text] = Candidate(text, a, b, _share(score, total), score)
        ranked = sorted(found.values(), key=lambda c: -c.score)
        if self.config.windows.null or not ranked:
            nothing = Candidate("", 0, 0, _share(null, total), null)
            sure = not ranked or null > ranked[0].score + self.config.null_threshold
            later = sorted([*ranked, nothing], key=lambda c: -c.score)
            ranked = (
                [nothing, *ranked] if sure else [ranked[0], *(c for c in later if c != ranked[0])]
            )
        return ranked[: self.config.n_best]


def skimming(
    reader: EncoderReader,
    checkpoint: str | Path = "",
    skim: str | Path | bool = True,
    wish: Wish | None = None,
    drop: float | None = None,
) -> SkimReader:
    """A reader with a skimmer: that of the folder ``skim``, of its checkpoint, or that ships.

    ``wish`` and ``drop`` as of ``Answerer.load``. Raises QalibError if there is none, if it was
    trained beside another reader, and if the wish cannot be granted.
    """
    from qalib.readers.shipped import SETTINGS, SHIPPED, checkpoint_hash
    from qalib.skim.storage import SKIMMER

    home = Path(checkpoint or SHIPPED)
    folder = (Path(checkpoint) if checkpoint else SKIMMER) if skim is True else Path(str(skim))
    beside = checkpoint_hash(home) if (home / SETTINGS).is_file() else ""
    return SkimReader.load(reader, folder, beside, wish, drop)


@dataclass(frozen=True)
class _Scored:
    """The best spans of one window, as plain numbers."""

    starts: list[int]
    ends: list[int]
    scores: list[float]
    log_total: float
    null: float
    read: float
    dropped: bool  # left before the end
    best: float  # score of its best block where it could be dropped


def _share_read(parts: Sequence[tuple[Window, _Scored]]) -> float:
    """The share of the tokens of all windows that was read."""
    tokens = sum(len(window.offsets) for window, _ in parts)
    return sum(len(w.offsets) * s.read for w, s in parts) / tokens if tokens else 1.0


def _share(score: float, total: float) -> float:
    return float(torch.tensor(score - total).exp()) if total > -torch.inf else 0.0


def _progress_bar(total: int, show: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="answer", unit="window", disable=None if show else True)


def as_rows(candidates: Sequence[Candidate]) -> list[dict]:
    """Candidates as plain dictionaries, for JSON."""
    return [asdict(candidate) for candidate in candidates]
