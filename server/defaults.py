"""What a field that the client did not send is taken to be: the recipe's value where it has one, fal's elsewhere."""

from pipeline.recipe import Recipe
from server.schema import ImageToVideoInput


def filled(given: ImageToVideoInput, recipe: Recipe) -> ImageToVideoInput:
    """`given` with the recipe's values in the fields that were not sent."""
    values = {
        "num_inference_steps": recipe.defaults.steps,
        "guidance_scale": recipe.defaults.guidance_scale,
        "image_strength": recipe.defaults.strength,
    }
    return given.model_copy(
        update={name: value for name, value in values.items() if name not in given.model_fields_set}
    )
