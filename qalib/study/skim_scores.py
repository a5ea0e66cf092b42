"""What predictors say about every block of a data set, and how the answers fare for it."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from qalib.data.features import WindowConfig
from qalib.data.squad import Dataset
from qalib.skim.recall import block_scores, found_at, kept_at, recall_curve
from qalib.study.entries import Run
from qalib.study.parallel import get_or_run
from qalib.study.session import Study
from qalib.study.skim_training import SkimTraining, skim_windows, trained_skim_reader, training_of
from qalib.study.stages import evaluate, note_data

FOUND = (0.99, 0.98, 0.95)  # shares of the questions whose answer is to be kept
KEPT = (0.6, 0.4)  # shares of the tokens that may be


@dataclass(frozen=True)
class Judged:
    """Every passage block of a data set. N blocks, A gold answers of a question at most."""

    row: np.ndarray  # (N,) int32, the question
    sizes: np.ndarray  # (N,) int32, tokens
    answers: np.ndarray  # (N, A) bool, which gold answers have a token there
    labels: np.ndarray  # (N,) bool, what predictors were to say
    scores: dict[int, np.ndarray]  # (N,) float32 probabilities, by layer


def judge(model, data: Dataset, config: SkimTraining, budget: int = 8192) -> Judged:
    """Ask every predictor about every block; nothing is skipped on the way."""
    import torch

    from qalib.data.batches import inference_batches
    from qalib.train import choose_precision

    windows, collate_rows = skim_windows(model, data, config)
    device = next(model.parameters()).device.type
    precision, _ = choose_precision("auto", device)
    parts: list[dict] = [{} for _ in windows]
    model.eval()
    for rows in inference_batches([len(window) for window in windows], budget):
        batch = collate_rows(rows).to(torch.device(device))
        with (
            torch.inference_mode(),
            torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
        ):
            output = model.run(batch, skim=False)
        for place, number in enumerate(rows):
            parts[number] = _window(output, place, windows[number], config)
    return _together(parts, windows)


def _window(output, place: int, window, config: SkimTraining) -> dict:
    of = output.blocks.of[place].cpu().numpy()
    there = output.blocks.real[place].cpu().numpy()
    count = int(there.sum())
    touched = np.zeros((count, len(window.spans)), dtype=bool)
    first = np.zeros(count, dtype=int)  # tokens of the first gold answer
    for column, (start, end) in enumerate(window.spans):
        if start >= window.first:  # not the null answer
            touched[of[start : end + 1], column] = True
            if column == 0:
                first = np.bincount(of[start : end + 1], minlength=count)
    labels = first > 1 if config.loss.two_tokens else touched.any(axis=1)
    scores = {
        layer: x[place, :count].float().sigmoid().cpu().numpy()
        for layer, x in output.scores.items()
    }
    sizes = np.bincount(of[of >= 0], minlength=count)
    return {"sizes": sizes, "touched": touched, "labels": labels, "scores": scores}


def _together(parts: list[dict], windows: list) -> Judged:
    """All windows' blocks behind each other; the windows of a question side by side."""
    row = np.concatenate(
        [np.full(len(p["sizes"]), w.example) for p, w in zip(parts, windows, strict=True)]
    )
    taken: dict[int, int] = {}  # gold answers of earlier windows of the question
    columns = []
    for part, window in zip(parts, windows, strict=True):
        columns.append(taken.get(window.example, 0))
        taken[window.example] = columns[-1] + part["touched"].shape[1]
    answers = np.zeros((len(row), max([1, *taken.values()])), dtype=bool)
    at = 0
    for part, column in zip(parts, columns, strict=True):
        touched = part["touched"]
        answers[at : at + len(touched), column : column + touched.shape[1]] = touched
        at += len(touched)

    def joined(name: str, kind) -> np.ndarray:
        return np.concatenate([part[name] for part in parts]).astype(kind)

    layers = parts[0]["scores"] if parts else {}
    scores = {n: np.concatenate([p["scores"][n] for p in parts]) for n in layers}
    sizes, labels = joined("sizes", np.int32), joined("labels", bool)
    return Judged(row.astype(np.int32), sizes, answers, labels, scores)


def summarise(judged: Judged) -> dict:
    """Of every layer: precision, recall, F1, and what the recall curve says at FOUND and KEPT."""
    told: dict = {"blocks": len(judged.row), "positive": float(judged.labels.mean())}
    layers = {}
    for layer, scores in judged.scores.items():
        curve = recall_curve(scores, judged.answers, judged.sizes, judged.row)
        scored = block_scores(scores, judged.labels)
        layers[str(layer)] = {
            "precision": 100 * scored.precision,
            "recall": 100 * scored.recall,
            "f1": 100 * scored.f1,
            "accuracy": 100 * scored.accuracy,
            **{f"kept at {share:g}": kept_at(curve, share)[0] for share in FOUND},
            **{f"threshold at {share:g}": kept_at(curve, share)[1] for share in FOUND},
            **{f"found at {share:g}": found_at(curve, share) for share in KEPT},
        }
    return told | {"layers": layers}


def judge_blocks(study: Study, trained: Run, data: Dataset, force: bool | str = "") -> Run:
    """The blocks of a data set as a ``train-skim`` run's predictors see them.

    Keeps blocks.safetensors (:class:`Judged`), some 30 bytes a block: 2 MB for SQuAD's dev set.
    """

    def compute(work: Path) -> dict:
        note_data(work, data)
        model = trained_skim_reader(trained, study.store)
        judged = judge(model, data, training_of(trained))
        write_judged(judged, work / "blocks.safetensors")
        return summarise(judged)

    inputs = {"weights": trained.key, "data": data.content_sha256}
    run = get_or_run(
        study.store, "judge-blocks", {}, compute, inputs=inputs, force=force or study.force
    )
    return study.keep(run)


def write_judged(judged: Judged, path: Path) -> None:
    """One safetensors file."""
    from safetensors.numpy import save_file

    told = asdict(judged)
    scores = {f"layer {n}": x for n, x in told.pop("scores").items()}
    save_file({k: np.ascontiguousarray(v) for k, v in (told | scores).items()}, path)


def read_judged(run: Run) -> Judged:
    """What a ``judge-blocks`` run kept."""
    from safetensors.numpy import load_file

    found = load_file(run.file("blocks.safetensors"))
    layers = {name: found.pop(name) for name in list(found) if name.startswith("layer ")}
    return Judged(scores={int(n.split()[1]): x for n, x in layers.items()}, **found)


def layer_table(judged: Run) -> pd.DataFrame:
    """The numbers of :func:`summarise`, one row a layer."""
    table = pd.DataFrame(judged.metrics["layers"]).T
    table.index = pd.Index([int(n) for n in table.index], name="layer")
    return table.sort_index()


@dataclass(frozen=True)
class Skimming:
    """Where a reader skims when it answers, and how sharply."""

    skim_at: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = ()
    min_keep: int = 1
    neighbours: int = 0
    restore: str = "minus-infinity"


def evaluate_skimmed(
    study: Study,
    name: str,
    trained: Run,
    skimming: Skimming = Skimming(),
    test: Dataset | None = None,
    windows: WindowConfig | None = None,
) -> Run:
    """A reader that skims: EM, F1 and ``read``, the mean share of a passage that it reads.

    Without ``skim_at`` its predictors are not asked: what joint training alone does for answers.
    Passages are cut into ``windows``, by default into those of its training.
    """
    from qalib.answer import AnswerConfig, Answerer

    settings = AnswerConfig(windows=windows or training_of(trained).base.windows)

    def answer(test: Dataset) -> tuple[dict, dict]:
        model = trained_skim_reader(trained, study.store)
        model.skimmer.tune(**asdict(skimming))
        found = Answerer(model, settings).answer_all(test.examples)
        texts = {e.id: a.candidates[0].text for e, a in zip(test.examples, found, strict=True)}
        return texts, {"read": float(np.mean([answered.read for answered in found]))}

    asked = {"answer": settings, "skim": asdict(skimming)}
    return evaluate(study, name, {"weights": trained.key}, answer, asked, test)
