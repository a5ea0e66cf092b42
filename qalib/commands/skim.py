"""The ``skim`` commands: train block predictors, calibrate a threshold, extract sentences."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qalib.commands import options, train
from qalib.commands.output import is_main_process, read_text, to_json
from qalib.errors import QalibError
from qalib.files import write_atomically

if TYPE_CHECKING:
    from qalib.data.schema import Dataset
    from qalib.skim.reader import SkimReader
    from qalib.skim.training import PredictorTraining

app = typer.Typer(
    help="Leave out passage blocks that are unlikely to hold the answer.", no_args_is_help=True
)
CARD = """
The folder also holds a skimmer, predictors of the passage blocks without the answer: `qalib answer
--skim --model FOLDER` skims with it once `qalib skim calibrate` has chosen its threshold, and
`qalib skim extract` prints the sentences to read.
"""
MEASURED = "\n## Calibration\n\n"  # the last section of a card


@app.command("train")
@options.takes(train.TrainingOptions, "training")
def skim_train_command(
    data: train.DataArgument,
    training: train.TrainingOptions,
    output: Annotated[Path, typer.Option(help="new folder of the model with its skimmer")],
    model: options.ModelOption = "",
    block_size: Annotated[int, typer.Option(help="tokens of a block")] = 32,
) -> None:
    """Train block predictors for a model, which is not changed; `skim calibrate` comes next.

    Run the same command again to resume after an interruption. Works under `accelerate launch -m
    qalib`.
    """
    dataset, scored = training.load(data, output)
    from qalib.data.schema import SAMPLE, passage_digests
    from qalib.models.pretrained import load_reader, passages_of, save_model, windows_of
    from qalib.skim.predictors import PredictorConfig
    from qalib.skim.storage import save_skimmer
    from qalib.skim.training import PredictorTraining, add_predictors, fit, middle_layers

    reader = load_reader(model)
    windows = training.windows(model)
    config = PredictorTraining(
        windows=windows,
        train=training.config(reader, windows, 1.5e-3),
        seed=training.seed,
        predictor=PredictorConfig("combined", block_size=block_size),
        layers=middle_layers(reader.encoder.config.num_hidden_layers),
        frozen=True,
    )
    skims = add_predictors(reader, config)
    skims.skimmer.set_options(min_pruned_fraction=0.1, min_tokens=96)
    hashes = [dataset.content_sha256, dataset.raw_sha256]
    with train.working_folder(output, {"model": model, "skim": config, "data": hashes}) as work:
        watch = (lambda epoch: _share_kept(skims, scored["dev"], config)) if scored else None
        named = {"after_epoch": watch, "save_steps": training.save_steps}
        summary = fit(skims, dataset, config, work, **named)

        def save(folder: Path, card: str) -> None:
            own = replace(windows, null=windows_of(model).null)
            save_model(folder, reader, own, card + CARD, passages_of(model))
            sample = passage_digests(dataset, SAMPLE)
            save_skimmer(folder, skims.skimmer, reader.encoder, passages=sample)

        facts = {**train.basic_facts(model, dataset), **summary, "seed": training.seed}
        train.save_and_publish(work, output, facts, save)
    train.say(f"next, its threshold: qalib skim calibrate DATA --skimmer {output} --recall 0.99")


@app.command("calibrate")
def calibrate_command(
    data: train.DataArgument,
    skimmer: Annotated[Path, typer.Option(help="its folder; the threshold is stored there")],
    model: options.ModelOption = "",
    recall: Annotated[float, typer.Option(help="share of the answers to be kept whole")] = 0.99,
    confidence: Annotated[
        float | None, typer.Option(help="probability of that recall; default: on average")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="further data to measure on")] = None,
    skip_bad: options.SkipBadOption = False,
    max_seq_length: options.MaxSeqLengthOption = None,
    doc_stride: options.DocStrideOption = None,
    precision: options.PrecisionOption = "auto",
    device: options.DeviceOption = "",
    as_json: options.JsonOption = False,
) -> None:
    """Choose a skimmer's threshold on questions that neither model nor skimmer was trained on.

    Prints the recall by cross-validation over passages, with its confidence interval, and the
    recall on further data (--test). The recall on other text may differ.
    """
    if not is_main_process():
        return
    from qalib.data.schema import passage_digests
    from qalib.data.sources import load_data
    from qalib.inference import choose_device
    from qalib.models.pretrained import load_reader, passages_of
    from qalib.skim.calibration import calibrate
    from qalib.skim.reader import SkimReader, skimmer_folders
    from qalib.skim.storage import load_skimmer, read_settings, save_skimmer

    model, folder = skimmer_folders(model, skimmer)
    names = [data, *(test or ())]
    dataset, *others = (load_data(name, "train", skip_bad=skip_bad) for name in names)
    reader = load_reader(model)
    loaded = load_skimmer(folder, reader.encoder)
    own = read_settings(folder).get("passages") or []
    seen = {*passages_of(model), *own}
    if known := seen.intersection(passage_digests(dataset)):
        raise QalibError(
            f"{data}: has passages that the model or its skimmer was trained on, {len(known)} of a "
            f"sample of {len(seen)}; their recall would be too high, so calibrate on others."
        )
    lengths = {"max_seq_length": max_seq_length, "doc_stride": doc_stride}
    windows = options.AnswerOptions(**lengths).config(model).windows
    found = calibrate(
        SkimReader(reader, loaded).to(choose_device(device)),
        dataset,
        windows,
        recall,
        confidence,
        others,
        precision,
        progress=True,
    )
    loaded.set_options(**found.options)
    save_skimmer(folder, loaded, reader.encoder, asdict(found), own)
    card = folder / "README.md"
    if card.is_file():
        before = card.read_text(encoding="utf-8").split(MEASURED)[0]
        lines = "".join(f"- {line}\n" for line in found.describe().splitlines())
        write_atomically(card, before + MEASURED + lines)
    print(to_json(asdict(found)) if as_json else found.describe())


@app.command("extract")
def extract_command(
    question: Annotated[str, typer.Argument(help="the question")],
    passage: Annotated[Path | None, typer.Option(help="text file; default: stdin")] = None,
    model: options.ModelOption = "",
    skimmer: options.SkimmerOption = "",
    device: options.DeviceOption = "",
    precision: options.PrecisionOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Print the sentences of a passage that are likely to hold the answer, and no others."""
    text = read_text(passage)
    from qalib.skim.reader import extract_sentences, load_skim_answerer, skimmer_folders

    folder = skimmer_folders(model, skimmer)[0]
    config = options.AnswerOptions(precision=precision).config(folder)
    answerer = load_skim_answerer(model, skimmer, config, device=device)
    sentences, share = extract_sentences(answerer, question, text)
    if as_json:
        rows = [asdict(sentence) for sentence in sentences]
        print(to_json({"question": question, "share": share, "sentences": rows}))
        return
    print("\n".join(sentence.text for sentence in sentences))
    print(f"{len(sentences)} sentences, {share:.0%} of the text", file=sys.stderr)


def _share_kept(skims: "SkimReader", dataset: "Dataset", config: "PredictorTraining") -> dict:
    """Print and return the share of tokens that keeps 99 % of the answers, by layer."""
    from qalib.skim.calibration import block_predictions, budget_at_recall, recall_curve

    found = block_predictions(skims, dataset, config.windows, config.train.precision)
    shares = {}
    for layer, scores in found.scores.items() if found.labels.any() else ():
        curve = recall_curve(scores, found.answers, found.sizes, found.row)
        shares[layer] = budget_at_recall(curve, 0.99)[0]
    text = ", ".join(f"{share:.0%} at layer {n}" for n, share in shares.items())
    train.say(f"share of {dataset.name} that holds 99 % of its answers: {text or 'it has none'}")
    return {f"dev_share_layer_{n}": share for n, share in shares.items()}
