"""From fal's words to the model's, and from what the model says to a line for its caller."""

import math
from pathlib import Path

from pipeline.plan import Plan
from pipeline.types import GenerationRequest, Progress, Size
from pipeline.wire import Failed
from server.errors import Failure, model_failure
from server.schema import ImageToVideoInput


def to_request(given: ImageToVideoInput, *, image: Path, image_size: Size) -> GenerationRequest:
    """The request in the model's words."""
    if given.seed is None:
        raise ValueError("the seed of a job is drawn when it is submitted")
    return GenerationRequest(
        prompt=given.prompt,
        image=image,
        image_size=image_size,
        seed=given.seed,
        negative_prompt=given.negative_prompt,
        size=given.size(),
        num_frames=given.num_frames,
        fps=given.frames_per_second,
        steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
        strength=given.image_strength,
        audio=given.generate_audio,
        expand_prompt=given.enable_prompt_expansion,
        check_safety=given.enable_safety_checker,
        quality=given.video_quality,
        write_mode=given.video_write_mode,
    )


def describe(progress: Progress) -> str:
    """One line of a job's log."""
    step = f" {progress.step}/{progress.total}" if progress.total > 1 else ""
    left = "" if progress.eta is None else f", about {math.ceil(progress.eta)} s left"
    return f"{progress.stage}{step}{left}"


def out_of_memory(plan: Plan, failed: Failed, *, tried: str | None) -> Failure:
    """What the caller is told when `plan` did not fit the device, nor with the residency `tried` if one was."""
    again = "" if tried is None else f", and again with less of the model on it (residency {tried})"
    offers = " or ".join(map(str, failed.context.get("offers", ())))
    less = f"{offers} should fit: they take half as much" if offers else "A smaller or shorter clip takes less"
    message = f"The device ran out of memory at {plan.size} with {plan.num_frames} frames{again}. {less}"
    return model_failure("internal_server_error", message)
