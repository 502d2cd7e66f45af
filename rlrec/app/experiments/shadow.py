"""This module starts and stops challengers of routes. A challenger is a policy that never serves. For each slate that
the route shows, the store keeps the probability with which the challenger would have shown it."""

from __future__ import annotations

from rlrec.app.experiments.route import servable
from rlrec.app.inputs import lookup
from rlrec.app.serving.shadows import ShadowReport, report
from rlrec.errors import InputError
from rlrec.store import Store, Unit
from rlrec.store.log import settings
from rlrec.store.policies import routes


def start(store: Store, name: str, reference: str) -> ShadowReport:
    """Start a challenger for a route. Repeating the request changes nothing. Raises InputError where the route has
    another challenger."""

    def work(unit: Unit) -> ShadowReport:
        route = lookup.route(unit, name, lock=True)
        version, _ = servable(unit, reference)
        challenger = routes.running_shadows(unit, [route.route_id]).get(route.route_id)
        if challenger is not None and challenger.reference != reference:
            hint = f"`rlrec policy shadow {name} --stop` ends it"
            raise InputError(f"route {name} has another challenger, {challenger.reference}", hint=hint)
        if challenger is None:
            version_id = None if lookup.split_reference(reference)[1] is None else version.id
            routes.start_shadow(unit, route.route_id, policy_id=version.policy.id, version_id=version_id)
            settings.add_run(unit, "policy shadow", {"route": name, "challenger": reference})
        return {**report(unit, name, routes.shadows(unit, route.route_id)[0]), "started": challenger is None}

    return store.write(work, repeatable=True)


def stop(store: Store, name: str) -> ShadowReport:
    """Stop the challenger of a route. The stored probabilities stay. Raises InputError where the route never had a
    challenger."""

    def work(unit: Unit) -> ShadowReport:
        route = lookup.route(unit, name, lock=True)
        challengers = routes.shadows(unit, route.route_id)
        if not challengers:
            raise InputError(f"route {name} has no challenger", hint=f"`rlrec policy shadow {name} POLICY` starts one")
        goes_on = challengers[0].stopped_at is None
        if goes_on:
            routes.stop_shadow(unit, challengers[0].id)
            settings.add_run(unit, "policy shadow", {"route": name, "stop": True})
        return {**report(unit, name, routes.shadows(unit, route.route_id)[0]), "stopped": goes_on}

    return store.write(work, repeatable=True)
