"""Evidence about a model: answers, verdicts on them, and figures with intervals."""
