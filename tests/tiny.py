"""Small models and data that tests share."""

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
