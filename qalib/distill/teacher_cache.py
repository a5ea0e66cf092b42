"""The teacher cache: what every teacher predicts for the training data, computed once.

    folder/rows.json            question ids and lengths of all rows, names of the attention maps
    folder/offsets.npy          (sum P, 2) int32, characters of every passage token
    folder/teacher-<n>/         start.npy, end.npy (sum P,) fp16 logits
                                align-1.npy ... (sum P N,) fp16, one for each hop
                                distractors.npz: spans (R, 2), confidence (R,)

Rows of different lengths are stored flat, one after the other, and memory-mapped. Each row's
maximum is subtracted from its logits, which keeps fp16 precise where it matters.

Notation: T teachers, R rows, B rows of a batch, P passage tokens of a row (0 is the first one of
the passage, whatever precedes it in the teacher's input), N question tokens.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qalib.decoding import ReaderOutput
from qalib.distill.alignment import TokenSpan
from qalib.distill.distractors import DistractorMiner, DistractorSpans, MiningConfig
from qalib.errors import QalibError
from qalib.files import write_atomically
from qalib.settings import settings

LOWEST = float(np.finfo(np.float16).min)
Outputs = Iterable[tuple[Sequence[int], ReaderOutput]]  # (rows, the teacher's output for them)


@settings
class TeacherCacheConfig:
    """What is cached, next to the teacher and its data.

    ``precision`` of the teacher's forward pass.
    """

    mining: MiningConfig = MiningConfig()
    attention: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "fp32"


def cache_teacher_outputs(
    folder: Path,
    spans: Sequence[TokenSpan],
    teachers: Sequence[Callable[[], Outputs]],
    miner: DistractorMiner,
    hops: Sequence[str] = (),
) -> None:
    """Write what each teacher predicts for the rows ``spans`` to ``folder``.

    teachers: functions that give (rows, output) until every row had its turn; those that a killed
    run has finished are not called again
    hops: names of the attention maps to keep, such as "align 1"

    Raises QalibError if there is nothing to cache, if the folder is of other rows, or if a teacher
    leaves a row out or does not fit it. (That the folder is of other teachers is not noticed.)
    """
    if not any(len(span.offsets) for span in spans):
        raise QalibError(f"{folder}: no row has a passage token; there is nothing to cache.")
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "ids": [span.id for span in spans],
        "tokens": [len(span.offsets) for span in spans],
        "context_start": [int(span.context_start) for span in spans],
        "question_tokens": [int(span.question_tokens) for span in spans],
        "hops": list(hops),
    }
    file, text = folder / "rows.json", json.dumps(rows)
    if file.exists() and file.read_text(encoding="ascii") != text:
        raise QalibError(f"{folder}: holds the cache of other rows; choose another folder.")
    np.save(folder / "offsets.npy", np.concatenate([s.offsets for s in spans]).astype(np.int32))
    write_atomically(file, text)
    for number, outputs in enumerate(teachers):
        final = folder / f"teacher-{number}"
        if not final.is_dir():
            partial = final.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _write_teacher(partial, spans, outputs(), miner, hops)
            partial.rename(final)


def _write_teacher(
    folder: Path,
    spans: Sequence[TokenSpan],
    outputs: Outputs,
    miner: DistractorMiner,
    hops: Sequence[str],
) -> None:
    """Write the arrays of one teacher."""

    def flat_array(name: str, size: int) -> np.memmap:
        shape = (int(size),)
        return np.lib.format.open_memmap(folder / _file(name), "w+", np.float16, shape)

    tokens = np.array([len(span.offsets) for span in spans])
    begin = _begins(tokens)
    map_begin = _begins(tokens * [span.question_tokens for span in spans])
    sides = [flat_array(side, begin[-1]) for side in ("start", "end")]
    maps = {hop: flat_array(hop, map_begin[-1]) for hop in hops}
    distractors = np.full((len(spans), 2), -1, dtype=np.int32)
    confidence, missing = np.zeros(len(spans), dtype=np.float32), set(range(len(spans)))
    for rows, output in outputs:
        rows, output = list(rows), _on_cpu(output)
        of_rows = [spans[row] for row in rows]
        missing.difference_update(rows)
        _check_output(folder.stem, of_rows, output, hops)
        start, end, mask = output[:3]
        distractors[rows], confidence[rows] = miner.mine(start, end, mask, of_rows)
        for logits, flat in zip((start, end), sides, strict=True):
            logits = logits.masked_fill(~mask, -torch.inf)
            values = (logits - logits.amax(dim=1, keepdim=True)).numpy()
            for row, span, line in zip(rows, of_rows, values, strict=True):
                kept = line[span.positions]
                if np.isnan(kept).any():
                    raise QalibError(
                        f"{folder.stem}: its logits for question {span.id!r} are not numbers; "
                        "train it again with a lower learning rate."
                    )
                flat[begin[row] : begin[row + 1]] = kept.clip(min=LOWEST)
        for hop, flat in maps.items():
            for row, span, table in zip(rows, of_rows, output.attentions[hop].numpy(), strict=True):
                kept = table[span.positions, : span.question_tokens]
                flat[map_begin[row] : map_begin[row + 1]] = kept.ravel()
    if missing:
        raise QalibError(f"{folder.stem}: gave no output for {len(missing)} of {len(spans)} rows.")
    for array in (*sides, *maps.values()):
        array.flush()
    np.savez(folder / "distractors.npz", spans=distractors, confidence=confidence)


def _check_output(
    teacher: str, spans: Sequence[TokenSpan], output: ReaderOutput, hops: Sequence[str]
) -> None:
    """Raise QalibError unless an output is about the tokens of these rows."""
    for span, mask in zip(spans, output.mask.numpy(), strict=True):
        real = np.zeros_like(mask)
        real[span.positions] = True
        if len(mask) < span.positions.stop or (real != mask).any():
            raise QalibError(
                f"{teacher}: question {span.id!r} has {int(mask.sum())} passage tokens, "
                f"{len(span.offsets)} in the cache; all teachers of a cache need the same tokens."
            )
    missing = [hop for hop in hops if hop not in output.attentions]
    if missing:
        raise QalibError(
            f"{teacher}: has no attention {missing[0]!r} on the question; set attention to false."
        )


class TeacherTargets:
    """The soft targets of one teacher, or of an ensemble, from the ``teacher-<n>`` folders.

    Raises QalibError if the teachers were cached for different rows.
    """

    def __init__(self, folders: Sequence[Path]):
        first = folders[0].parent / "rows.json"
        for other in {folder.parent for folder in folders} - {first.parent}:
            if (other / "rows.json").read_bytes() != first.read_bytes():
                raise QalibError(
                    f"{first.parent} and {other} are of different rows; cache all teachers of a "
                    "student for the same data and with the same tokens."
                )
        rows = json.loads(first.read_text(encoding="ascii"))
        self.hops = rows["hops"]
        self.tokens, self.question = (np.array(rows[n]) for n in ("tokens", "question_tokens"))
        self.begin = _begins(self.tokens)  # (R + 1,) of a row's tokens in the flat arrays
        self.map_begin = _begins(self.tokens * self.question)  # (R + 1,) of its attention map
        offsets = np.split(np.load(first.with_name("offsets.npy")), self.begin[1:-1])
        columns = (rows["ids"], offsets, rows["context_start"], rows["question_tokens"])
        self.spans = [TokenSpan(*column) for column in zip(*columns, strict=True)]
        self._sides = [_memory_maps(folders, side) for side in ("start", "end")]
        self._maps = {hop: _mean(_memory_maps(folders, hop)) for hop in self.hops}
        mined = [np.load(folder / "distractors.npz") for folder in folders]
        self.distractor_spans = np.stack([m["spans"] for m in mined])  # (T, R, 2), characters
        self.confidence = np.stack([m["confidence"] for m in mined])  # (T, R)

    def __len__(self) -> int:
        return len(self.spans)

    def distractors(self) -> DistractorSpans:
        """The confusing answer of each row, that of its most confident teacher (3.4).

        Ties go to the first teacher.
        """
        rows, teacher = np.arange(self.confidence.shape[1]), self.confidence.argmax(axis=0)
        found = self.confidence[teacher, rows].astype(np.float32)
        spans = np.where(found[:, None] > 0, self.distractor_spans[teacher, rows], -1)
        return DistractorSpans(spans, found)

    def logits(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Start and end logits (T, B, P) float32, and which of them are real (B, P) bool.

        They are known up to a constant; the largest of each row is 0.
        """
        tokens = self.tokens[rows]
        position = np.arange(tokens.max(initial=0))
        real = position < tokens[:, None]
        index = np.where(real, self.begin[rows][:, None] + position, 0)
        tables = [[np.where(real, flat[index], 0) for flat in flats] for flats in self._sides]
        start, end = torch.from_numpy(np.array(tables, dtype=np.float32))
        return start, end, torch.from_numpy(real)

    def attention(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The teachers' mean map of each hop (B, P, N) float16; padding is 0."""
        tokens, question = (x[rows][:, None, None] for x in (self.tokens, self.question))
        p, n = np.arange(tokens.max())[:, None], np.arange(question.max())
        real = (p < tokens) & (n < question)
        index = np.where(real, self.map_begin[rows][:, None, None] + p * question + n, 0)
        maps = {hop: np.where(real, flat[index], np.float16(0)) for hop, flat in self._maps.items()}
        return {hop: torch.from_numpy(table) for hop, table in maps.items()}


def _memory_maps(folders: Sequence[Path], name: str) -> list[np.ndarray]:
    """Of the files of one name, as plain arrays, which are sliced faster."""
    return [np.asarray(np.load(folder / _file(name), mmap_mode="r")) for folder in folders]


def _mean(flats: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of arrays, in memory; a single one stays where it is."""
    if len(flats) == 1:
        return flats[0]
    total = sum(flat.astype(np.float32) for flat in flats)
    return (total / len(flats)).astype(np.float16)


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.npy"


def _begins(lengths: np.ndarray) -> np.ndarray:
    """Where each row begins in a flat array, and where the last ends.  (R,) -> (R + 1,)"""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _on_cpu(output: ReaderOutput) -> ReaderOutput:
    """An output as float32 or bool on the CPU, without gradients."""

    def plain(x: Tensor) -> Tensor:
        return x.detach().to("cpu", x.dtype if x.dtype == torch.bool else torch.float32)

    maps = {name: plain(x) for name, x in output.attentions.items()}
    return ReaderOutput(*map(plain, output[:3]), maps)
