"""The named steps that notebooks ask for: each is computed once and kept in the run store."""

from dataclasses import dataclass
from pathlib import Path

from qalib.data.features import WindowConfig
from qalib.data.squad import Dataset, hold_out
from qalib.readers.encoder_reader import EncoderConfig
from qalib.study.entries import Run
from qalib.study.store import Store
from qalib.train import TrainConfig


@dataclass(frozen=True)
class EncoderTraining:
    """All that the weights of an encoder reader depend on, next to the data."""

    encoder: EncoderConfig = EncoderConfig()
    windows: WindowConfig = WindowConfig()
    train: TrainConfig = TrainConfig()
    loss: str = "mean"  # how several gold answers count: mean, marginal or min
    held_out: float = 0.0  # share of the passages kept back and scored after every epoch
    seed: int = 0


def train_encoder(store: Store, data: Dataset, config: EncoderTraining, force: bool = False) -> Run:
    """Train an encoder reader on ``data``.

    Keeps log.jsonl (loss, speed and, with ``held_out``, EM and F1 on the passages kept back) and
    weights.safetensors (what training moved).
    """

    def compute(work: Path) -> dict:
        from qalib.checkpoints import save_weights, trained_tensors
        from qalib.data.batches import collate
        from qalib.data.features import make_windows, training_windows
        from qalib.losses import span_loss
        from qalib.readers.encoder_reader import build_encoder
        from qalib.train import Task, train

        reader = build_encoder(config.encoder, config.seed)
        rest, held = hold_out(data, config.held_out) if config.held_out else (data, None)
        windows = training_windows(make_windows(rest.examples, reader.tokenizer, config.windows))
        pad = reader.tokenizer.pad_token_id or 0
        task = Task(
            lengths=[len(window) for window in windows],
            collate=lambda rows: collate([windows[i] for i in rows], pad, config.windows.null),
            loss=lambda output, batch: span_loss(output, batch.spans, batch.weights, config.loss),
        )
        after = (lambda epoch: _held_out_scores(reader, held, config)) if held else None
        summary = train(reader, task, config.train, work, config.seed, after_epoch=after)
        save_weights(trained_tensors(reader), work / "weights.safetensors")
        last = after(config.train.epochs) if after else {}
        return {"questions": len(rest), "windows": len(windows), **summary, **last}

    inputs = {"data": data.content_sha256}
    return store.get_or_run("train-encoder", config, compute, inputs=inputs, force=force)


def _held_out_scores(reader, held: Dataset, config: EncoderTraining) -> dict:
    from qalib.answer import AnswerConfig, Answerer
    from qalib.metrics import score

    answerer = Answerer(reader, AnswerConfig(windows=config.windows))
    scores = score(held, answerer.predictions(held.examples))
    return {f"held_out_{name}": value for name, value in scores.items()}
