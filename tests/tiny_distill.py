"""Small questions, teachers of chance and a reader of words that distillation tests share."""

import re
import zlib

import numpy as np
import torch
from torch import nn

from qalib.data.batches import Batch
from qalib.data.squad import Answer, Example, make_dataset
from qalib.distill.characters import Place
from qalib.spans import ReaderOutput

FIRST = 2  # words stand behind two positions that no answer may take


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


def toy_places(examples, first=FIRST):
    """Places of a reader of words."""
    return [
        Place(e.id, np.array(split(e.context), dtype=np.int32), first, len(split(e.question)))
        for e in examples
    ]


def chance(places, seed, hops=("align 1", "align 2"), length=0, asked=0, scale=2.0):
    """What a random teacher says of some rows; a row's answer depends on (seed, question) alone."""
    rows = len(places)
    length = length or max(p.first + len(p.offsets) for p in places) + 1
    asked = asked or max((p.question for p in places), default=0) + 1
    start, end = np.full((2, rows, length), 7.0, dtype=np.float32)  # rubbish at padding
    mask, question = np.zeros((rows, length), dtype=bool), np.zeros((rows, asked), dtype=bool)
    maps = {hop: np.full((rows, length, asked), 0.5, dtype=np.float32) for hop in hops}
    for row, place in enumerate(places):
        random = np.random.default_rng([seed, zlib.crc32(place.id.encode()), place.first])
        count, inside = len(place.offsets), slice(place.first, place.first + len(place.offsets))
        start[row, inside], end[row, inside] = scale * random.normal(size=(2, count))
        mask[row, inside], question[row, : place.question] = True, True
        for hop in hops:
            powers = np.exp(random.normal(size=(count, place.question)))
            maps[hop][row, inside, : place.question] = powers / powers.sum(axis=1, keepdims=True)
    maps = {hop: torch.from_numpy(table) for hop, table in maps.items()}
    if hops:
        maps["question"] = torch.from_numpy(question)
    return ReaderOutput(*(torch.from_numpy(x) for x in (start, end, mask)), maps)


def answers(places, seed, size=2, **changes):
    """A random teacher asked about all rows, longest last, some at a time."""
    order = np.argsort([len(p.offsets) for p in places], kind="stable").tolist()
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        yield rows, chance([places[row] for row in rows], seed, **changes)


class WordRows:
    """Examples as the batches of :class:`WordReader`."""

    def __init__(self, examples):
        self.examples, self.places = list(examples), toy_places(examples)

    def collate(self, rows):
        places, chosen = [self.places[i] for i in rows], [self.examples[i] for i in rows]
        length = max(len(p.offsets) for p in places) + FIRST
        asked = max(p.question for p in places)
        words, mask = self._ids([e.context for e in chosen], length, FIRST)
        question, real = self._ids([e.question for e in chosen], asked, 0)
        spans = torch.zeros(len(rows), 2, 2, dtype=torch.long)
        weights = torch.zeros(len(rows), 2)
        for row, (place, example) in enumerate(zip(places, chosen, strict=True)):
            for a, answer in enumerate(example.answers):
                start = np.flatnonzero(place.offsets[:, 0] == answer.start)[0]
                end = np.flatnonzero(place.offsets[:, 1] == answer.end)[0]
                spans[row, a] = torch.tensor([start, end]) + FIRST
                weights[row, a] = 1 / len(example.answers)
        inputs = {"words": words, "question": question, "asked": real}
        return Batch(inputs, mask, spans, weights, int(mask.sum()))

    def _ids(self, texts, length, first):
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        real = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, text in enumerate(texts):
            for place, (a, b) in enumerate(split(text)):
                ids[row, first + place] = zlib.crc32(text[a:b].lower().encode()) % 97
                real[row, first + place] = True
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
