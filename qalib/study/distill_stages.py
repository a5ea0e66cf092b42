"""The readers of answer distillation: word-level readers trained plainly, which become teachers.

Teacher n is the plain reader with seed n: other first weights, another order of the questions,
other dropout. So the single models that an ensemble is compared with are its own members.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qalib.data.squad import Dataset, hold_out
from qalib.data.word_features import WordWindow, word_windows
from qalib.errors import QalibError
from qalib.study.distill_settings import (
    WordTraining,
    ablation_data,
    answer_settings,
    asked,
    training_data,
)
from qalib.study.entries import Run
from qalib.study.parallel import get_or_run
from qalib.study.session import Study
from qalib.study.stages import note_data
from qalib.study.store import Store
from qalib.train import Task


def train_words(
    store: Store, data: Dataset, config: WordTraining, force: bool | str = False
) -> Run:
    """Train a word-level reader on ``data``.

    Keeps log.jsonl (loss, speed and, after every epoch, EM and F1 on the passages held out) and
    weights.safetensors (what training moved).
    """

    def compute(work: Path) -> dict:
        from qalib.readers.mnemonic_reader import build_mnemonic_reader

        note_data(work, data)
        rest, held = parted(data, config.held_out)
        reader = build_mnemonic_reader(config.reader, seed=config.seed)
        task = word_task(learnt_windows(reader, rest, config), config.smoothing)
        return learn(work, reader, task, config, len(rest), held)

    inputs = {"data": data.content_sha256}
    return get_or_run(store, "train-words", config, compute, inputs=inputs, force=force)


def parted(data: Dataset, share: float) -> tuple[Dataset, Dataset | None]:
    """What is learnt from and what is held out, None for a share of 0.

    Raises QalibError if the data has too few passages for the share.
    """
    if not share:
        return data, None
    rest, held = hold_out(data, share)
    if not len(rest) or not len(held):
        raise QalibError(
            f"{data.name}: its passages cannot be parted with {share:g} of them held out; take "
            "more questions or another share."
        )
    return rest, held


def learn(
    work: Path,
    reader,
    task: Task,
    config: WordTraining,
    questions: int,
    held: Dataset | None = None,
) -> dict:
    """Train a reader in the folder of its run and keep its weights there.  -> metrics

    ``held``, if it is given, is answered after every epoch and at the end.
    """
    from accelerate import Accelerator

    from qalib.checkpoints import save_weights, trained_tensors
    from qalib.train import train

    def scored() -> dict:
        return held_out_scores(reader, held, config) if held else {}

    summary = train(
        reader, task, config.train, work, config.seed, after_epoch=lambda epoch: scored()
    )
    if Accelerator(mixed_precision="no").is_main_process:
        save_weights(trained_tensors(reader), work / "weights.safetensors")
    sizes = {"questions": questions, "windows": len(task.lengths), "parameters": size_of(reader)}
    return {**sizes, **summary, **scored()}


def size_of(reader) -> int:
    """How many parameters training moves; the embedding is not among them."""
    return sum(p.numel() for p in reader.parameters() if p.requires_grad)


def learnt_windows(reader, data: Dataset, config: WordTraining) -> list[WordWindow]:
    """The windows of a data set that hold a gold answer, as the reader takes them."""
    from qalib.data.features import training_windows

    return training_windows(word_windows(data.examples, reader.vocabulary, config.text))


def word_task(windows: Sequence[WordWindow], smoothing: float = 0.0) -> Task:
    """What a plain reader learns: the gold answers, their labels smoothed or not."""
    from qalib.data.word_batches import collate_words
    from qalib.distill.losses import label_loss

    return Task(
        lengths=[len(window) for window in windows],
        collate=lambda rows: collate_words([windows[row] for row in rows]),
        loss=lambda output, batch: label_loss(output, batch.spans, batch.weights, smoothing),
    )


def held_out_scores(reader, held: Dataset, config: WordTraining) -> dict:
    """EM and F1 of a reader that is being trained, on passages that it does not learn from."""
    from qalib.metrics import score

    found = score(held, answerer_of(reader, config).predictions(held.examples))
    return {f"held_out_{metric}": value for metric, value in found.items()}


def answerer_of(reader, config: WordTraining):
    """What answers questions with a word-level reader, as all of this study do."""
    from qalib.word_answer import WordAnswerer

    return WordAnswerer(reader, answer_settings(), config.text)


def trained_reader(trained: Run):
    """The reader of a ``train-words`` or ``train-student`` run, in evaluation mode."""
    from qalib.readers.mnemonic_reader import build_mnemonic_reader

    reader = build_mnemonic_reader(training_of(trained).reader)
    put_trained(reader, trained)
    return reader.eval()


def put_trained(reader, trained: Run) -> None:
    """Give a reader the weights of a run."""
    from qalib.checkpoints import load_weights, put_weights

    path = trained.file("weights.safetensors")
    put_weights(reader, load_weights(path), str(path))


def training_of(trained: Run) -> WordTraining:
    """How the reader of a run was trained, as the dataclass it was."""
    from qalib.study.profiles import build

    table = trained.config["base"] if trained.stage == "train-student" else trained.config
    return build(table, WordTraining, f"{trained.short}: config")


# --- what the study trains without distillation --------------------------------------------------


def teacher(study: Study, number: int) -> Run:
    """Teacher ``number``, from 0 on: the plain reader with that seed, counted from the study's.

    Raises QalibError if the profile has not so many.
    """
    plan = asked(study)
    if not 0 <= number < plan.teachers:
        raise QalibError(f"distill: there are teachers 0 to {plan.teachers - 1}, not {number}.")
    config = replace(plan.base, seed=study.seed + number)
    run = train_words(study.store, training_data(study), config, study.force)
    return study.keep(run)


def teachers(study: Study) -> list[Run]:
    """All teachers of the profile, the ensemble."""
    return [teacher(study, number) for number in range(asked(study).teachers)]


def singles(study: Study) -> list[Run]:
    """The single readers of the headline rows: the first teachers, one for each seed."""
    return teachers(study)[: asked(study).seeds]


def ablated(study: Study, number: int = 0) -> WordTraining:
    """How the readers of the ablations are trained: as all, but for the profile's epochs.

    ``number`` counts seeds from the study's.
    """
    plan = asked(study)
    epochs = plan.ablation_epochs or plan.base.train.epochs
    schedule = replace(plan.base.train, epochs=epochs)
    return replace(plan.base, train=schedule, seed=study.seed + number)


def plain(study: Study, smoothing: float = 0.0, number: int = 0) -> Run:
    """The reader without distillation on the ablations' data, its labels smoothed or not."""
    config = replace(ablated(study, number), smoothing=smoothing)
    return study.keep(train_words(study.store, ablation_data(study), config, study.force))


def tuning_run(study: Study, rate: float, epochs: int) -> Run:
    """The plain reader with one choice of learning rate and epochs, on the ablations' data.

    It is scored on passages held out of these, never on test data.
    """
    plan = asked(study)
    schedule = replace(plan.base.train, learning_rate=rate, epochs=epochs)
    config = replace(plan.base, train=schedule, held_out=plan.held_out, seed=study.seed)
    return study.keep(train_words(study.store, ablation_data(study), config, study.force))


def tuning(study: Study, choices: Sequence[tuple[float, int]] = ()) -> dict[str, Run]:
    """All choices of the profile, or those given, by name ("0.003 x 2")."""
    tried = choices or asked(study).choices
    return {choice_name(*choice): tuning_run(study, *choice) for choice in tried}


def choice_name(rate: float, epochs: int) -> str:
    """What a choice is called: "0.003 x 2"."""
    return f"{rate:g} x {epochs}"
