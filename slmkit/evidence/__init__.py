"""What scores are worth: intervals, tests and verdicts over the answers that an eval kept. Statistics without torch."""
