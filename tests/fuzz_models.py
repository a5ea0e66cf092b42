"""Mutate model folders, skimmers and records: refused in one sentence, or the same answers.

A file of records that was cut between two lines holds fewer runs, which are computed again.

``python tests/fuzz_models.py 1000`` reads so many, the same in every run; ``fuzz_models.py 1 SEED``
repeats one. Only settings that a user may edit (``EDITABLE``) may change answers.
"""

import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from tiny import examples, tiny_reader

from qalib.data.windows import WindowConfig
from qalib.errors import QalibError
from qalib.inference import QuestionAnswerer
from qalib.models.pretrained import load_reader, save_model
from qalib.skim.predictors import PredictorConfig
from qalib.skim.reader import SkimReader
from qalib.skim.skimmer import SkimConfig, Skimmer
from qalib.skim.storage import load_skimmer, save_skimmer
from qalib.study.run_cache import RunCache, read_records, stage

QUESTIONS = examples(3)
EDITABLE = ("qalib.json", "skim.json")  # windows, thresholds


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, insert or overwrite bytes somewhere."""
    place, way = rng.randrange(len(content)), rng.randrange(6)
    if way == 0:
        return content[:place]
    if way == 1:
        return content[:place] + content[place + rng.randrange(1, 9) :]
    if way == 2:
        return content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:]
    if way == 3:
        return rng.choice([b"", b"{}", b"[]", b"null", content + content, rng.randbytes(64)])
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 8])):
        changed[rng.randrange(len(changed))] = rng.randrange(256) if way == 4 else ord("1")
    return bytes(changed)


def answers(place: Path) -> list:
    """What the model and its skimmer answer, and the records say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answerer = QuestionAnswerer.load(place / "model")
        model = answerer.answer_many(QUESTIONS)
        skimmer = load_skimmer(place / "skimmer", answerer.reader.encoder)
        reader = SkimReader(answerer.reader, skimmer)
        skimmed = QuestionAnswerer(reader, answerer.config).answer_many(QUESTIONS)
    records = read_records(place / "records" / "toy.jsonl", place / "store")
    values = [
        (run.config, run.metrics, run.file("text.txt").read_text()) for run in records.values()
    ]
    return [model, skimmed, values]


@stage("toy", publish=("*.txt",))
def toy(config, work):
    (work / "text.txt").write_text(f"{config}")
    return {"value": config["seed"] / 7}


def prepare(place: Path) -> None:
    reader = tiny_reader()
    save_model(place / "model", reader, WindowConfig(96, 16, 16))
    torch.manual_seed(0)
    config = SkimConfig(PredictorConfig("question", block_size=8), (1,), (1,), (0.4,))
    reader = load_reader(place / "model")
    save_skimmer(place / "skimmer", Skimmer.beside(reader.encoder, config), reader.encoder)
    cache = RunCache(place / "runs", place / "records")
    for seed in range(3):
        cache.publish(cache.run(toy, {"seed": seed}), ("*.txt",))


def main(cases: int, first: int) -> None:
    found: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        prepare(place)
        expected = answers(place)
        paths = [p for n in ("model", "skimmer", "records") for p in (place / n).iterdir()]
        paths = [path for path in sorted(paths) if path.suffix != ".md" and path.is_file()]
        for seed in range(first, first + cases):
            rng = random.Random(seed)
            path = rng.choice(paths)
            content = path.read_bytes()
            shutil.rmtree(place / "store", ignore_errors=True)
            path.write_bytes(mutate(content, rng))
            try:
                *given, records = answers(place)
                same = given == expected[:2] and all(row in expected[2] for row in records)
                outcome = "the same" if same else "other answers"
                assert same or path.name in EDITABLE, f"seed {seed}: {path.name}, {outcome}"
            except QalibError as error:
                outcome = "refused" if "\n" not in str(error) else f"several lines: {error}"
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(f"seed {seed}, {path.name}: {error!r}") from error
            finally:
                path.write_bytes(content)
            found[path.name, outcome] += 1
    print(json.dumps({f"{n}, {outcome}": k for (n, outcome), k in sorted(found.items())}, indent=1))


if __name__ == "__main__":
    main(*map(int, [*sys.argv[1:], *["1000", "0"][len(sys.argv) - 1 :]]))
