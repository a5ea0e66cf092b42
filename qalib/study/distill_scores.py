"""How single readers, ensembles and students do: on clean passages and on misleading ones."""

from collections.abc import Mapping, Sequence

from qalib.data.squad import Dataset
from qalib.study.distill_ensemble import reader_of
from qalib.study.distill_sets import CLEAN
from qalib.study.distill_settings import answer_settings, asked
from qalib.study.distill_stages import answerer_of, singles, teachers, training_of
from qalib.study.distill_study import row_runs, students
from qalib.study.entries import Run
from qalib.study.marks import has_variants
from qalib.study.session import Study
from qalib.study.stages import evaluate, predictions

SINGLE, ENSEMBLE, STUDENT_ROW, BY_TYPE = "single", "ensemble", "student", "question type only"
Runs = Mapping[str, Sequence[Run]]  # ``evaluate`` runs by reader, one a seed


def evaluate_words(
    study: Study, runs: Sequence[Run], test: Dataset, name: str = SINGLE, place: str = CLEAN
) -> Run:
    """One word-level reader, or several as an ensemble, on a test set; marks are kept.

    ``name``, ``place``: what the record calls the reader and the set. A set with added sentences
    is scored by the rule of the published ones: of a question that was turned its variant counts,
    of several the worst. What was not turned is not answered again: what was said to it as clean
    test data is taken over.
    """
    from qalib.metrics import adversarial_score

    inputs = {"weights": runs[0].key}
    if len(runs) > 1:
        inputs = {f"weights {number}": run.key for number, run in enumerate(runs)}
    added, clean = has_variants(test), None
    if added:
        clean = evaluate_words(study, runs, study.data("test"), name)
        inputs["clean"] = clean.key

    def answer(data: Dataset) -> tuple[dict, dict]:
        known = told_before(clean)
        answerer = answerer_of(reader_of(runs), training_of(runs[0]))
        new = [example for example in data if example.id not in known]
        found = {e.id: known[e.id] for e in data if e.id in known} | answerer.predictions(new)
        return found, adversarial_score(data, found) if added else {}

    kind = f"words: {name}" + (f", {place}" if added else "")
    return evaluate(study, kind, inputs, answer, answer_settings(), test, lean=True)


def told_before(run: Run | None) -> dict[str, str]:
    """The answers of an ``evaluate`` run where they are kept: records have only its marks."""
    kept = run is not None and (run.folder / "predictions.json").is_file()
    return predictions(run) if kept else {}


def evaluate_by_type(study: Study, test: Dataset) -> Run:
    """The first phrase of the form that the question word asks for: no reading needed."""
    from qalib.data.adversary_baselines import predictions_by_type
    from qalib.metrics import adversarial_score

    def answer(data: Dataset) -> tuple[dict, dict]:
        found = predictions_by_type(data.examples)
        return found, adversarial_score(data, found) if has_variants(data) else {}

    return evaluate(study, BY_TYPE, {"version": "1"}, answer, None, test, lean=True)


def headline(study: Study, sets: Mapping[str, Dataset]) -> dict[str, dict[str, list[Run]]]:
    """The rows of the main table on test sets: single and student by seed, the ensemble once."""
    readers = {SINGLE: [[run] for run in singles(study)], ENSEMBLE: [teachers(study)]}
    readers[STUDENT_ROW] = [[run] for run in students(study)]
    return {
        place: {
            who: [evaluate_words(study, group, test, who, place) for group in groups]
            for who, groups in readers.items()
        }
        | {BY_TYPE: [evaluate_by_type(study, test)]}
        for place, test in sets.items()
    }


def ablations(study: Study, sets: Mapping[str, Dataset]) -> dict[str, dict[str, list[Run]]]:
    """Every row of notebook 09 on test sets."""
    trained = row_runs(study)
    return {
        place: {
            row: [evaluate_words(study, [run], test, row, place) for run in runs]
            for row, runs in trained.items()
        }
        for place, test in sets.items()
    }


def ensembles(study: Study, test: Dataset, place: str = CLEAN) -> dict[int, Run]:
    """The ensemble of the first so many teachers, by their number."""
    members, sizes = teachers(study), {1, *asked(study).counts, asked(study).teachers}
    return {
        size: evaluate_words(study, members[:size], test, ensemble_name(study, size), place)
        for size in sorted(sizes)
    }


def ensemble_name(study: Study, size: int) -> str:
    """What an ensemble of so many teachers is called; all of them are *the* ensemble."""
    names = {1: SINGLE, asked(study).teachers: ENSEMBLE}
    return names.get(size, f"{ENSEMBLE} of {size}")
