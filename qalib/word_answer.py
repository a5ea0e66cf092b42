"""Answering questions with a word-level reader, like :class:`qalib.answer.Answerer`.

answerer = WordAnswerer(build_mnemonic_reader())
answerer.answer("Who built the bridge?", passage)[0].text
"""

from collections.abc import Sequence

from qalib.answer import AnswerConfig, Answerer
from qalib.data.batches import Batch
from qalib.data.squad import Example
from qalib.data.word_batches import collate_words
from qalib.data.word_features import WordConfig, WordWindow, word_windows
from qalib.readers.mnemonic_reader import MnemonicReader


class WordAnswerer(Answerer):
    """Answers questions with a word-level reader. ``text`` says how passages are cut."""

    def __init__(
        self,
        reader: MnemonicReader,
        config: AnswerConfig | None = None,
        text: WordConfig | None = None,
    ):
        super().__init__(reader, config or AnswerConfig())
        self.text = text or WordConfig()

    def cut(self, examples: Sequence[Example]) -> list[WordWindow]:
        """The windows of some examples, as the reader takes them."""
        return word_windows(examples, self.reader.vocabulary, self.text)

    def batch(self, windows: list[WordWindow], examples: Sequence[Example]) -> Batch:
        """What the reader is given for some windows of ``examples``."""
        return collate_words(windows)
