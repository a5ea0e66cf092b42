"""What predictors say about every block of a data set, and how the answers fare for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qalib.data.features import WindowConfig
from qalib.data.squad import Dataset
from qalib.skim.recall import block_scores, found_at, kept_at, recall_curve
from qalib.study.entries import Run
from qalib.study.files import canonical
from qalib.study.parallel import get_or_run
from qalib.study.session import Study
from qalib.study.skim_training import SkimTraining, skim_windows, trained_skim_reader, training_of
from qalib.study.stages import evaluate, note_data

if TYPE_CHECKING:
    from qalib.skim.reader import SkimReader

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
    return judge_together({"": model}, data, config, budget)[""]


def judge_together(
    models: Mapping[str, "SkimReader"], data: Dataset, config: SkimTraining, budget: int = 8192
) -> dict[str, Judged]:
    """The same of several readers that differ in their predictors only: the data are read once.

    ``config`` says what all of them have in common: windows, blocks and labels.
    """
    import torch

    from qalib.data.batches import inference_batches
    from qalib.train import choose_precision

    first = next(iter(models.values()))
    windows, collate_rows = skim_windows(first, data, config)
    device = next(first.parameters()).device.type
    precision, _ = choose_precision("auto", device)
    parts: dict[str, list[dict]] = {name: [{} for _ in windows] for name in models}
    for model in models.values():
        model.eval()
    for rows in inference_batches([len(window) for window in windows], budget):
        batch = collate_rows(rows).to(torch.device(device))
        with (
            torch.inference_mode(),
            torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
        ):
            outputs = _ask(models, batch)
        for name, output in outputs.items():
            for place, number in enumerate(rows):
                parts[name][number] = _window(output, place, windows[number], config)
    return {name: _together(found, windows) for name, found in parts.items()}


def _ask(models: Mapping[str, "SkimReader"], batch) -> dict:
    """One pass of the reader whose predictors look at most; the others look along.  -> by name"""

    def looks(name: str) -> int:
        return sum(len(p.layers) for p in models[name].skimmer.predictors.values())

    reads = max(models, key=looks)
    said: dict[str, dict[int, object]] = {name: {} for name in models if name != reads}
    hooks = []
    for layer, predictor in models[reads].skimmer.predictors.items():

        def look_along(_, seen, __, layer=layer):
            for name, scores in said.items():
                scores[int(layer)] = models[name].skimmer.predictors[layer](*seen)

        hooks.append(predictor.register_forward_hook(look_along))
    try:
        output = models[reads].run(batch, skim=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: replace(output, scores=said.get(name, output.scores)) for name in models}


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
    return judge_runs(study, {"": trained}, data, force=force)[""]


def judge_runs(
    study: Study,
    runs: Mapping[str, Run],
    data: Dataset,
    windows: WindowConfig | None = None,
    force: bool | str = "",
) -> dict[str, Run]:
    """``judge_blocks`` of several runs, in one pass of the reader for all that stand beside it.

    ``windows`` instead of those that a reader was trained with.
    """
    judged: dict[str, Run] = {}
    for names in _beside_one_reader(runs):
        found: dict[str, Judged] = {}

        def compute(work: Path, name: str, names: list[str], found: dict[str, Judged]) -> dict:
            note_data(work, data)
            if not found:  # the first that is not recorded reads for all
                found |= _judge_runs(study, {n: runs[n] for n in names}, data, windows)
            write_judged(found[name], work / "blocks.safetensors")
            return summarise(found[name])

        for name in names:
            told = partial(compute, name=name, names=names, found=found)
            inputs = {"weights": runs[name].key, "data": data.content_sha256}
            settings = {"windows": windows} if windows else {}
            asked = {"inputs": inputs, "force": force or study.force}
            run = get_or_run(study.store, "judge-blocks", settings, told, **asked)
            judged[name] = study.keep(run)
    return {name: judged[name] for name in runs}


def _beside_one_reader(runs: Mapping[str, Run]) -> list[list[str]]:
    """Names of runs whose predictors differ in nothing but their kind; others by themselves."""
    groups: dict[str, list[str]] = {}
    for name, run in runs.items():
        common = run.config | {"predictor": run.config["predictor"]["block_size"]}
        frozen = run.config["frozen"] and run.inputs.get("start")
        groups.setdefault(canonical([common, frozen]) if frozen else name, []).append(name)
    return list(groups.values())


def _judge_runs(
    study: Study, runs: Mapping[str, Run], data: Dataset, windows: WindowConfig | None
) -> dict[str, Judged]:
    config = training_of(next(iter(runs.values())))
    if windows:
        config = replace(config, base=replace(config.base, windows=windows))
    models = {name: trained_skim_reader(run, study.store) for name, run in runs.items()}
    return judge_together(models, data, config)


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
