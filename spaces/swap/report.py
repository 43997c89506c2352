"""What a swap did, and the warning that it may give."""

from __future__ import annotations

from dataclasses import dataclass


class PostActivationWarning(UserWarning):
    """A model activates sums of normalized terms: the layers of EvoNorm's search are for models that do not."""


@dataclass(frozen=True)
class Report:
    """What a swap did, by qualified name.

    Args:
        how: "trace" where the model was read by `torch.fx`, "run" where from a run with example inputs.
        pairs: norms replaced with the activation behind them: (norm, activation). A function is given as
            `relu() in layer1.0`: the module in whose forward it was called.
        norms: norms replaced alone: by an affine, or by what was asked for.
        activations: activations behind an addition replaced by the layer's pointwise part.
        left: norms and activations that stayed, each with the reason.
        rewritten: modules whose forward was rewritten to take a call out; "" is the model itself.
        carried: norms whose parameters or statistics went over to the new layer.
        reshaped: norms whose new layer stands in a `ChannelsLast`, since the number of axes is not known or not 3.
        notes: what else a person should know, such as the text of a warning.
    """

    how: str
    pairs: tuple[tuple[str, str], ...] = ()
    norms: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    rewritten: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = {"trace": "tracing (torch.fx)", "run": "a run with the example inputs"}[self.how]
        lines = [
            f"replaced {len(self.pairs)} norms with the activation behind them, {len(self.norms)} norms alone and "
            f"{len(self.activations)} activations behind additions; left {len(self.left)}; read by {how}"
        ]
        lines += [f"replaced {norm} and {act}" for norm, act in self.pairs]
        lines += [f"replaced {name}, a norm alone" for name in self.norms]
        lines += [f"replaced {name}, behind an addition" for name in self.activations]
        lines += [f"left {name}: {why}" for name, why in self.left]
        lines += [f"rewrote the forward of {name or 'the model'}" for name in self.rewritten]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
