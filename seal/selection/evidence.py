"""What an artefact says for itself, and the doubts that follow from it."""

from collections.abc import Mapping

# Below these a score is said to be doubtful; `benchmarks/evidence.py` measures them.
RELIABILITY = 0.4
MOVED = 0.05  # share of the loss that tuning must take away
LEARNED = 0.1  # nats a token below which there is little left to take
OWN_PROMPT = 1.05  # loss behind another's prompt over loss behind the own one


def told(meta: Mapping) -> list[str]:
    """The evidence of an artefact in lines for a terminal, its doubts last, as warnings."""
    evidence, lines = meta.get("evidence") or {}, []
    for name, losses in (evidence.get("moved") or {}).items():
        before, after = losses["safe" if name == "safe" else "rows"]
        lines.append(
            f"tuned on {_rows_of(name)}: loss of held-out ones {before:.3f} to {after:.3f}"
        )
    if anchors := evidence.get("anchors"):
        low, high = anchors["auroc_interval"]
        lines += [
            "held-out anchors by layer: " + _pairs(anchors["layers"]),
            f"layer {anchors['layer']}: AUROC {anchors['auroc']:.3f} [{low:.3f}, {high:.3f}] of "
            f"{anchors['safe']} safe against {anchors['unsafe']} unsafe held-out anchors",
            "held-out AUROC by anchors a side: " + _pairs(anchors["curve"]),
        ]
    if evidence.get("reliability") is not None:
        halves = evidence.get("halves", "each response")
        lines.append(f"reliability, from the halves of {halves}: {evidence['reliability']:.2f}")
    if calibration := meta.get("calibration"):
        low, high = calibration["auroc_interval"]
        lines.append(f"AUROC against canaries: {calibration['auroc']:.3f} [{low:.3f}, {high:.3f}]")
    return [*lines, *(f"warning: {doubt}" for doubt in doubts(meta))]


def doubts(meta: Mapping) -> list[str]:
    """What speaks against trusting a selection, one sentence each; [] where nothing does.

    Args:
        meta: of the artefact; one without evidence has only its canaries to speak for it.
    """
    evidence = meta.get("evidence") or {}
    said = [*_unmoved(evidence.get("moved") or {})]
    worth = evidence.get("reliability")
    if worth is not None and worth < RELIABILITY and "halves" in evidence:
        said.append(
            f"the score from two halves of {evidence['halves']} agrees at {worth:.2f} only, below "
            f"{RELIABILITY}: most of it is noise; bring more of them, or use another method"
        )
    elif worth is not None and worth < RELIABILITY:
        said.append(
            f"the score from the even and from the odd response tokens agrees at {worth:.2f} only, "
            f"below {RELIABILITY}: most of it is noise; tune longer or at a higher rate, or use "
            "another method"
        )
    anchors = evidence.get("anchors")
    if anchors and anchors["auroc_interval"][0] <= 0.5:
        said.append(
            "the score does not tell held-out anchors apart: AUROC {:.2f}, 95 % interval {:.2f} to "
            "{:.2f}".format(anchors["auroc"], *anchors["auroc_interval"])
        )
    calibration = meta.get("calibration")
    if calibration and calibration["auroc_interval"][0] <= 0.5:
        low, high = calibration["auroc_interval"]
        said.append(
            f"the score does not tell the canaries from other rows: AUROC "
            f"{calibration['auroc']:.2f}, 95 % interval {low:.2f} to {high:.2f}"
        )
    return said


def _unmoved(moved: Mapping) -> list[str]:
    """Models whose tuning changed next to nothing, and a safe set that says nothing."""
    said, still = [], set()
    for name, losses in moved.items():
        before, after = losses["safe" if name == "safe" else "rows"]
        of = _rows_of(name)
        if before > LEARNED and after > (1 - MOVED) * before and of not in still:
            still.add(of)  # of several folds one is enough
            said.append(
                f"tuning on {of} took the loss of held-out ones from {before:.3f} to "
                f"{after:.3f} nats only: raise --learning_rate or --tune_epochs, or lower "
                "--train_batch_size"
            )
        if "swapped" in losses:
            own, other = losses["safe"], losses["swapped"]
            if all(o < OWN_PROMPT * s for s, o in zip(own, other, strict=True)):
                said.append(
                    "the safe responses are as likely behind each other's prompts as behind their "
                    f"own ({other[1]:.2f} and {own[1]:.2f} nats): look whether the safe set is "
                    "what it should be"
                )
    return said


def _pairs(curve: list) -> str:
    return ", ".join(f"{at}: {area:.3f}" for at, area in curve)


def _rows_of(name: str) -> str:
    return "the safe rows" if name == "safe" else "the user's rows"
