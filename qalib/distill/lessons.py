"""Reading a teacher cache, batch by batch, without ever holding it in memory.

Notation: T teachers, R rows, B rows of a batch, P passage tokens (position 0 is the first one of
the passage, whatever precedes it in a teacher's input), N question tokens.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qalib.data.squad import file_sha256
from qalib.distill.cache_files import SEAL, file_of, load_array, open_sealed, sealed, write_mean
from qalib.distill.distractors import Mined, Miner, mine_average, most_confident
from qalib.distill.teachers import TeacherCache
from qalib.errors import QalibError


class Lessons:
    """What some teachers of a cache know: one teacher, or an ensemble of them.

    ``teachers``: their names, or names with the provenance that each is to have. Raises QalibError
    with the reason if one of them is missing, half written, damaged, or another one by now.
    """

    def __init__(self, cache: TeacherCache, teachers: Sequence[str] | Mapping[str, Mapping]):
        if not teachers:
            raise QalibError(f"{cache.folder}: no teacher is named; name at least one.")
        self.cache, self.places, self.tokenizer = cache, cache.places, cache.tokenizer
        self.teachers = tuple(sorted(teachers))  # so that no result depends on the order
        meant = teachers if isinstance(teachers, Mapping) else {}
        for name in self.teachers:
            cache.check(name, meant.get(name))
        self._sides = [self._load(f"{side}.npy") for side in ("start", "end")]
        self.spans = np.stack(self._load("spans.npy"))  # (T, R, 2), characters
        self.confidence = np.stack(self._load("confidence.npy"))  # (T, R)
        self._maps: dict[str, np.ndarray] = {}

    def _load(self, file: str) -> list[np.ndarray]:
        return [load_array(self.cache.folder_of(name) / file) for name in self.teachers]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def hops(self) -> list[str]:
        """The names of the attention maps that the teachers kept."""
        return list(self.cache.hops)

    def mined(self, allowed: np.ndarray | None = None) -> Mined:
        """The confusing answers of the ensemble, as :func:`most_confident` chooses them.

        ``allowed`` (T, R) bool, in the order of ``teachers``: whom to ask about which row.
        """
        return most_confident(self.spans, self.confidence, allowed)

    def mined_average(
        self, miner: Miner, allowed: np.ndarray | None = None, at_once: int = 256
    ) -> Mined:
        """The confusing answers of the ensemble's mean probabilities, see :func:`mine_average`."""
        parts = []
        for begin in range(0, len(self), at_once):
            rows = range(begin, min(len(self), begin + at_once))
            places = [self.places[row]._replace(first=0) for row in rows]
            who = None if allowed is None else torch.from_numpy(allowed[:, begin : rows.stop])
            parts.append(mine_average(*self.logits(rows), places, miner, who))
        return Mined(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def logits(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Start and end logits (T, B, P) float32 and where they are real (B, P) bool.

        Of each row the largest logit is 0: they are known up to a constant.
        """
        begin = self.cache.begin
        where, real = _places(begin[rows], np.diff(begin)[rows])
        sides = [np.stack([flat[where] for flat in side]) for side in self._sides]
        start, end = (torch.from_numpy(side.astype(np.float32)) for side in sides)
        return start, end, torch.from_numpy(real)

    def attention(self, rows: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """The mean attention of each hop (B, P, N) float32, 0 where padded, and question (B, N).

        Each passage token's map sums to 1, as far as fp16 can tell. No hop, no map.
        """
        asked = np.array([self.places[row].question for row in rows])
        lengths = np.array([len(self.places[row].offsets) for row in rows])
        question = np.arange(asked.max(initial=0)) < asked[:, None]
        words = np.arange(lengths.max(initial=0)) < lengths[:, None]
        real = words[:, :, None] & question[:, None]  # (B, P, N), in the order of the flat array
        where, taken = _places(self.cache.map_begin[rows], lengths * asked)
        tables = {}
        for hop, flat in self._attention().items():
            table = np.zeros(real.shape, dtype=np.float32)
            table[real] = flat[where[taken]]
            tables[hop] = torch.from_numpy(table)
        return tables, torch.from_numpy(question)

    def _attention(self) -> dict[str, np.ndarray]:
        """The mean attention of all hops, mapped; computed where it is not on disk yet."""
        if not self._maps and self.hops:
            folder, files = self._mean_folder(), [file_of(hop) for hop in self.hops]
            open_sealed(folder, self.cache.key, files)
            loaded = [load_array(folder / file) for file in files]
            self._maps = dict(zip(self.hops, loaded, strict=True))
        return self._maps

    def _mean_folder(self):
        """Where the mean attention of these teachers is: with one teacher, its own."""
        folders = [self.cache.folder_of(name) for name in self.teachers]
        if len(folders) == 1:
            return folders[0]
        seals = {folder.name: file_sha256(folder / SEAL) for folder in folders}
        key = hashlib.sha256(json.dumps(seals, sort_keys=True).encode()).hexdigest()[:16]
        final = self.cache.folder / f"mean-{key}"
        if not final.exists():
            files = [file_of(hop) for hop in self.hops]
            for folder in folders:
                open_sealed(folder, self.cache.key, files)
            with sealed(final, self.cache.key, teachers=seals) as partial:
                for file in files:
                    write_mean([folder / file for folder in folders], partial / file)
        return final


def _places(begin: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of rows in a flat array, padded to the longest, and which are real.  -> (B, P) x 2

    Padding points at the very first value, so that every index is valid.
    """
    steps = np.arange(lengths.max(initial=0))
    real = steps < lengths[:, None]
    return np.where(real, begin[:, None] + steps, 0), real
