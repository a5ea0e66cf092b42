"""A model that skims by itself: another ``forward`` in front of its own, and the way back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qalib.errors import QalibError

if TYPE_CHECKING:
    from qalib.skim.skimmer import Skimmer


@dataclass(frozen=True)
class Attached:
    """A model with a skimming ``forward``, and what stood in its place."""

    model: nn.Module
    forward: Callable
    before: Callable | None  # another instance's own forward; None: that of the class

    @classmethod
    def to(cls, skimmer: "Skimmer", model: nn.Module) -> "Attached":
        """Put the skimming ``forward`` in front. It is no submodule: ``state_dict`` stays."""
        attached = cls(model, skimming_forward(skimmer, model), vars(model).get("forward"))
        model.forward = attached.forward
        return attached

    def undo(self) -> None:
        """Take it away. Raises QalibError if ``forward`` was exchanged again since."""
        if vars(self.model).get("forward") is not self.forward:
            raise QalibError(
                "the model's forward was exchanged after the skimmer was attached; undo that first."
            )
        if self.before is None:
            del self.model.forward
        else:
            self.model.forward = self.before


def skimming_forward(skimmer: "Skimmer", model: nn.Module) -> Callable:
    """A ``forward`` as the model has it, that skims as ``skimmer`` is set."""
    from transformers.loss.loss_utils import ForQuestionAnsweringLoss
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    def forward(
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        passage: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **others,
    ):
        """Span logits of every position, full length, and the loss where positions are given.

        ``passage`` (B, L) bool says where the passage stands; without it, it is found between the
        separators. Raises QalibError for inputs that a skimming model cannot take.
        """
        unknown = [
            name for name, value in others.items() if value is not None and value is not False
        ]
        if unknown or input_ids is None:
            raise QalibError(
                "a skimming model takes input_ids, attention_mask, token_type_ids and passage, "
                f"not {unknown[0] if unknown else 'nothing'}; detach the skimmer for anything else."
            )
        output = skimmer.run(model, input_ids, attention_mask, token_type_ids, passage)
        start, end = output.start_logits, output.end_logits
        loss = ForQuestionAnsweringLoss(start, end, start_positions, end_positions)
        answer = QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)
        return answer.to_tuple() if return_dict is False else answer

    return forward
