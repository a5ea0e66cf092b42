"""What an ensemble of teachers knows, kept on disk: asked once, taught as often as one likes.

    folder/rows.json          which rows: data, tokenizer, question ids, lengths
    folder/offsets.npy        characters of every passage token
    folder/teacher-<name>/    start.npy, end.npy (fp16), align-1.npy ... (fp16, one for each hop),
                              spans.npy and confidence.npy (its confusing answers), seal.json
    folder/mean-<key>/        the mean attention of some teachers, made when it is first read

Rows of different lengths lie flat, one behind the other. Teachers are written in any order, each
complete or not at all. Logits are kept teacher by teacher, so that temperature and ensemble can
still be chosen; the largest of a row is taken off, which no softmax sees, and which keeps fp16
fine where it matters.

Notation: R rows, P passage tokens and N question tokens of a row, L positions of a batch.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from qalib.distill.cache_files import (
    FORMAT,
    HEADER,
    SEAL,
    begins,
    check_same_rows,
    file_of,
    header_key,
    load_array,
    new_array,
    open_sealed,
    read_header,
    sealed,
    write_json,
)
from qalib.distill.characters import Place
from qalib.distill.distractors import Miner
from qalib.errors import QalibError
from qalib.spans import ReaderOutput

LOWEST = float(np.finfo(np.float16).min)


class TeacherCache:
    """A folder with what teachers know of the same rows. Made by ``create`` or ``open``."""

    def __init__(self, folder: Path, header: dict, offsets: np.ndarray):
        self.folder = folder
        self.key = header_key(header)
        self.data, self.tokenizer, self.hops = (header[n] for n in ("data", "tokenizer", "hops"))
        lengths, asked = (np.array(header[n], dtype=np.int64) for n in ("tokens", "question"))
        self.begin = begins(lengths)  # (R + 1,) of a row's tokens in the flat arrays
        self.map_begin = begins(lengths * asked)  # (R + 1,) of its attention map
        parts = np.split(offsets, self.begin[1:-1])
        columns = zip(header["ids"], parts, header["first"], header["question"], strict=True)
        self.places = [Place(*column) for column in columns]

    @classmethod
    def create(
        cls,
        folder: str | Path,
        places: Sequence[Place],
        data: str,
        tokenizer: str,
        hops: Sequence[str] = (),
    ) -> "TeacherCache":
        """A new cache for these rows, or the one that is there already for the same rows.

        ``data``: content hash of the data set. ``tokenizer``: what tells the teachers' tokenizer
        from others. ``hops``: names of the attention maps to keep, such as "align 1". Raises
        QalibError if there is nothing to keep, or if the folder holds a cache of other rows.
        """
        folder = Path(folder)
        if not any(len(place.offsets) for place in places):
            raise QalibError(f"{folder}: no row has a passage token; there is nothing to keep.")
        if hops and not any(place.question for place in places):
            raise QalibError(f"{folder}: no row has a question token to attend to; leave hops out.")
        offsets = np.concatenate([place.offsets for place in places]).astype(np.int32)
        header = {
            "format": FORMAT,
            "data": data,
            "tokenizer": tokenizer,
            "hops": list(hops),
            "offsets": _hash(offsets),
            "ids": [place.id for place in places],
            "tokens": [len(place.offsets) for place in places],
            "first": [int(place.first) for place in places],
            "question": [int(place.question) for place in places],
        }
        if (folder / HEADER).exists():
            check_same_rows(folder, read_header(folder), header)
            return cls.open(folder, data)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "offsets.npy", offsets)
        write_json(folder / HEADER, header)
        return cls(folder, header, offsets)

    @classmethod
    def open(cls, folder: str | Path, data: str) -> "TeacherCache":
        """The cache in a folder, of the data set with this content hash.

        Raises QalibError if there is none, if it is damaged, of another version or of other data.
        """
        folder = Path(folder)
        header = read_header(folder)
        if header["data"] != data:
            raise QalibError(
                f"{folder}: the teachers read another data set (content hash "
                f"{header['data'][:12]}, not {data[:12]}); ask them about this one."
            )
        offsets = np.array(load_array(folder / "offsets.npy"))
        if _hash(offsets) != header["offsets"]:
            raise QalibError(f"{folder / 'offsets.npy'}: damaged; write the cache again.")
        return cls(folder, header, offsets)

    def folder_of(self, name: str) -> Path:
        """Where what a teacher knows is, or is to be."""
        return self.folder / f"teacher-{name}"

    def finished(self) -> list[str]:
        """The names of the teachers that have been written to the end."""
        found = [path.parent.name for path in self.folder.glob(f"teacher-*/{SEAL}")]
        return sorted(n.removeprefix("teacher-") for n in found if not n.endswith(".partial"))

    def write(
        self,
        name: str,
        answers: Iterable[tuple[Sequence[int], ReaderOutput]],
        miner: Miner,
        provenance: Mapping[str, object],
    ) -> None:
        """Keep what one teacher says: ``answers`` gives (rows, its output for them), in any order.

        ``provenance``: plain data that tells this teacher from any other, such as the hash of its
        weights. A teacher that is there already is not asked again. Raises QalibError if a row is
        left out, if an output is not about its rows, or if another teacher has the name.
        """
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise QalibError(f"a teacher's name has letters, digits, - and _ only, not {name!r}.")
        if self.folder_of(name).exists():
            self.check(name, provenance)
            return
        about = {"provenance": dict(provenance)}
        with sealed(self.folder_of(name), self.key, **about) as partial:
            _Writer(self, name, partial).write(answers, miner)

    def check(self, name: str, provenance: Mapping[str, object] | None = None) -> None:
        """Raise QalibError if a teacher is missing, half written, damaged, or not the one meant.

        Its attention is looked at only when it is used. Without ``provenance`` any teacher of
        that name will do.
        """
        files = ("start.npy", "end.npy", "spans.npy", "confidence.npy")
        seal = open_sealed(self.folder_of(name), self.key, files)
        if provenance is not None and seal.get("provenance") != dict(provenance):
            why = _difference(seal.get("provenance"), provenance)
            raise QalibError(
                f"{self.folder_of(name)}: stale, it is of another teacher ({why}); remove it and "
                "write it again."
            )


class _Writer:
    """The arrays of one teacher while they fill."""

    def __init__(self, cache: TeacherCache, name: str, folder: Path):
        self.cache, self.folder, self.who = cache, folder, f"teacher {name!r}"
        rows, tokens = len(cache.places), int(cache.begin[-1])
        self.sides = [new_array(folder / f"{side}.npy", tokens) for side in ("start", "end")]
        size = int(cache.map_begin[-1])
        self.maps = {hop: new_array(folder / file_of(hop), size) for hop in cache.hops}
        self.spans = np.full((rows, 2), -1, dtype=np.int32)
        self.confidence = np.zeros(rows, dtype=np.float32)
        self.written = np.zeros(rows, dtype=bool)

    def write(self, answers: Iterable[tuple[Sequence[int], ReaderOutput]], miner: Miner) -> None:
        """Take all answers. Raises QalibError if one does not fit, or if a row has none."""
        for rows, output in answers:
            self.fill(list(rows), _on_cpu(output), miner)
        if not self.written.all():
            place = self.cache.places[int(np.argmin(self.written))]
            raise QalibError(
                f"{self.who}: {int((~self.written).sum())} of {len(self.written)} rows are left "
                f"out, the first of them about question {place.id!r}; give them all."
            )
        np.save(self.folder / "spans.npy", self.spans)
        np.save(self.folder / "confidence.npy", self.confidence)
        for array in (*self.sides, *self.maps.values()):
            array.flush()

    def fill(self, rows: list[int], output: ReaderOutput, miner: Miner) -> None:
        """Take the answers to the questions of some rows."""
        places = [self.cache.places[row] for row in rows]
        self.check_tokens(places, output)
        self.check_attention(places, output)
        self.spans[rows], self.confidence[rows] = miner.mine(*output[:3], places)
        for logits, flat in zip(output[:2], self.sides, strict=True):
            logits = logits.masked_fill(~output.mask, -torch.inf)
            values = (logits - logits.amax(dim=1, keepdim=True)).numpy()
            for row, place, line in zip(rows, places, values, strict=True):
                kept = line[_passage(place)]
                if np.isnan(kept).any():
                    raise QalibError(
                        f"{self.who}: its logits for question {place.id!r} are not numbers; "
                        "train it again with a lower learning rate."
                    )
                flat[self.cache.begin[row] : self.cache.begin[row + 1]] = kept.clip(min=LOWEST)
        for hop, flat in self.maps.items():
            for row, place, table in zip(rows, places, output.attentions[hop].numpy(), strict=True):
                kept = table[_passage(place), : place.question]
                flat[self.cache.map_begin[row] : self.cache.map_begin[row + 1]] = kept.ravel()
        self.written[rows] = True

    def check_tokens(self, places: list[Place], output: ReaderOutput) -> None:
        """Raise QalibError if the passages have not the tokens that the rows have."""
        fits = len(places) == len(output.mask)
        for place, mask in zip(places, output.mask.numpy(), strict=False):
            real = np.zeros_like(mask)
            real[_passage(place)] = True
            if not fits or len(mask) < place.first + len(place.offsets) or (real != mask).any():
                raise QalibError(
                    f"{self.who}: question {place.id!r} has {int(mask.sum())} passage tokens, "
                    f"{len(place.offsets)} in the cache; a teacher with other tokens needs a "
                    "cache of its own."
                )

    def check_attention(self, places: list[Place], output: ReaderOutput) -> None:
        """Raise QalibError if attention that is to be kept is missing, or of other questions."""
        given = list(output.attentions)
        for name in (*self.maps, "question") if self.maps else ():
            if name not in given:
                raise QalibError(
                    f"{self.who} gives no attention {name!r} (only: {', '.join(given) or 'none'}); "
                    "make a cache without hops, or use teachers that attend to the question."
                )
        asked = output.attentions["question"].sum(dim=1).tolist() if self.maps else ()
        for place, count in zip(places, asked, strict=False):
            if count != place.question:
                raise QalibError(
                    f"{self.who}: question {place.id!r} has {count} tokens, {place.question} in "
                    "the cache; a teacher with other tokens needs a cache of its own."
                )


def _passage(place: Place) -> slice:
    """The positions of a row's passage tokens."""
    return slice(place.first, place.first + len(place.offsets))


def _on_cpu(output: ReaderOutput) -> ReaderOutput:
    """An output as plain tensors: float32 or bool, on the CPU, without gradients."""

    def plain(x: torch.Tensor) -> torch.Tensor:
        return x.detach().to("cpu", x.dtype if x.dtype == torch.bool else torch.float32)

    maps = {name: plain(x) for name, x in output.attentions.items()}
    return ReaderOutput(*map(plain, output[:3]), maps)


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _difference(there: object, wanted: Mapping[str, object]) -> str:
    """The first thing in which two provenances differ, in words."""
    there = there if isinstance(there, dict) else {}
    for name in sorted({*there, *wanted}):
        if there.get(name) != wanted.get(name):
            return f"{name} is {there.get(name)!r}, not {wanted.get(name)!r}"
    return "its origin differs"
