"""Self-drafting: guess the next tokens with the experts that are in memory, then verify all guesses in one pass.

A step that decodes reads the experts of one token. Where they come from a disk, several tokens in one pass cost little
more than one, since they share experts; but the tokens must be known. So a sequence first drafts: the same network,
routing only among experts that are resident, draws a few tokens one after another and reads nothing. The pass that
follows takes the last true token and all drafted ones, with the true experts, and overwrites the keys and values that
drafting left.

Why this is exact. Rejection sampling (Leviathan et al. 2023) accepts a draft so that the outcome has the target's
distribution. Here a draw is a function of the logits, the seed and the step alone (sampling.py), so more is possible:
the true token of each place is drawn from its true logits, as it would be without drafting, and a draft is accepted if
it is that very token. The first that differs is replaced by the true one, and what was drafted after it is dropped.
Tokens are thus those of no drafting, for greedy and for sampled requests; and a draft, drawn with the same random
number, is the more often right.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_DRAFT = 64  # tokens
PLAIN_EVERY = 8  # one decoding step in so many drafts nothing: the yardstick for what drafting gains
LEAST_STEPS = 8  # of either kind, before the gain is said: single steps differ by more than drafting gains


@dataclass
class DraftStats:
    """What drafting did. Times are of steps that only decode, so that prompts do not count for or against it."""

    passes: int = 0  # verified: one for each sequence and step
    drafted: int = 0  # tokens
    accepted: int = 0  # of them
    tokens: int = 0  # that steps with drafts gave, and the seconds that they took
    seconds: float = 0.0
    steps: int = 0
    plain_tokens: int = 0  # the same of steps without
    plain_seconds: float = 0.0
    plain_steps: int = 0

    @property
    def accepted_length(self) -> float:
        """Drafted tokens that were right, on average over the passes."""
        return self.accepted / self.passes if self.passes else 0.0

    @property
    def gain(self) -> float | None:
        """Tokens/s with drafts over tokens/s without, measured in the same run; None after too few steps."""
        if min(self.steps, self.plain_steps) < LEAST_STEPS or not (self.seconds > 0 and self.plain_tokens):
            return None
        return self.tokens / self.seconds * self.plain_seconds / self.plain_tokens

    def note(self, n_drafted: int, n_tokens: int, seconds: float) -> None:
        """A step that only decoded, with so many drafted tokens or 0, gave n_tokens."""
        if n_drafted:
            self.tokens += n_tokens
            self.seconds += seconds
            self.steps += 1
        else:
            self.plain_tokens += n_tokens
            self.plain_seconds += seconds
            self.plain_steps += 1

    def describe(self) -> str:
        """One line for a person."""
        gain = self.gain
        said = "gain unknown: too few steps" if gain is None else (
            f"{abs(gain - 1) * 100:.0f} % {'faster' if gain >= 1 else 'slower'} than without")
        return (f"drafts: {self.drafted} tokens in {self.passes} passes, {self.accepted_length:.2f} of each accepted; "
                f"{said}")
