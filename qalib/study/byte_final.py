"""The final byte-level reader: the best variant, trained on with clozes and finished sharply."""

from dataclasses import dataclass, replace

from qalib.data.cloze import cloze_examples
from qalib.data.squad import Dataset, make_dataset
from qalib.study.byte_stages import (
    ByteStudy,
    train_bytes,
    trained_variants,
    training_data,
    training_of,
)
from qalib.study.entries import Run
from qalib.study.session import Study


@dataclass(frozen=True)
class ByteFinal:
    """The final reader: a variant trained on with clozes, then finished on the questions alone."""

    variant: str = "dense"
    clozes: int = 10  # of a passage, at most
    epochs: int = 1  # more, with Adam, on questions and clozes
    dropout: float = 0.15  # of these and the last
    finish_epochs: int = 1  # with sigma 0, once by SGD and once by Adam
    finish_rate: float = 0.02  # of SGD; Adam's is that of ``ByteStudy.sharp_rate``


def final_reader(study: Study) -> tuple[Run, Run]:
    """Seed 0 of a variant, trained on with clozes, then finished: by Adam, and by SGD instead."""
    asked, data = study.section("byte_final", ByteFinal), training_data(study)
    first = trained_variants(study, asked.variant, seeds=1)[0]
    config = training_of(first)
    schedule = replace(config.train, epochs=asked.epochs)
    reader = replace(config.reader, dropout=asked.dropout)
    config = replace(config, reader=reader, train=schedule)
    more = with_clozes(data, asked.clozes, study.seed)
    trained = study.keep(train_bytes(study.store, more, config, first, study.force))
    rates = {"adam": study.section("bytes", ByteStudy).sharp_rate, "sgd": asked.finish_rate}
    finished = []
    for optimizer, rate in rates.items():
        schedule = replace(
            config.train, epochs=asked.finish_epochs, learning_rate=rate, weight_decay=0.0
        )
        finish = replace(config, optimizer=optimizer, sigma=0.0, train=schedule)
        run = train_bytes(study.store, data, finish, trained, study.force)
        finished.append(study.keep(run))
    return finished[0], finished[1]


def with_clozes(data: Dataset, per_passage: int, seed: int) -> Dataset:
    """A data set and clozes made from its passages."""
    clozes = cloze_examples(data.examples, per_passage, seed)
    name = f"{data.name}+clozes"
    return make_dataset(name, (*data.examples, *clozes), data.path, data.raw_sha256)
