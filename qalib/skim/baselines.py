"""Unpruned readers for comparison with Block-Skim, from Batch to logits: padded, onnxruntime.

Notation: B batch, L positions of the input.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import pad

from qalib.data.batching import Batch
from qalib.decoding import ReaderOutput
from qalib.errors import QalibError
from qalib.models.encoder import EncoderReader


class PaddedReader(nn.Module):
    """An encoder reader that pads inputs to ``length`` positions; longer inputs are unchanged."""

    def __init__(self, reader: EncoderReader, length: int = 384):
        super().__init__()
        self.reader, self.tokenizer, self.length = reader, reader.tokenizer, length
        self.fills = {"input_ids": reader.tokenizer.pad_token_id or 0}  # at padding; others: 0

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits at the positions of ``batch``.  -> each (B, L)"""
        own = batch.mask.shape[1]
        room = max(0, self.length - own)
        inputs = {n: pad(x, (0, room), value=self.fills.get(n, 0)) for n, x in batch.inputs.items()}
        output = self.reader(replace(batch, inputs=inputs))
        return ReaderOutput(output.start_logits[:, :own], output.end_logits[:, :own], batch.mask)


class OnnxReader(nn.Module):
    """An unpruned encoder in onnxruntime on the CPU, in fp32 or dynamically quantized to int8."""

    def __init__(self, reader: EncoderReader, folder: Path, int8: bool = False):
        """Export to ``folder`` if not yet there. Raises QalibError without the extra "bench"."""
        super().__init__()
        try:
            import onnxruntime
            import onnxscript  # noqa: F401, the exporter needs it
        except ImportError:
            raise QalibError(
                "onnxruntime and onnxscript are missing; install the extra, in the kit's folder: "
                "pip install -e '.[bench]'."
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        fp32, path = folder / "fp32.onnx", folder / ("int8.onnx" if int8 else "fp32.onnx")
        if not fp32.is_file():
            self._export(reader, fp32)
        if not path.is_file():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            narrow = not torch.cpu._is_vnni_supported()  # else sums of two products saturate
            quantize_dynamic(fp32, path, weight_type=QuantType.QInt8, reduce_range=narrow)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        # Without this its threads keep spinning after a run and slow down the next candidate.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        cpu = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=cpu)
        self.names = {given.name for given in self.session.get_inputs()}

    def _export(self, reader: EncoderReader, path: Path) -> None:
        row = torch.zeros(3, 23, dtype=torch.int64)
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        if reader.uses_types:
            inputs["token_type_ids"] = row.clone()
        auto = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about operators that the exporter replaces
            torch.onnx.export(
                reader.encoder,
                kwargs=inputs,
                f=str(path),
                dynamo=True,
                verbose=False,
                output_names=("start", "end"),
                dynamic_shapes=dict.fromkeys(inputs, auto),
            )

    def forward(self, batch: Batch) -> ReaderOutput:
        """Logits at every position.  -> each (B, L)"""
        inputs = {n: x.numpy() for n, x in batch.inputs.items() if n in self.names}
        start, end = map(torch.from_numpy, self.session.run(["start", "end"], inputs))
        return ReaderOutput(start, end, batch.mask)
