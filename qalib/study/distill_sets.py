"""What readers of answer distillation are tested on: clean passages, and misleading sentences.

AddSent-style sets are made once, by rules, and no person filtered them. Their fake answers come
from a bank that the bank for training shares nothing with; no reader here is trained on any.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qalib.data.adversary import (
    VARIANT,
    AdversarialSet,
    AdversaryConfig,
    Attempt,
    build_adversarial,
    insert,
)
from qalib.data.adversary_baselines import Trigger, TriggerConfig
from qalib.data.squad import Dataset, make_dataset
from qalib.errors import QalibError
from qalib.study.distill_settings import training_data
from qalib.study.distill_stages import answerer_of, singles, trained_reader, training_of
from qalib.study.entries import Run
from qalib.study.marks import LEAN
from qalib.study.session import DataConfig, Study
from qalib.study.stages import note_data, sample

CLEAN, ADDED = "clean", "sentence at the end"
FRONT, RANDOM, WORST = "sentence in front", "sentence anywhere", "worst of several"
TRIGGER = "fixed words"
SENTENCES = "attempts.json"  # the file of an ``adversarial-set`` run
PUBLISHED = {"addsent": "AddSent, published", "addonesent": "AddOneSent, published"}


@dataclass(frozen=True)
class DistillTests:
    """What readers are tested on beside the whole test data with and without a sentence added.

    ``every``: these further tests take every so many-th question. ``candidates``: sentences of
    which the worst counts. ``trigger_questions``: training questions that the fixed words are
    searched on, among so many ``trigger_words``, the most common ones of training answers.
    """

    every: int = 1
    candidates: int = 4
    trigger: TriggerConfig = field(default_factory=TriggerConfig)
    trigger_questions: int = 100
    trigger_words: int = 300

    def __post_init__(self):
        least_of = {"every": 1, "candidates": 2, "trigger_questions": 1, "trigger_words": 2}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise QalibError(f"distill_tests: {name} must be at least {least}, not {value}.")


def added_sentences(study: Study, config: AdversaryConfig, test: Dataset) -> Run:
    """The sentences for a test set: attempts.json, and the share of the questions they turned.

    Names, nouns and fake answers are borrowed from all of the profile's test data.
    """
    from qalib.data.near_words import piece_vectors
    from qalib.readers.encoder_reader import MINILM, model_folder

    source = study.data("test")

    def compute(work: Path) -> dict:
        note_data(work, test)
        made = build_adversarial(test, config, piece_vectors(model_folder(MINILM)), source)
        rows = [asdict(attempt) for attempt in made.attempts]
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
        (work / SENTENCES).write_text(text, encoding="utf-8")
        counts = made.attempted(question_type) | made.attempted()
        shares = {kind: 100 * done / total for kind, (done, total) in counts.items()}
        return {"questions": len(test), "sentences": len(rows), "attempted_percent": shares}

    inputs = {"test": test.content_sha256, "source": source.content_sha256}
    given = {"adversary": config, "near words": MINILM}
    run = study.store.get_or_run(  # a record without the sentences is no help: they are made again
        "adversarial-set", given, compute, inputs=inputs, needs=[SENTENCES], force=study.force
    )
    return study.keep(run, LEAN)


def with_sentences(test: Dataset, made: Run) -> AdversarialSet:
    """A test set whose questions are followed by the variants of an ``adversarial-set`` run."""
    rows = json.loads(made.file(SENTENCES).read_text(encoding="utf-8"))
    attempts = [Attempt(**{**row, "changes": tuple(map(tuple, row["changes"]))}) for row in rows]
    variants: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        variants.setdefault(attempt.base, []).append(attempt)
    examples = []
    for example in test:
        found = variants.get(example.id, ())
        examples += [example, *(insert(example, a.id, a.sentence, a.start) for a in found)]
    name = f"{test.name}-addsent-style"
    dataset = make_dataset(name, examples, test.path, test.raw_sha256, test.version)
    return AdversarialSet(dataset, tuple(attempts))


def one_row_each(made: Dataset) -> Dataset:
    """A set with variants without the originals of the questions that have one.

    By the rule of the published sets they do not count, so nobody needs to answer them.
    """
    turned = {base_id(e.id) for e in made if VARIANT in e.id}
    kept = [e for e in made if e.id not in turned]
    return make_dataset(made.name, kept, made.path, made.raw_sha256, made.version)


def base_id(id: str) -> str:
    """The question that a variant was made of, or the question itself."""
    return id.split(VARIANT)[0]


def question_type(question: str) -> str:
    """The first question word: what, who, which, when, where, how, why, or other."""
    from qalib.data.english import words_of

    kinds = {kind: kind for kind in ("what", "who", "which", "when", "where", "how", "why")}
    kinds |= {"whose": "who", "whom": "who"}
    return next((kinds[word] for word in words_of(question) if word in kinds), "other")


def main_sets(study: Study) -> dict[str, Dataset]:
    """The whole test data, clean and with a sentence at the end."""
    return {CLEAN: study.data("test"), ADDED: one_row_each(sentence_set(study).dataset)}


def sentence_set(study: Study, place: str = "end", candidates: int = 1) -> AdversarialSet:
    """Sentences for the whole test data, or in other places or numbers for a part of it."""
    whole = (place, candidates) == ("end", 1)
    test = study.data("test") if whole else small_test(study)
    return with_sentences(test, sentences_at(study, place, candidates))


def sentences_at(study: Study, place: str = "end", candidates: int = 1) -> Run:
    """The ``adversarial-set`` run of :func:`sentence_set`."""
    whole = (place, candidates) == ("end", 1)
    test = study.data("test") if whole else small_test(study)
    return added_sentences(study, AdversaryConfig(place, candidates, seed=study.seed), test)


def small_test(study: Study) -> Dataset:
    """The test questions of the further tests."""
    test, every = study.data("test"), study.section("distill_tests", DistillTests).every
    return test if every == 1 else sample(test, every)


def further_sets(study: Study) -> dict[str, Dataset]:
    """Sentences in other places, the worst of several, and fixed words, on fewer questions."""
    from qalib.data.adversary_baselines import trigger_set

    plan, test = study.section("distill_tests", DistillTests), small_test(study)
    wanted = {FRONT: ("front", 1), RANDOM: ("random", 1), WORST: ("end", plan.candidates)}
    found = {name: sentence_set(study, *how).dataset for name, how in wanted.items()}
    found[TRIGGER] = trigger_set(test, Trigger(trigger(study).metrics["text"], ()))
    return {name: one_row_each(made) for name, made in found.items()}


def trigger(study: Study) -> Run:
    """Words that, at the end of training passages, mislead the first single reader most.

    They are searched among common words of training answers. -> metrics text, before, after (F1)
    """
    from collections import Counter

    import numpy as np

    from qalib.data.adversary_baselines import find_trigger
    from qalib.data.english import words_of
    from qalib.metrics import question_scores

    plan, data = study.section("distill_tests", DistillTests), training_data(study)
    reader = singles(study)[0]

    def compute(work: Path) -> dict:
        note_data(work, data)
        chosen = data.examples[:: max(1, len(data) // plan.trigger_questions)]
        words = Counter(w for e in data.examples for w in words_of(e.answers[0].text))
        common = [word for word, _ in words.most_common(plan.trigger_words)]
        answerer = answerer_of(trained_reader(reader), training_of(reader))

        def mean_f1(examples) -> float:
            there = make_dataset("trigger", examples)
            found = answerer.predictions(there.examples)
            return 100 * float(np.mean(question_scores(there, found)[1]))

        before = mean_f1(chosen)
        found = find_trigger(chosen, common, mean_f1, plan.trigger)
        return {"text": found.text, "before": before, "after": found.scores[-1]}

    inputs = {"data": data.content_sha256, "weights": reader.key}
    given = {"trigger": plan.trigger, "questions": plan.trigger_questions}
    given["words"] = plan.trigger_words
    run = study.store.get_or_run("trigger", given, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def published_sets(study: Study) -> dict[str, Dataset]:
    """The published sets that have been fetched; none beside the embedded corpus."""
    from qalib.data import sources

    if study.section("data", DataConfig).test == ("almanac",):
        return {}
    there = {title: name for name, title in PUBLISHED.items() if sources.find(name)}
    return {title: one_row_each(sources.load(name)) for title, name in there.items()}
