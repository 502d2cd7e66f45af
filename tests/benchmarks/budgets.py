"""A budget of a day, over 30 days of requests that language models answer: what is spent, and what that earns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.app.model_prices import Clients, World, opened
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.shops import Lite, tell

DAYS, REQUESTS, GROUP = 30, 2_000, 10
SHARE = 0.4  # of the way from the cheapest model to the best one, for the budget of a request
WORLDS = {
    "judged at once": World.random(21),
    "judged hours later": World.random(22, judged_after_s=4 * 3_600.0, paid_after_s=60.0),
}
FIRST_DAY = "2030-01-02T00:00:00Z"


def budgets(setting: Setting) -> Iterator[Figure]:
    """The day whose spend was farthest from its budget, and the expected quality beside that of the best fixed mix."""
    for name, world in WORLDS.items():
        cost, shop = world.cost_between(SHARE), Lite(setting)
        budget, days = cost * REQUESTS, max(2, round(DAYS * setting.scale))
        tell(shop, "init")
        tell(shop, "arm", "import", "-", lines=[{"arm": model} for model in world.names])
        tell(shop, "reward", "define", "value", "quality=1", "--clip", "0,1", "--window", "6h")
        tell(shop, "reward", "define", "paid", "cost_usd=1")
        words = ("--kind", "thompson", "--reward", "value", "--param", "floor=0.02")
        tell(shop, "policy", "create", "router", *words, "--param", f"budget=cost_usd:{budget}/day")
        with closing(opened(Path(shop.db))) as store:
            clients = Clients(store, world, "router", seed=5, first_day=FIRST_DAY)
            served = [clients.day(number, REQUESTS, group=GROUP) for number in range(days)]
        off = max(abs(day.cost / budget - 1) for day in served)
        yield Figure(name=f"{name}: spend of {days} days, at most off its budget", value=off, unit="", at_most=0.02)
        best = sum(day.requests * world.best_mix(budget / day.requests)[0] for day in served)
        quality = sum(day.quality for day in served)
        yield Figure(name=f"{name}: quality beside the best mix", value=quality, unit="", reference=best, at_least=0.95)
