"""Small models and data that tests share, and the launch of two processes."""

import os
import subprocess
import sys
from pathlib import Path

from qalib.data.schema import Answer, Example
from qalib.models.encoder import EncoderConfig, EncoderReader, build_encoder

TINY = EncoderConfig(
    random_start=True, layers=2, width=32, heads=4, dropout=0.1, train_embeddings=True
)


def tiny_reader(seed: int = 0, **changes) -> EncoderReader:
    """A randomly started encoder reader of two layers with the packaged tokenizer."""
    return build_encoder(EncoderConfig(**{**vars(TINY), **changes}), seed)


def examples(count: int = 24) -> list[Example]:
    """Short questions about short passages of different lengths."""
    made = []
    for n in range(count):
        city, year = f"Town{n}", str(1800 + 7 * n)
        context = f"{'A long winter came. ' * (n % 5)}{city} was founded in {year} by a baker."
        answers = (Answer(year, context.index(year)), Answer(f"in {year}", context.index("in 1")))
        if f"in {year}" != context[answers[1].start : answers[1].end]:
            answers = answers[:1]
        made.append(Example(f"q{n}", f"When was {city} founded?", context, answers))
    return made


# accelerate launches several CPU processes through the launcher named for GPUs
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCH += ["--main_process_port", "0"]  # any free one


def launched(command, **variables):
    """Run a command of one or two processes on the CPU; fail with its last words."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
