"""What could be made where a device has no memory for a clip, found by asking the plan of smaller ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline.plan import CELL_FRAMES, Plan, make_plan
from pipeline.recipe import Recipe
from pipeline.types import GenerationRequest, Size


@dataclass(frozen=True, slots=True)
class Offers:
    """The longest clip of the size that was asked for, and the largest of its length; None: there is none."""

    num_frames: int | None
    size: Size | None

    @property
    def words(self) -> list[str]:
        """Both, for a sentence."""
        shorter = [] if self.num_frames is None else [f"{self.num_frames} frames at this size"]
        return shorter + ([] if self.size is None else [f"{self.size} at this length"])


def offers(request: GenerationRequest, recipe: Recipe, *, fits: Callable[[Plan], bool]) -> Offers:
    """What `fits` of the clips that are shorter or smaller than the one asked for, which `recipe` can make."""
    asked = make_plan(request, recipe)
    shorter = (replace(request, size=asked.size, num_frames=n) for n in _lengths(asked.num_frames))
    smaller = (replace(request, size=size) for size in _sizes(asked.size, cell=recipe.cell))
    found = [next((plan for it in some if fits(plan := make_plan(it, recipe))), None) for some in (shorter, smaller)]
    return Offers(
        num_frames=None if found[0] is None else found[0].num_frames,
        size=None if found[1] is None else found[1].size,
    )


def _lengths(num_frames: int) -> Iterator[int]:
    """Shorter lengths, longest first, down to the shortest that fal takes."""
    return iter(range(num_frames - CELL_FRAMES, CELL_FRAMES, -CELL_FRAMES))


def _sizes(size: Size, *, cell: int) -> Iterator[Size]:
    """Smaller sizes of the same aspect, largest first."""
    short = min(size.width, size.height)
    for side in range(short - cell, 0, -cell):
        yield Size(round(size.width * side / short), round(size.height * side / short))
