"""What an ensemble knows of its training data: sums over many rows, its surest mistakes, one row.

Notation: T teachers, B rows of a batch, P passage tokens. q1 and q2 are the ensemble's start and
end probabilities; k and l the gold ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qalib.data.squad import Dataset, Example
from qalib.distill.characters import Place, span_positions
from qalib.distill.lessons import Lessons
from qalib.distill.losses import entropy, teacher_probabilities
from qalib.study.distill_settings import asked, training_data
from qalib.study.distill_stages import tuning
from qalib.study.distill_study import knowledge
from qalib.study.distill_teaching import lessons_of
from qalib.study.entries import Run
from qalib.study.session import Study
from qalib.study.stages import note_data

ROWS = 2000  # of the training data that sums are taken over, evenly spread
SURE = 5  # of the ensemble's surest mistakes that are told
WORDS = 20  # of the shown row, those with the largest shares
BITS = 1 / np.log(2)
WHO = ("one", "all", "all, softened")  # who is asked, and at which temperature
MISTAKE = ("question", "gold", "taken for it", "probability")


def tuning_table(study: Study) -> pd.DataFrame:
    """EM and F1 on held-out training passages by learning rate and epochs, if any were tried."""
    rows = []
    for run in tuning(study).values():
        schedule = run.config["train"]
        row = {"learning rate": schedule["learning_rate"], "epochs": schedule["epochs"]}
        row |= {"EM": run.metrics["held_out_exact_match"], "F1": run.metrics["held_out_f1"]}
        rows.append(row)
    return pd.DataFrame(rows, columns=["learning rate", "epochs", "EM", "F1"])


def ensemble_view(study: Study) -> Run:
    """What all teachers know of the training data. Metrics:

    ``rows`` looked at; ``gold``, ``entropy`` and ``agree`` as :func:`sums` has them; ``surest``, a
    list of mistakes; ``shown``, words of the row with the surest one (of the first, if none).
    """
    plan, data, known = asked(study), training_data(study), knowledge(study)

    def compute(work: Path) -> dict:
        note_data(work, data)
        lessons = lessons_of(known, range(plan.teachers))
        examples = {example.id: example for example in data.examples}
        sure = surest_rows(lessons)
        told = [mistake(lessons, row, examples) for row in sure]
        shown = shown_words(lessons, [*sure, 0][0], plan.loss.temperature, examples)
        return {**sums(lessons, data, plan.loss.temperature), "surest": told, "shown": shown}

    given = {"rows": ROWS, "temperature": plan.loss.temperature, "words": WORDS, "sure": SURE}
    inputs = {"knowledge": known.key, "data": data.content_sha256}
    run = study.store.get_or_run("ensemble-view", given, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def sums(lessons: Lessons, data: Dataset, temperature: float, at_once: int = 64) -> dict:
    """Means over rows, by who is asked: one teacher (mean of them), all, all at a temperature.

    ``gold``: the probability q1(k) q2(l) of the first gold answer, percent. ``entropy``: of q1 and
    q2 together, bits. ``agree``: rows whose likeliest start and end are the same to all teachers,
    percent.
    """
    rows = gold_rows(lessons, {example.id: example for example in data.examples})
    parts = [
        opinions(lessons, rows[begin : begin + at_once], temperature)
        for begin in range(0, len(rows), at_once)
    ]
    gold, bits, alike = (torch.cat(part, dim=-1).double() for part in zip(*parts, strict=True))
    found = {
        name: dict(zip(WHO, _three(values.mean(dim=1).tolist()), strict=True))
        for name, values in (("gold", 100 * gold), ("entropy", BITS * bits))
    }
    return {"rows": len(rows), **found, "agree": 100 * float(alike.mean())}


def opinions(
    lessons: Lessons, rows: Sequence[tuple[int, int, int]], temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What is said of some rows by each teacher, by all, and by all at the temperature.

    rows: as :func:`gold_rows` has them. Returns the probability of the gold answer (T + 2, B), the
    entropy of start and end together in nats (T + 2, B), and whether all teachers find the same
    start and the same end likeliest (B,).
    """
    start, end, mask = lessons.logits([row for row, _, _ in rows])
    first, last = (torch.tensor([row[side] for row in rows]) for side in (1, 2))
    teachers, place = range(len(start)), torch.arange(len(rows))
    asked_of = [([t], 1.0) for t in teachers] + [(list(teachers), t) for t in (1.0, temperature)]
    said = [
        [teacher_probabilities(logits[who], mask, tau) for logits in (start, end)]
        for who, tau in asked_of
    ]
    gold = torch.stack([q1[place, first] * q2[place, last] for q1, q2 in said])
    best = torch.stack([torch.stack([q.argmax(dim=1) for q in pair]) for pair in said[:-2]])
    return gold, torch.stack([entropy(*pair) for pair in said]), (best == best[0]).all(0).all(0)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of single teachers; all; all at the temperature."""
    return float(np.mean(values[:-2])), values[-2], values[-1]


def gold_rows(lessons: Lessons, examples: Mapping[str, Example]) -> list[tuple[int, int, int]]:
    """Rows with the passage tokens of their first gold answer, at most ``ROWS`` of them."""
    found = []
    for row in range(0, len(lessons), -(-len(lessons) // ROWS)):
        place = lessons.places[row]
        span = gold_span(examples[place.id], place)
        if span:
            found.append((row, *span))
    return found


def gold_span(example: Example, place: Place) -> tuple[int, int] | None:
    """The passage tokens of the first gold answer, inclusive; None if the row has not all."""
    answer = example.answers[0]
    return span_positions(answer.start, answer.end, place._replace(first=0))


def surest_rows(lessons: Lessons) -> list[int]:
    """The rows whose confusing answers the ensemble is surest of, each question once."""
    mined = lessons.mined()
    chosen: dict[str, int] = {}
    for row in np.argsort(-mined.confidence, kind="stable").tolist():
        if mined.confidence[row] > 0 and len(chosen) < SURE:
            chosen.setdefault(lessons.places[row].id, row)
    return list(chosen.values())


def mistake(lessons: Lessons, row: int, examples: Mapping[str, Example]) -> dict:
    """A row's question, gold answer and confusing answer, with the probability of the latter."""
    mined, example = lessons.mined(), examples[lessons.places[row].id]
    a, b = mined.spans[row].tolist()
    told = (example.question, example.answers[0].text, example.context[a:b])
    return dict(zip(MISTAKE, (*told, float(mined.confidence[row])), strict=True))


def shown_words(
    lessons: Lessons, row: int, temperature: float, examples: Mapping[str, Example]
) -> list[dict]:
    """The words of a row with the largest shares, in their order.

    word; start and end at 1 and at the temperature; of: "gold", "taken" (for it) or neither, "".
    """
    start, end, mask = lessons.logits([row])
    table = {
        f"{side}{name}": teacher_probabilities(logits, mask, tau)[0].numpy()
        for name, tau in (("", 1.0), (", softened", temperature))
        for side, logits in (("start", start), ("end", end))
    }
    most = np.max(list(table.values()), axis=0)
    place, (a, b) = lessons.places[row], lessons.mined().spans[row].tolist()
    example, rows = examples[place.id], []
    spans = [("gold", g.start, g.end) for g in example.answers] + [("taken", a, b)]
    for i in np.sort(np.argsort(-most, kind="stable")[:WORDS]).tolist():
        begin, behind = place.offsets[i].tolist()
        of = [name for name, first, last in spans if begin < last and behind > first]
        shares = {name: float(values[i]) for name, values in table.items()}
        rows.append({"word": example.context[begin:behind], **shares, "of": [*of, ""][0]})
    return rows


def mining_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What mining found, one row a ``teacher-knowledge`` run."""
    names = ("windows", "teachers", "yield_percent", "confidence", "same_kind_percent")
    rows = {kind: {n: run.metrics[n] for n in names} for kind, run in runs.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("mining")


def knowledge_sums(view: Run) -> pd.DataFrame:
    """Gold probability and entropy by who is asked, as a table."""
    names = {"gold": "probability of the gold answer, %", "entropy": "entropy, bits"}
    table = pd.DataFrame({title: view.metrics[name] for name, title in names.items()})
    return table.loc[list(WHO)].rename_axis("teachers")


def mistakes(view: Run) -> pd.DataFrame:
    """The ensemble's surest mistakes, as a table."""
    return pd.DataFrame(view.metrics["surest"], columns=list(MISTAKE))


def shown_table(view: Run) -> pd.DataFrame:
    """The words of the surest mistake, as :func:`shown_words` has them."""
    shares = ["start", "end", "start, softened", "end, softened"]
    return pd.DataFrame(view.metrics["shown"], columns=["word", *shares, "of"])
