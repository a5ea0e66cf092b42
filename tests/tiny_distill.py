"""Small questions, random teachers and a word-level reader that distillation tests share."""

import re
import zlib

import numpy as np
import torch
from torch import nn

from qalib.data.batching import Batch
from qalib.data.schema import Answer, Example, make_dataset
from qalib.decoding import ReaderOutput
from qalib.distill.alignment import TokenSpan
from qalib.distill.distractors import DistractorMiner, MiningConfig
from qalib.distill.teacher_cache import TeacherTargets, cache_teacher_outputs

FIRST = 2  # words stand behind two positions that no answer may take
HOPS = ("align 1", "align 2")


def questions(count=6):
    """Short passages of different lengths, two gold answers for some."""
    made = []
    for n in range(count):
        city, year = f"Town{n}", str(1850 + 7 * n)
        passage = f"{'Snow fell. ' * (n % 3)}{city} was built in {year}, and Port{n} in {1700 + n}."
        golds = [year] if n % 2 else [year, f"in {year}"]
        answers = tuple(Answer(gold, passage.index(gold)) for gold in golds)
        made.append(
            Example(f"q{n}", f"When {'exactly ' * (n % 2)}was {city} built?", passage, answers)
        )
    return made


DATA = make_dataset("tiny", questions())


def split(text):
    """The characters of every word and sign."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def toy_spans(examples, first=FIRST):
    """Token spans of a reader of words."""
    return [
        TokenSpan(e.id, np.array(split(e.context), dtype=np.int32), first, len(split(e.question)))
        for e in examples
    ]


def random_output(spans, seed, hops=HOPS, length=0, asked=0, scale=2.0):
    """A random teacher's output for some rows; that of a row depends on (seed, question) alone."""
    rows = len(spans)
    length = length or max(s.context_start + len(s.offsets) for s in spans) + 1
    asked = asked or max((s.question_tokens for s in spans), default=0) + 1
    start, end = np.full((2, rows, length), 7.0, dtype=np.float32)  # rubbish at padding
    mask, question = np.zeros((rows, length), dtype=bool), np.zeros((rows, asked), dtype=bool)
    maps = {hop: np.full((rows, length, asked), 0.5, dtype=np.float32) for hop in hops}
    for row, span in enumerate(spans):
        random = np.random.default_rng([seed, zlib.crc32(span.id.encode()), span.context_start])
        count, inside = len(span.offsets), span.positions
        start[row, inside], end[row, inside] = scale * random.normal(size=(2, count))
        mask[row, inside], question[row, : span.question_tokens] = True, True
        for hop in hops:
            powers = np.exp(random.normal(size=(count, span.question_tokens)))
            powers /= powers.sum(axis=1, keepdims=True)
            maps[hop][row, inside, : span.question_tokens] = powers
    maps = {hop: torch.from_numpy(table) for hop, table in maps.items()}
    if hops:
        maps["question"] = torch.from_numpy(question)
    return ReaderOutput(*(torch.from_numpy(x) for x in (start, end, mask)), maps)


def random_outputs(spans, seed, size=2, **changes):
    """A random teacher's outputs for all rows in batches, longest last."""
    order = np.argsort([len(s.offsets) for s in spans], kind="stable").tolist()
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        yield rows, random_output([spans[row] for row in rows], seed, **changes)


def random_cache(folder, spans, seeds=(1, 2), hops=HOPS, length=15, size=2):
    """The targets of random teachers, written to a folder and read back."""
    teachers = [lambda seed=seed: random_outputs(spans, seed, size, hops=hops) for seed in seeds]
    miner = DistractorMiner(DATA, MiningConfig(max_length=length))
    cache_teacher_outputs(folder, spans, teachers, miner, hops)
    return targets_of(folder, range(len(seeds)))


def targets_of(folder, teachers):
    """The targets of some teachers of a folder, by number."""
    return TeacherTargets([folder / f"teacher-{number}" for number in teachers])


class WordRows:
    """Examples as the batches of :class:`WordReader`."""

    def __init__(self, examples):
        self.examples, self.spans = list(examples), toy_spans(examples)

    def collate(self, rows):
        chosen = [self.examples[i] for i in rows]
        spans = [self.spans[i] for i in rows]
        length = max(len(s.offsets) for s in spans) + FIRST
        asked = max(s.question_tokens for s in spans)
        words, mask = self._ids([e.context for e in chosen], length, FIRST)
        question, real = self._ids([e.question for e in chosen], asked, 0)
        answer_spans = torch.zeros(len(rows), 2, 2, dtype=torch.long)
        weights = torch.zeros(len(rows), 2)
        for row, (span, example) in enumerate(zip(spans, chosen, strict=True)):
            for a, answer in enumerate(example.answers):
                start = np.flatnonzero(span.offsets[:, 0] == answer.start)[0]
                end = np.flatnonzero(span.offsets[:, 1] == answer.end)[0]
                answer_spans[row, a] = torch.tensor([start, end]) + FIRST
                weights[row, a] = 1 / len(example.answers)
        inputs = {"words": words, "question": question, "asked": real}
        return Batch(inputs, mask, answer_spans, weights, int(mask.sum()))

    def _ids(self, texts, length, first):
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        real = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, text in enumerate(texts):
            for position, (a, b) in enumerate(split(text)):
                ids[row, first + position] = zlib.crc32(text[a:b].lower().encode()) % 97
                real[row, first + position] = True
        return ids, real


class WordReader(nn.Module):
    """Words that attend to the question in some hops: the smallest reader with an alignment."""

    def __init__(self, hops=2, width=12, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(97, width)
        self.hops = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(hops))
        self.span = nn.Linear(width, 2)

    def forward(self, batch):
        x, q = self.words(batch.inputs["words"]), self.words(batch.inputs["question"])
        asked, maps = batch.inputs["asked"], {}
        for number, hop in enumerate(self.hops, 1):
            scores = (x @ q.transpose(1, 2)).masked_fill(~asked[:, None], -1e9)
            maps[f"align {number}"] = scores.softmax(dim=2)
            x = torch.tanh(hop(torch.cat([x, maps[f"align {number}"] @ q], dim=2)))
        start, end = self.span(x).unbind(dim=2)
        return ReaderOutput(start, end, batch.mask, {**maps, "question": asked})
