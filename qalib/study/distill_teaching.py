"""Asking an ensemble what it knows, once: the runs of stage ``teacher-knowledge``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from qalib.data.batches import Batch
from qalib.data.squad import Dataset, Example, make_dataset
from qalib.distill.characters import Place
from qalib.distill.distractors import Mined, Miner, MiningConfig, mining_report
from qalib.distill.lessons import Lessons
from qalib.distill.teachers import TeacherCache
from qalib.errors import QalibError
from qalib.study.distill_stages import learnt_windows, trained_reader, training_of
from qalib.study.entries import Run
from qalib.study.stages import note_data
from qalib.study.store import Store

CACHE = "cache"  # the folder of a teacher-knowledge run


@dataclass(frozen=True)
class Asking:
    """What is kept of what teachers know, next to who they are and what they read.

    ``ensembles``: how many of the first teachers an ensemble has, for each that will be learnt
    from; their mean attention is made at once, so that students need not wait for one another.
    ``folds``: teacher k did not learn from the passages of fold k, and only it is asked for
    confusing answers there (out-of-fold); 0 = all teachers have read everything (in-fold).
    """

    mining: MiningConfig = field(default_factory=MiningConfig)
    attention: bool = True
    ensembles: tuple[int, ...] = ()
    folds: int = 0


@dataclass(frozen=True)
class Kind:
    """How teachers of one kind are asked; a *reader* is theirs, a *window* one of its inputs."""

    load: Callable[[Run], Any]  # the reader of a run
    windows: Callable[[Any, Dataset, Run], list]  # those of a data set with a gold answer
    places: Callable[[list, Sequence[Example]], list[Place]]
    collate: Callable[[Any, list], Batch]  # some windows as a batch
    tokenizer: Callable[[Any], Any]


def words() -> Kind:
    """Word-level readers."""
    from qalib.data.word_batches import collate_words
    from qalib.distill.characters import word_places

    return Kind(
        load=trained_reader,
        windows=lambda reader, data, run: learnt_windows(reader, data, training_of(run)),
        places=word_places,
        collate=lambda reader, windows: collate_words(windows),
        tokenizer=lambda reader: reader.vocabulary.tokenizer,
    )


def ask_teachers(
    store: Store,
    data: Dataset,
    teachers: Sequence[Run],
    config: Asking,
    force: bool | str = False,
    kind: Kind | None = None,
) -> Run:
    """The cache of what readers, word-level ones by default, know of ``data``.

    It is the folder "cache" of the run. An interrupted run goes on with the teacher that it was
    asking. Metrics say how many windows have a confusing answer, how sure the teachers are of it
    and whether it looks like an answer.
    """
    kind = kind or words()

    def compute(work: Path) -> dict:
        note_data(work, data)
        reader = kind.load(teachers[0])
        windows = kind.windows(reader, data, teachers[0])
        cache = _new_cache(work / CACHE, kind, reader, windows, data, config)
        miner = Miner(data.examples, config.mining)
        for number, run in enumerate(teachers):
            answers = _answers(kind.load(run).eval(), windows, kind)
            cache.write(str(number), answers, miner, {"run": run.key})
        for size in config.ensembles if config.attention else ():
            Lessons(cache, [str(n) for n in range(size)]).attention([0])
        lessons = Lessons(cache, cache.finished())
        allowed = _outside(cache, data, config.folds)
        found = mining_report(lessons.mined(allowed), cache.places, miner)
        size = sum(path.stat().st_size for path in (work / CACHE).rglob("*") if path.is_file())
        return {"windows": len(windows), "teachers": len(teachers), "bytes": size, **found}

    inputs = {f"teacher {number}": run.key for number, run in enumerate(teachers)}
    inputs["data"] = data.content_sha256
    return store.get_or_run("teacher-knowledge", config, compute, inputs=inputs, force=force)


def _new_cache(
    folder: Path, kind: Kind, reader, windows: list, data: Dataset, config: Asking
) -> TeacherCache:
    from qalib.distill.characters import tokenizer_hash

    hops = [f"align {n}" for n in range(1, reader.config.hops + 1)] if config.attention else []
    places, tokenizer = kind.places(windows, data.examples), tokenizer_hash(kind.tokenizer(reader))
    return TeacherCache.create(folder, places, data.content_sha256, tokenizer, hops)


def _answers(reader, windows: list, kind: Kind, budget: int = 8192) -> Iterator:
    """What a reader says about windows: (rows, output), in batches of like length."""
    import torch

    from qalib.data.batches import inference_batches
    from qalib.train import choose_precision

    device = next(reader.parameters()).device
    fast = choose_precision("auto", device.type)[0] == "bf16"
    for rows in inference_batches([len(window) for window in windows], budget):
        batch = kind.collate(reader, [windows[row] for row in rows]).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=fast):
            yield rows, reader(batch)


def fold_of(context: str, folds: int) -> int:
    """The fold of a passage, from its text alone."""
    digest = sha256(context.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[4:8]) % folds  # other bytes than those that ``hold_out`` looks at


def without_fold(data: Dataset, fold: int, folds: int) -> Dataset:
    """The data without the passages of one fold."""
    kept = [e for e in data.examples if fold_of(e.context, folds) != fold]
    return make_dataset(f"{data.name}-without-fold-{fold}-of-{folds}", kept, data.path)


def _outside(cache: TeacherCache, data: Dataset, folds: int) -> np.ndarray | None:
    """Which teacher may be asked about which row: (T, R) bool; None where all may."""
    if not folds:
        return None
    contexts = {example.id: example.context for example in data.examples}
    fold = np.array([fold_of(contexts[place.id], folds) for place in cache.places])
    return np.arange(folds)[:, None] == fold


def lessons_of(knowledge: Run, teachers: Sequence[int]) -> Lessons:
    """What some teachers of a ``teacher-knowledge`` run know.

    Raises QalibError if the run has not so many, or if its cache is not kept here.
    """
    known = {name: key for name, key in knowledge.inputs.items() if name.startswith("teacher ")}
    names = {str(number): known.get(f"teacher {number}") for number in teachers}
    for number, key in names.items():
        if key is None:
            raise QalibError(
                f"{knowledge.short}: there is no teacher {number} in it, only {len(known)} of them."
            )
    folder = knowledge.file(f"{CACHE}/offsets.npy").parent
    cache = TeacherCache.open(folder, knowledge.inputs["data"])
    return Lessons(cache, {number: {"run": key} for number, key in names.items()})


def outside_mined(lessons: Lessons, data: Dataset, outside: Run) -> Mined:
    """Out-of-fold distractors at the rows of other lessons; none where nobody outside was asked.

    ``outside``: the ``teacher-knowledge`` run with folds of ``data``.
    """
    from qalib.distill.characters import match_rows

    folds = outside.config["folds"]
    theirs = lessons_of(outside, range(folds))
    found = theirs.mined(_outside(theirs.cache, data, folds))
    rows = match_rows(theirs.places, lessons.places)
    spans = np.full((len(lessons), 2), -1, dtype=np.int32)
    confidence = np.zeros(len(lessons), dtype=np.float32)
    spans[rows], confidence[rows] = found.spans, found.confidence
    return Mined(spans, confidence)
