"""What an artefact says for itself, and the doubts that follow from it."""

from collections.abc import Mapping

# Below these a score is said to be doubtful; `benchmarks/evidence.py` measures them.
RELIABILITY = 0.4
MOVED = 0.05  # share of the loss that tuning must take away
LEARNED = 0.1  # nats a token below which there is little left to take
OWN_PROMPT = 1.05  # loss behind another's prompt over loss behind the own one
STEPS = 10  # of the optimizer, below which a model has learned little of its rows
KNOWN = 0.75  # canaries told apart so well outweigh a low reliability
UNLIKE = 0.8  # AUROC of safe rows against all rows: above it most rows are of another kind
SAID: set[str] = set()  # doubts that this process has printed


def told(meta: Mapping) -> list[str]:
    """The evidence of an artefact in lines for a terminal, its doubts last, as warnings."""
    evidence, lines = meta.get("evidence") or {}, []
    for name, losses in (evidence.get("moved") or {}).items():
        of, before, after = _looked_at(name, losses)
        seen = "some of them" if name == "loop" else "held-out ones"
        lines.append(f"tuned on {of}: loss of {seen} {before:.3f} to {after:.3f}")
    if anchors := evidence.get("anchors"):
        low, high = anchors["auroc_interval"]
        lines += [
            "held-out anchors by layer: " + _pairs(anchors["layers"]),
            f"layer {anchors['layer']}: AUROC {anchors['auroc']:.3f} [{low:.3f}, {high:.3f}] of "
            f"{anchors['safe']} safe against {anchors['unsafe']} unsafe held-out anchors",
            "held-out AUROC by anchors a side: " + _pairs(anchors["curve"]),
        ]
    if area := evidence.get("safe_above_rows"):
        lines.append(f"AUROC of held-out safe rows against the rows: {area:.3f}")
    if evidence.get("reliability") is not None:
        halves = evidence.get("halves", "each response")
        lines.append(f"reliability, from the halves of {halves}: {evidence['reliability']:.2f}")
    if calibration := meta.get("calibration"):
        low, high = calibration["auroc_interval"]
        lines.append(f"AUROC against canaries: {calibration['auroc']:.3f} [{low:.3f}, {high:.3f}]")
    said = doubts(meta)
    SAID.update(said)
    return [*lines, *(f"warning: {doubt}" for doubt in said)]


def doubts(meta: Mapping) -> list[str]:
    """What speaks against trusting a selection, one sentence each; [] where nothing does.

    Args:
        meta: of the artefact; one without evidence has only its canaries to speak for it.
    """
    evidence = meta.get("evidence") or {}
    moved = evidence.get("moved") or {}
    said = _unmoved(moved)
    calibration = meta.get("calibration")
    low, high = calibration["auroc_interval"] if calibration else (0.0, 1.0)
    worth = evidence.get("reliability")
    if worth is not None and worth < RELIABILITY and low < KNOWN:
        said.append(_unreliable(worth, evidence.get("halves"), bool(moved)))
    if low < KNOWN:
        said += _few_steps(evidence.get("steps") or {}, moved)
    anchors = evidence.get("anchors")
    if anchors and anchors["auroc_interval"][0] <= 0.5:
        said.append(
            "the score does not tell held-out anchors apart: AUROC {:.2f}, 95 % interval {:.2f} to "
            "{:.2f}".format(anchors["auroc"], *anchors["auroc_interval"])
        )
    if (area := evidence.get("safe_above_rows", 0.0)) > UNLIKE:
        said.append(
            f"most rows are told from the safe rows (AUROC {area:.2f}, above {UNLIKE}): this score "
            "drops what is unlike them; give safe rows of the kind that your good rows are"
        )
    if calibration and low <= 0.5:
        said.append(
            f"the score does not tell the canaries from other rows: AUROC "
            f"{calibration['auroc']:.2f}, 95 % interval {low:.2f} to {high:.2f}"
        )
    return said


def _unreliable(worth: float, halves: str | None, tuned: bool) -> str:
    of, remedy = "the even and from the odd response tokens", ""
    if halves:
        of, remedy = f"two halves of {halves}", "bring more of them, or "
    elif tuned:
        remedy = "tune longer or at a higher rate, or "
    return (
        f"the score from {of} agrees at {worth:.2f} only, below {RELIABILITY}: most of it is "
        f"noise; {remedy}use another method"
    )


def _few_steps(steps: Mapping, moved: Mapping) -> list[str]:
    """The fewest steps of a model that had something to learn, where they are too few."""
    learning = [n for name, n in steps.items() if _looked_at(name, moved[name])[1] > LEARNED]
    if min(learning, default=STEPS) >= STEPS:
        return []
    return [
        f"a model of the score was tuned for {min(learning)} optimizer steps only, fewer than "
        f"{STEPS}: bring more rows, raise the epochs or lower --train_batch_size"
    ]


def _unmoved(moved: Mapping) -> list[str]:
    """Models whose tuning changed next to nothing, and a safe set that says nothing."""
    said, still = [], set()
    for name, losses in moved.items():
        of, before, after = _looked_at(name, losses)
        if before > LEARNED and after > (1 - MOVED) * before and of not in still:
            still.add(of)  # of several folds one is enough
            said.append(
                f"tuning on {of} took their loss from {before:.3f} to {after:.3f} nats only: "
                "raise --learning_rate or the epochs, or lower --train_batch_size"
            )
        if "swapped" in losses:
            looks = 1 if name == "loop" else 2  # what it has seen it may know by heart
            own, other = losses["safe"][:looks], losses["swapped"][:looks]
            if all(o < OWN_PROMPT * s for s, o in zip(own, other, strict=True)):
                said.append(
                    "the safe responses are as likely behind each other's prompts as behind their "
                    f"own ({other[-1]:.2f} and {own[-1]:.2f} nats): look whether the safe set is "
                    "what it should be"
                )
    return said


def _pairs(curve: list) -> str:
    return ", ".join(f"{at}: {area:.3f}" for at, area in curve)


def _looked_at(name: str, losses: Mapping) -> tuple[str, float, float]:
    """The rows that a model was tuned on, and their loss before and after."""
    safe = name in ("safe", "loop")
    return "the safe rows" if safe else "the user's rows", *losses["safe" if safe else "rows"]
