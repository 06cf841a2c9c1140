"""From the predictions of several passes to the one that the sampler follows."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.plan import Guidance, Pass


def guided(passes: Mapping[Pass, Tensor], guidance: Guidance) -> Tensor:
    """The prediction with the prompt, pushed away from those of the other passes.

    A pass that was not made pushes nothing. The spread is the standard deviation over the whole tensor, unbiased.
    Source: Lightricks/LTX-2 @400fd31, components/guiders.py (formula); CFG arXiv 2207.12598, STG arXiv 2411.18664.
    """
    cond = passes["cond"]
    pushed = cond
    pushes: dict[Pass, float] = {"uncond": guidance.scale - 1, "ptb": guidance.stg, "mod": guidance.modality - 1}
    for name, push in pushes.items():
        if push and name in passes:
            pushed = pushed + push * (cond - passes[name])
    if guidance.rescale:
        pushed = pushed * (guidance.rescale * cond.std() / pushed.std() + (1 - guidance.rescale))
    return pushed
