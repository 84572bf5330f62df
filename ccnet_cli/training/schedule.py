"""The poly learning rate."""


def learning_rate(
    step: int, steps: int, base: float, power: float = 0.9, warmup: int = 0, minimum: float = 0.0
) -> float:
    """Poly decay: base at step 0, minimum at the last step and after; before `warmup`, a linear rise to the curve."""
    decayed: float = minimum + (base - minimum) * max(0.0, 1 - step / steps) ** power
    return decayed * (step + 1) / warmup if step < warmup else decayed
