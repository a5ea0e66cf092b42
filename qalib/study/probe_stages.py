"""Notebook 04: probes of the attention of an encoder, before and after it learnt to answer.

The recorded runs: the features of all blocks of a sample of questions (too large to publish),
probes of every layer beside what needs no network, and probes of single heads and numbers. Probes
are fitted on training passages and scored on others of them by cross-validation; those fitted on
all of them are also scored on the test passages.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from qalib.data.features import WindowConfig
from qalib.data.squad import Example
from qalib.errors import QalibError
from qalib.probes import BlockData, ProbeConfig, Scores
from qalib.study.entries import Run
from qalib.study.session import Study

if TYPE_CHECKING:
    from qalib.readers.encoder_reader import EncoderReader

AFTER, BEFORE = "after", "before"  # fine-tuning
ATTENTION, WORDS = "attention", "words and place"
BLOCKS = "blocks.safetensors"


@dataclass(frozen=True)
class Probes:
    """Whose attention is probed, and on how much.

    ``reader``: "shipped" is the one that comes with the kit, "profile" that of the section
    ``encoder``, trained as in notebook 00. Questions are taken evenly from the data.
    """

    reader: Literal["shipped", "profile"] = "shipped"
    train_questions: int = 600
    test_questions: int = 200
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self):
        for name in ("train_questions", "test_questions"):
            if getattr(self, name) < 1:
                raise QalibError(f"probes: {name} must be at least 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Subject:
    """The reader whose attention is probed, as it is and as it was before its fine-tuning.

    Before it, the span head is a random one; attention does not depend on it.
    """

    inputs: Mapping[str, str]  # what the run of a probe depends on
    windows: WindowConfig
    load: Mapping[str, Callable[[], "EncoderReader"]]  # by AFTER and BEFORE


def subject(study: Study) -> Subject:
    """The reader that the profile's section ``probes`` names."""
    from qalib.readers import encoder_reader, shipped
    from qalib.study import stages

    if study.section("probes", Probes).reader == "shipped":
        base = encoder_reader.EncoderConfig()
        return Subject(
            {"checkpoint": shipped.checkpoint_hash(shipped.SHIPPED)},
            shipped.windows_of(),
            {AFTER: shipped.load_reader, BEFORE: lambda: encoder_reader.build_encoder(base)},
        )
    trained = stages.encoder(study)
    config = stages.training_of(trained)
    return Subject(
        {"weights": trained.key},
        config.windows,
        {
            AFTER: lambda: stages.trained_reader(trained),
            BEFORE: lambda: encoder_reader.build_encoder(config.encoder, config.seed),
        },
    )


def sample(study: Study, split: str) -> list[Example]:
    """The questions that are probed, evenly from the profile's ``train`` or ``test`` data."""
    asked, data = study.section("probes", Probes), study.data(split)
    wanted = asked.train_questions if split == "train" else asked.test_questions
    count = min(wanted, len(data))
    return [data.examples[i * len(data) // count] for i in range(count)]


def blocks(study: Study, when: str, split: str) -> BlockData:
    """All blocks of the sampled questions, from a run that keeps them; ``when`` as in Subject."""
    from qalib.checkpoints import load_weights

    run = _blocks_run(study, when, split)
    tensors = load_weights(run.file(BLOCKS))
    return BlockData(**{name: tensor.numpy() for name, tensor in tensors.items()})


def _blocks_run(study: Study, when: str, split: str) -> Run:
    asked, about = study.section("probes", Probes), subject(study)
    questions = sample(study, split)

    def compute(work: Path) -> dict:
        import torch

        from qalib.checkpoints import save_weights
        from qalib.probes import collect

        reader = about.load[when]().to("cuda" if torch.cuda.is_available() else "cpu")
        found = collect(reader, questions, about.windows, asked.probe)
        arrays = {f.name: torch.from_numpy(getattr(found, f.name)) for f in fields(found)}
        save_weights(arrays, work / BLOCKS)
        share = float(found.labels.mean())
        return {"questions": len(questions), "blocks": len(found), "answers": share}

    settings = {"when": when, "split": split, "questions": len(questions), "windows": about.windows}
    settings |= {"block_size": asked.probe.block_size, "batch": asked.probe.tokens_per_batch}
    inputs = {**about.inputs, "data": study.data(split).content_sha256}
    return study.store.get_or_run(
        "probe-blocks", settings, compute, inputs=inputs, needs=(BLOCKS,), force=study.force
    )


def probe_layers(study: Study) -> Run:
    """Probes of every layer, after and before fine-tuning, and the baselines.

    Keeps scores.csv and blocks.csv, which ``probe_tables`` reads.
    """

    def compute(work: Path) -> dict:
        config = study.section("probes", Probes).probe
        train = {when: blocks(study, when, "train") for when in (AFTER, BEFORE)}
        test = blocks(study, AFTER, "test")
        rows = [row for when, data in train.items() for row in _by_fold(data, when, config)]
        on_test, probabilities = _on_test(train[AFTER], test, config)
        _write(pd.DataFrame([*rows, *on_test]), work / "scores.csv")
        table = _block_table(sample(study, "test"), test, probabilities)
        _write(table, work / "blocks.csv")
        counts = {"blocks": len(train[AFTER]), "passages": len(np.unique(train[AFTER].passages))}
        return {**counts, "answers": float(train[AFTER].labels.mean()), "test_blocks": len(test)}

    return _probe_run(study, "probe-layers", compute)


def probe_parts(study: Study) -> Run:
    """Probes of single heads, of single numbers, and of all numbers but one.

    Keeps heads.csv (layer, head, AUC) and numbers.csv (layer, number, alone, without, all): the
    mean AUC over the folds of the training passages.
    """

    def compute(work: Path) -> dict:
        config = study.section("probes", Probes).probe
        data = blocks(study, AFTER, "train")
        _write(pd.DataFrame(_by_head(data, config)), work / "heads.csv")
        _write(pd.DataFrame(_by_number(data, config)), work / "numbers.csv")
        return {"layers": data.features.shape[1], "heads": data.features.shape[2]}

    return _probe_run(study, "probe-parts", compute)


def _probe_run(study: Study, stage: str, compute: Callable[[Path], dict]) -> Run:
    from qalib.study.stages import note_data

    train, test = study.data("train"), study.data("test")
    about = subject(study)

    def noted(work: Path) -> dict:
        note_data(work, train, test)
        return compute(work)

    inputs = {**about.inputs, "train": train.content_sha256, "test": test.content_sha256}
    settings = {"probes": study.section("probes", Probes), "windows": about.windows}
    run = study.store.get_or_run(stage, settings, noted, inputs=inputs, force=study.force)
    return study.keep(run)


# --- what the runs compute ---------------------------------------------------------------------


def _readings(data: BlockData) -> Iterable[tuple[str, int, np.ndarray]]:
    """All that probes are fitted on: (what they read, layer or 0, inputs)."""
    from qalib.probes import select

    yield WORDS, 0, data.plain
    for layer in range(1, data.features.shape[1] + 1):
        yield ATTENTION, layer, select(data.features, layer)


def _by_fold(data: BlockData, when: str, config: ProbeConfig) -> list[dict]:
    from qalib.probes import baselines, cross_validate

    made = []
    for reads, layer, inputs in _readings(data):
        made.append((reads, layer, cross_validate(inputs, data.labels, data.passages, config)))
    for reads, scores in baselines(data.labels, data.passages, config).items():
        made.append((reads, 0, scores))
    return [
        _row(score, encoder=when, on="folds", reads=reads, layer=layer, fold=fold)
        for reads, layer, scores in made
        for fold, score in enumerate(scores)
    ]


def _on_test(train: BlockData, test: BlockData, config: ProbeConfig) -> tuple[list[dict], dict]:
    """Scores on the test passages of probes fitted on all others, and their probabilities."""
    from qalib.probes import fit, score

    found: dict[tuple[str, int], np.ndarray] = {}
    for (reads, layer, inputs), (_, _, others) in zip(
        _readings(train), _readings(test), strict=True
    ):
        found[reads, layer] = fit(inputs, train.labels, config).probabilities(others)
    most = float(train.labels.mean() > 0.5)
    found["majority", 0] = np.full(len(test), most)
    found["every block", 0] = np.ones(len(test))
    rows = [
        _row(
            score(chances, test.labels, config.threshold),
            encoder=AFTER,
            on="test",
            reads=reads,
            layer=layer,
            fold=0,
        )
        for (reads, layer), chances in found.items()
    ]
    columns = {"words": found[WORDS, 0]}
    columns |= {f"layer {layer}": p for (reads, layer), p in found.items() if reads == ATTENTION}
    return rows, columns


def _row(score: Scores, **about: object) -> dict:
    """A row of scores.csv: percent, but for the AUC."""
    percent = {name: 100 * value for name, value in asdict(score).items() if name != "auc"}
    return {**about, **percent, "auc": score.auc}


def _block_table(examples: list[Example], test: BlockData, chances: dict) -> pd.DataFrame:
    told = {
        "id": [examples[i].id for i in test.examples],
        "start": test.characters[:, 0],
        "end": test.characters[:, 1],
        "answer": test.labels,
    }
    return pd.DataFrame({**told, **{name: p.round(4) for name, p in chances.items()}})


def _by_head(data: BlockData, config: ProbeConfig) -> list[dict]:
    layers, heads = data.features.shape[1:3]
    return [
        {"layer": layer, "head": head + 1, "auc": _auc(data, config, layer, heads=[head])}
        for layer in range(1, layers + 1)
        for head in range(heads)
    ]


def _by_number(data: BlockData, config: ProbeConfig) -> list[dict]:
    from qalib.skim.features import SIX

    rows = []
    for layer in range(1, data.features.shape[1] + 1):
        everything = _auc(data, config, layer)
        for number, name in enumerate(SIX):
            others = [n for n in range(len(SIX)) if n != number]
            alone = _auc(data, config, layer, kinds=[number])
            without = _auc(data, config, layer, kinds=others)
            scores = {"alone": alone, "without": without, "all": everything}
            rows.append({"layer": layer, "number": name, **scores})
    return rows


def _auc(data: BlockData, config: ProbeConfig, layer: int, **part: list[int]) -> float:
    from qalib.probes import cross_validate, mean_scores, select

    inputs = select(data.features, layer, **part)
    return mean_scores(cross_validate(inputs, data.labels, data.passages, config)).auc


def _write(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n")
