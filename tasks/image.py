"""The golden guest image: built once per recipe, shared by every VM."""

from __future__ import annotations

from vmoat.context import Context
from vmoat.stage import Stage
from vmoat.state import Values


def stage(after: tuple[str, ...]) -> Stage:
    return Stage("image", "the golden guest image", after, check, work)


def check(ctx: Context, values: Values) -> str:
    # A VM that exists stands on the image that it was made from, whatever the recipe is now.
    if not ctx.driver.features.golden_image or ctx.status.disk:
        return ""
    return "" if ctx.driver.image_ready(ctx.spec) else "no image of this recipe on this machine"


def work(ctx: Context) -> Values:
    ctx.driver.build_image(ctx.spec, ctx.say)
    return {"made": ctx.driver.image_digest(ctx.spec)}
