"""Text memory: one suffix automaton over the texts of all sequences that have ended, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from methods.shared.suffix_automaton import SuffixAutomaton


class RememberedText:
    """The automaton of a sequence, which begins with what was remembered."""

    def __init__(self, automaton: SuffixAutomaton, num_known: int) -> None:
        """num_known: remembered texts that the automaton holds."""
        self.automaton = automaton
        self.num_known = num_known
        self.own_text: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the sequence's text."""
        for token in tokens:
            self.automaton.extend(token)
        self.own_text.extend(tokens)


class TextMemory:
    """The texts, and the automaton that holds all of them, if no sequence is using it.

    Sequences that run one after the other take over the same automaton, so nothing is built twice. A second
    sequence that runs at the same time has an automaton of its own built from the texts.
    """

    def __init__(self, new_automaton: Callable[[], SuffixAutomaton]) -> None:
        self._new_automaton = new_automaton
        self._texts: list[list[int]] = []
        self._idle: SuffixAutomaton | None = new_automaton()

    def begin(self) -> RememberedText:
        """The automaton for a new sequence."""
        automaton, self._idle = self._idle, None
        if automaton is None:
            automaton = self._new_automaton()
            for text in self._texts:
                for token in text:
                    automaton.extend(token)
        return RememberedText(automaton, len(self._texts))

    def end(self, sequence: RememberedText) -> None:
        """Remember the text of a sequence that has ended."""
        self._idle = sequence.automaton if sequence.num_known == len(self._texts) else None
        self._texts.append(sequence.own_text)
