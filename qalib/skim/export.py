"""Encoders for onnxruntime: one that skims, in two graphs, and one that reads everything.

    save_onnx("folder", model, skimmer)
    reader = OnnxSkimReader.load("folder")       # Batch -> ReaderOutput, as SkimReader answers

The folder holds ``first.onnx`` and ``second.onnx`` (see ``qalib.skim.halves``) and ``export.json``
with the settings by which blocks are chosen between them and the SHA-256 of both. Whoever runs the
graphs elsewhere has a few lines to write: blocks of so many passage tokens, a threshold on the
sigmoid of ``scores``, and the rows of ``context`` and ``hidden`` that stay.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from qalib.data.batches import Batch
from qalib.data.squad import file_sha256, parse_json, read_bytes
from qalib.errors import QalibError
from qalib.skim.halves import Cut, First, HalvesReader, Second, Whole, halves
from qalib.skim.skimmer import Skimmer
from qalib.spans import ReaderOutput

SETTINGS, GRAPHS = "export.json", ("first.onnx", "second.onnx")
FORMAT = 1  # of export.json


def save_onnx(folder: str | Path, model: nn.Module, skimmer: Skimmer) -> None:
    """Write a skimming encoder as two ONNX graphs, in float32.

    Raises QalibError for a skimmer made for another model or with several skim points, and for
    models whose attention knows of positions (MPNet, ModernBERT).
    """
    folder = Path(folder)
    first, second = halves(model, skimmer)
    folder.mkdir(parents=True, exist_ok=True)
    width = skimmer.shape.width
    # Sizes that no two inputs share by chance: a graph would take them for one.
    length, asked, blocks, short = 23, 5, 3, 11
    row = torch.zeros(1, length, dtype=torch.int64)
    of = torch.arange(length).sub(7).clamp(min=-1).div(6, rounding_mode="floor")[None]
    flags = torch.zeros(1, length, dtype=torch.bool)
    question = flags.clone()
    question[:, 1 : 1 + asked] = True
    places = torch.arange(1, 1 + asked)[None]
    given = (row, row, of, question, flags, places, torch.ones(1, blocks, dtype=torch.bool))
    _export(first, given, folder / GRAPHS[0])
    states = torch.zeros(1, short, width)
    _export(second, (states, states), folder / GRAPHS[1])
    settings = {
        "format": FORMAT,
        "cut": asdict(first.cut),
        "sha256": {name: file_sha256(folder / name) for name in GRAPHS},
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def save_whole(path: str | Path, model: nn.Module) -> None:
    """Write an encoder that reads everything as one ONNX graph. Raises QalibError as above."""
    row = torch.zeros(3, 23, dtype=torch.int64)
    _export(
        Whole(model).eval(), (row, row, torch.ones_like(row, dtype=torch.bool)), path, rows=True
    )


def quantise_onnx(source: str | Path, target: str | Path) -> None:
    """Matrices of a graph as 8-bit integers, activations while it runs ("dynamic")."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(Path(source), Path(target), weight_type=QuantType.QInt8)


def _export(
    module: First | Second | Whole, given: tuple[Tensor, ...], path: str | Path, rows: bool = False
) -> None:
    """Write a module as a graph of any length, and with ``rows`` of any batch size."""
    any_size = torch.export.Dim.DYNAMIC
    free = {0: any_size, 1: any_size} if rows else {1: any_size}
    given = tuple(x.clone() for x in given)  # one tensor given twice would become one input
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            given,
            dynamo=True,
            verbose=False,
            input_names=module.INPUTS,
            output_names=module.OUTPUTS,
            dynamic_shapes=(free,) * len(given),
        )
    program.save(str(path))


class Graph:
    """An ONNX graph that takes tensors in the order of ``inputs``. Raises QalibError if damaged.

    ``threads``: 0 for as many as torch uses.
    """

    def __init__(self, path: str | Path, inputs: tuple[str, ...], threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        # Its threads would go on spinning, and take the core from the other graph and from torch.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class of its own for every kind of damage
            reason = str(error).strip().split("\n")[0]
            raise QalibError(f"{path}: no graph that can be run ({reason}).") from None
        self.inputs = inputs
        # The exporter drops what a model does not use, such as token types.
        self.used = {found.name for found in self.session.get_inputs()}

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self.inputs, given, strict=True)
        arrays = {name: x.numpy() for name, x in pairs if name in self.used}
        return tuple(torch.from_numpy(array) for array in self.session.run(None, arrays))


class OnnxSkimReader(HalvesReader):
    """A skimming encoder by onnxruntime, row by row; see :class:`HalvesReader`."""

    def __init__(self, first: Graph, second: Graph, cut: Cut, tokenizer=None):
        super().__init__(first, second, cut, tokenizer)
        self.here = _here()

    @classmethod
    def load(cls, folder: str | Path, tokenizer=None, threads: int = 0) -> "OnnxSkimReader":
        """Read what ``save_onnx`` wrote. Raises QalibError if a file is missing or damaged."""
        folder = Path(folder)
        settings = parse_json(read_bytes(folder / SETTINGS), folder / SETTINGS)
        if not isinstance(settings, Mapping) or settings.get("format") != FORMAT:
            raise QalibError(
                f"{folder / SETTINGS}: not of format {FORMAT}; use the version of qalib that "
                "wrote it, or export again."
            )
        try:
            cut, hashes = Cut(**settings["cut"]), dict(settings["sha256"])
        except (KeyError, TypeError, ValueError) as error:
            raise QalibError(f"{folder / SETTINGS}: cannot be read ({error}).") from None
        for name in GRAPHS:
            if not (folder / name).is_file() or file_sha256(folder / name) != hashes.get(name):
                raise QalibError(f"{folder / name}: missing or damaged; export again.")
        classes = (First, Second)
        graphs = [
            Graph(folder / name, half.INPUTS, threads)
            for name, half in zip(GRAPHS, classes, strict=True)
        ]
        return cls(*graphs, cut, tokenizer)


class OnnxReader(nn.Module):
    """An encoder that reads everything by onnxruntime, from Batch to ReaderOutput."""

    def __init__(self, path: str | Path, tokenizer=None, threads: int = 0):
        super().__init__()
        self.graph, self.tokenizer = Graph(path, Whole.INPUTS, threads), tokenizer
        self.here = _here()

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits over every position.  (B, L) -> start_logits, end_logits, mask, each (B, L)"""
        inputs = [batch.inputs[name] for name in Whole.INPUTS]
        (logits,) = self.graph(*inputs)
        return ReaderOutput(logits[..., 0], logits[..., 1], batch.mask)


def _here() -> nn.Parameter:
    """Nothing, on the CPU: whoever looks for a reader's device finds it by its parameters."""
    return nn.Parameter(torch.empty(0), requires_grad=False)
