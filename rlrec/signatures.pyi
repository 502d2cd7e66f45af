"""The commands as methods of `rlrec.api.Recommender`, for type checkers and editors.

`PAGES=write .venv/bin/pytest tests/test_signatures.py` writes this file from what the commands declare.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from os import PathLike
from typing import Any, Literal

from rlrec.api import Log, Records, Result


class ArmCommands:
    def add(self, *keys: str, features: Mapping[str, Any] | None = None, group: Sequence[str] | None = None, from_: str | None = None, until: str | None = None, dry_run: bool = False) -> Result:
        """Add arms, or change known ones.

        Options that are not given change nothing. --group replaces all groups of an arm; '[]' removes it from all.

        features: The features of each arm.
        group: Its groups; requests write @a for all arms of one.
        from_: Shown from this time on; `none`: at any time.
        until: Shown before this time; `none`: without end.
        dry_run: Say what would be stored, and store nothing."""

    def import_(self, source: str | PathLike[str], *, on_error: Literal['fail', 'quarantine'] = 'fail', rejects: str | PathLike[str] | None = None, dry_run: bool = False) -> Result:
        """Add many arms from a file, or change their features.

        FILE holds one JSON object a line, {"arm": "a1", "features": {...}}, or is a CSV whose first column is `arm` and
        whose other columns are features. Importing again updates. An object may also have "groups": ["home"], "from" and
        "until"; without them these do not change, and null removes a time. A CSV may have such columns, with groups as
        home+deals.

        on_error: fail: a bad line stops all, nothing is stored. quarantine: bad lines go to --rejects.
        rejects: Where bad lines go.
        dry_run: Say what would be stored, and store nothing."""

    def list(self, *names: str, exposure: bool = False) -> Records:
        """List arms, retired ones too: all of them, or those named.

        --exposure adds the figures of `rlrec exposure`; they are null if the arm was never eligible.

        exposure: Slots of each arm in the log, expected and realised, and its rate."""

    def retire(self, *keys: str, dry_run: bool = False) -> Result:
        """Take arms out of the catalogue; their log stays.

        dry_run: Say what would be stored, and store nothing."""

    def restore(self, *keys: str, dry_run: bool = False) -> Result:
        """Make retired arms eligible again.

        dry_run: Say what would be stored, and store nothing."""


class RewardCommands:
    def define(self, name: str, weights: str, *, window: str | timedelta = '30m', default: float = 0.0, clip: tuple[float, float] | str | None = None, learn: Literal['served', 'settled'] = 'served', late: Literal['count', 'ignore'] = 'count', dry_run: bool = False) -> Result:
        """Define what the events of a slot are worth.

        The reward of a slot is the sum of weight x value over its events, clipped, or the default if there was no such
        event. In place of KIND, log1p(KIND), min(KIND,CAP) and log1p(min(KIND,CAP)) transform the sum of its values first;
        log1p of a negative sum -x is -log1p(x). Definitions never change: give a new definition a new name, and try it on
        old logs.

        Once a reward weighs the event `return`, it is recorded automatically: when a known user begins a visit, the last
        decision of their previous visit gets the event, in any session and under any policy. It belongs to the page of that
        decision or, if the slate has one slot, to the slot; beliefs learn only from slots. Choose a --window in which users
        come back. Earlier visits in the log get the event, too, also imported ones. From then on, `feedback` refuses a
        `return` by hand, because it would count a visit twice.

        window: How long after a decision its events count.
        default: Reward of a slot without events.
        clip: Keep a slot's reward inside LO,HI.
        learn: When a belief learns from a slot: at once, corrected by its events, or when its window is over.
        late: Whether events after the window still correct a belief (estimates never count them).
        dry_run: Say what would be stored, and store nothing."""

    def list(self) -> Records:
        """List all reward definitions."""

    def delays(self, name: str | None = None, *, log: str | None = None) -> Records:
        """Show how much reward arrives within each window, to choose one. Without a NAME it is the reward that all policies
        learn.

        The reward of a decision is that of its page under the definition, minus the defaults, from the events inside the
        window. Two windows are compared on the decisions old enough for the longer one, so that young decisions do not
        look poor (a chain ladder). The share is a share of what arrives within the longest window. Decisions with a
        censored slot are left out; imported ones count as old enough for every window.

        What --json has:
          share                 of the reward of the longest window; null: unknown.
                                Above 1 where later events take reward away
          decisions             how many are old enough for the window
          events                weighed events inside the window, of these decisions
          reward_per_decision   the mean reward of these, from events in the window
          own                   whether it is the window of the definition

        log: Look only at these decisions: policy=NAME,since=TIME and so on."""

    def suggest(self, *, reward: str | None = None, log: str | None = None, horizon: str | timedelta | None = None, level: float = 0.95) -> Result:
        """Suggest weights of events by which a slot is worth what it brings in the long run.

        Arms differ in how many events of each kind a look at them brings, and in their later effects: on later pages of the
        visit, and on coming back (`rlrec effects`). A regression of the later effects on the events, across arms, says what
        one more event goes with (later); it allows for errors in both. A weight is what the event is worth now, in the
        reward, plus later. `return` has no weight, because it is part of the later effects; a clip is ignored.

        It describes how arms differ, not what an event causes: it may be wrong for an arm unlike all past ones. rank is the
        rank correlation, over arms, between events per look and the long-run effect. If it is below 0, a policy that learns
        only this event prefers the arms that cost most. If any later weight is significantly different from 0, a definition
        to paste follows, with the means of the others. Bounds of later and rank hold for all events together.

        reward: Reward that the weights add to [default: what all policies learn].
        log: Filter of the log, or parquet:DIR, as in `effects` [default: all].
        horizon: Time within which people come back, as in `effects`.
        level: Confidence of intervals."""


class PolicyCommands:
    def kinds(self) -> Records:
        """List the kinds of policy, their parameters, and when to use each."""

    def create(self, name: str, *, kind: str, params: Mapping[str, Any] | None = None, reward: str = 'default', prior: str | PathLike[str] | None = None, features: Mapping[str, Any] | str | PathLike[str] | None = None, from_log: str | None = None, prior_from: str | None = None, prior_weight: float | None = None, from_policy: str | None = None, dry_run: bool = False) -> Result:
        """Create a policy; its version 1 is live at once.

        A file for --features names fields of the context, and of arms for model=shared or hybrid:
          {"context": {"fields": {"hour": {"type": "number", "mean": 12, "scale": 6}, "device": ["ios", "web"],
                                  "new": "flag", "tags": {"list": ["tea", "iced"], "hash": 8}, "taste": {"vector": 8}}},
           "arm": {"fields": {"price": "number", "topic": {"hash": 8}}}}
        Without "context", contexts are fitted to --from-log, else hashed; without "arm", arms are fitted to the catalogue.
        Missing and unknown values count as 0. `policy show --json` has the complete object, as `features`. {"text": 262144}
        hashes the words of a text into so many columns, for softmax, squarecb and gradient (`rlrec help contexts`).

        With --from-policy, version 1 imitates what the bandit would serve now to its newest 2,000 requests (if it served
        none: to those of the log); `kl` is the remaining divergence on these requests, in nats per slate. `train-pg` then
        continues on the bandit's log.

        kind: Kind of policy; `rlrec policy kinds` lists them.
        params: A parameter of the kind; repeatable.
        reward: Reward definition it learns from.
        prior: CSV arm,alpha,beta or arm,mean,variance: replaces the default prior.
        features: JSON: how a contextual kind reads contexts and arms.
        from_log: First learn from mature decisions of this log (a gradient: imitate it).
        prior_from: Start each arm from its mean reward in this log, shrunk to that of all arms.
        prior_weight: Weight of that start, and of the shrinking, in pulls.  [default: 10]
        from_policy: For kind gradient: start by imitating this bandit, with its floor (at least 0.02).
        dry_run: Say what would be stored, and store nothing."""

    def list(self) -> Records:
        """List all policies at their live version."""

    def versions(self, name: str) -> Records:
        """List the versions of a policy: what each was made from and learned from, its gate, and when it was live."""

    def show(self, reference: str, *, context: Mapping[str, Any] | None = None, all: bool = False, curve: bool = False, plot: str | PathLike[str] | None = None) -> Result:
        """Show what a policy believes about each arm, what it would serve now, and its versions.

        pending counts served slots whose rewards may still come: their window is open, or they wait for `settle`. All other
        slots without a reward have earned nothing. p_best is the probability that the arm is the best one under the belief;
        probability is that of being served at position 1, with the floor and rules of the page. Both are exact. ipw_mean is
        the mean of the arm's mature rewards weighted by 1 / sqrt(propensity): a learning policy drops arms that began
        badly, so their plain means are too low. At most 20,000 decisions, spread over the log, are read for it, unless
        --all is given. For a version of train-pg, the result of its training and the figures of the gate follow.

        Arms are sorted by probability, in csv and json as in the catalogue; ndjson has one line per arm. A policy of kind
        logged has no belief: `rlrec exposure --policy NAME` shows the rates of its arms.

        context: The context, of a kind that reads one [default: the newest].
        all: All arms, with weights, on a terminal; ipw_mean of a long log.
        curve: The learning curve of a version made by train-pg, epoch by epoch.
        plot: Write the answer as a figure, too."""

    def diff(self, first: str, second: str) -> Records:
        """Compare what two policies, or two versions of one policy, believe about each arm, and whom they serve.

        A and B are NAME or NAME@V; a difference is B minus A."""

    def rebuild(self, reference: str, *, reward: str | None = None, features: Mapping[str, Any] | str | PathLike[str] | None = None, position: str | None = None, after_drift: Literal['adwin', 'page-hinkley'] | None = None, log: str | None = None, horizon: str | timedelta | None = None, dry_run: bool = False) -> Result:
        """Compute a belief again from the stored events, as a new version that goes on learning; it is not live.

        The past is read in batches, so that other commands can work meanwhile. A rebuild that was killed continues where it
        stopped when the same command is run again. A logistic model is expanded around its present weights.

        A policy of kind long-term learns the figures of `rlrec effects`, from the log of any policy, as a frozen
        version.

        reward: Reward definition to learn, instead of its own.
        features: JSON: read contexts and arms like this instead.
        position: Count pulls by the examination of their position.
        after_drift: Use only decisions since rewards last changed; without a change, nothing is done.
        log: Log to learn from, for kind long-term [default: all].
        horizon: Within which people come back, for kind long-term.
        dry_run: Say what would be stored, and store nothing."""

    def retire(self, reference: str, *, dry_run: bool = False) -> Result:
        """End the learning of a version that is not live; its belief stays as it is.

        dry_run: Say what would be stored, and store nothing."""

    def freeze(self, reference: str, *, dry_run: bool = False) -> Result:
        """Copy a belief, without the slots that are not mature, into an immutable version; it is not live.

        dry_run: Say what would be stored, and store nothing."""

    def promote(self, reference: str, *, dry_run: bool = False) -> Result:
        """Make a version live.

        dry_run: Say what would be stored, and store nothing."""

    def shadow(self, route: str, challenger: str | None = None, *, stop: bool = False, dry_run: bool = False) -> Result:
        """Log beside every decision of a route the probability that a challenger would have given to the slate shown.

        The challenger never serves. Its probability is exact, or null if it has none (samples, two stages, contexts that it
        cannot read). `rlrec route show` has the mean weight (near 1 if the log supports the challenger) and the effective
        sample size (ESS) so far.

        stop: End the challenger; its logged probabilities stay.
        dry_run: Say what would be stored, and store nothing."""

    def rollback(self, name: str, *, dry_run: bool = False) -> Result:
        """Return to the version that was live before the last promote.

        dry_run: Say what would be stored, and store nothing."""

    def __call__(self, reference: str, *, context: Mapping[str, Any] | None = None, all: bool = False, curve: bool = False, plot: str | PathLike[str] | None = None) -> Result:
        """Show what a policy believes about each arm, what it would serve now, and its versions.

        pending counts served slots whose rewards may still come: their window is open, or they wait for `settle`. All other
        slots without a reward have earned nothing. p_best is the probability that the arm is the best one under the belief;
        probability is that of being served at position 1, with the floor and rules of the page. Both are exact. ipw_mean is
        the mean of the arm's mature rewards weighted by 1 / sqrt(propensity): a learning policy drops arms that began
        badly, so their plain means are too low. At most 20,000 decisions, spread over the log, are read for it, unless
        --all is given. For a version of train-pg, the result of its training and the figures of the gate follow.

        Arms are sorted by probability, in csv and json as in the catalogue; ndjson has one line per arm. A policy of kind
        logged has no belief: `rlrec exposure --policy NAME` shows the rates of its arms.

        context: The context, of a kind that reads one [default: the newest].
        all: All arms, with weights, on a terminal; ipw_mean of a long log.
        curve: The learning curve of a version made by train-pg, epoch by epoch.
        plot: Write the answer as a figure, too."""


class RouteCommands:
    def create(self, name: str, *, to: str, holdout: float | str | None = None, holdout_policy: str = 'uniform', dry_run: bool = False) -> Result:
        """Create a route. Routes and policies share one namespace.

        With --holdout, an experiment `front-holdout` draws a share of the users once, by a digest of their keys (sessions
        without a user by that of the session). They always get `uniform`, or a copy of another policy, through every change
        of the route, and take part in no ramp. `rlrec experiment show front-holdout` compares the other users with them;
        `report` begins with this, and `status` repeats the last result.

        to: The policy to serve. POLICY follows its live version, POLICY@V stays with one.
        holdout: Keep this share of its users apart permanently, 5% or 0.05, to measure what the route is worth.
        holdout_policy: The holdout gets a copy of this policy.
        dry_run: Say what would be stored, and store nothing."""

    def set(self, name: str, *, to: str | None = None, holdout: float | str | None = None, holdout_policy: str = 'uniform', share: float | str | None = None, metrics: Sequence[str] | str | None = None, require: Literal['if-better'] | None = None, guards: Sequence[str] | str | None = None, reward: str | None = None, log: str | None = None, gamma: float | None = None, cluster: str | None = None, dry_run: bool = False) -> Result:
        """Switch a route to another policy or version, from the next decision on.

        With --share, the route keeps its policy, and an experiment gives the other one to a share of its users (sessions
        without a user are split by session): variants `current` and `candidate`, each with a copy of its belief that learns
        from its own decisions. `rlrec experiment show` compares them; `rlrec experiment stop NAME --promote candidate` ends
        it, and the route serves the belief that this variant has learned. Callers change nothing.

        The gate of --require (with guards, say --guard return:-2%) compares the two on the 20 % of users that training
        never uses, by a paired difference on the same visits. It uses `wdr` (whole visits) if one policy reads the session
        state, if rewards depend on what was shown earlier in the visit, or if they weigh returns; else `dr` (impressions).
        Pages are judged slot by slot, by `dr` in the states of the log; in the cases above, whole visits must also support
        the candidate, and must not say that it is worse (`visits`). You may look every night: all looks at one pair of
        versions (`pair`) err with probability `alpha`, the j-th pair of a year with 0.05 x 6 / (pi^2 j^2), all pairs with 5
        %; guards have 5 % per pair. The gate refuses if the log has too little evidence or lacks propensities, or if the
        candidate has learned from these visits. A guard holds if the lower bound of its relative difference is above the
        limit. `return` needs no definition: it is the share of visits after which the user begins another one within 7
        days.

        to: The policy to serve. POLICY follows its live version, POLICY@V stays with one. Without it, only a holdout begins.
        holdout: Keep this share of its users apart permanently, 5% or 0.05, to measure what the route is worth.
        holdout_policy: The holdout gets a copy of this policy.
        share: Begin a ramp: an experiment on this share of the route's users, 5% or 0.05.
        metrics: What decides the ramp (`rlrec help outcomes`); repeatable [default: reward_per_unit as its policy learns].
        require: Do it only if the gate finds it better than what the route serves, else exit 3.
        guards: A reward that surely does not fall by more (relative difference); repeatable.
        reward: What better means.  [default: as served now]
        log: Log for the gate.  [default: all of it]
        gamma: Discount per step, for the gate.  [default: 1]
        cluster: user, session or row, for the gate.  [default: user, else session]
        dry_run: Say what would be stored, and store nothing."""

    def ramp(self, name: str, *, to: str, steps: Sequence[float | str], hold: str | timedelta = '2d', metrics: Sequence[str] | str | None = None, guards: Sequence[str] | str | None = None, dry_run: bool = False) -> Result:
        """Begin an automatic ramp: an experiment as of `route set --share`, whose share rises step by step.

        `rlrec route advance` takes the steps. A step lasts at least for --hold, and until `rlrec experiment show` has an
        answer and every guard is known to hold; until then the ramp waits, and says why. It takes the candidate back if a
        guard breaks, or if its reward per user is significantly less than that of `current`. The intervals are valid at
        every look: an equal candidate is taken back in 2.5 % of ramps (and in 5 % for each guard). A candidate need not be
        better to go on. The step 100% promotes it, like `rlrec experiment stop --promote`; without this step, the ramp
        stays at its last share. A larger share takes users only from `current`. If the candidate is taken back, what
        `current` has learned becomes the next version of its policy. `route rollback` and `experiment stop` end the ramp
        sooner.

        to: The policy to serve. POLICY follows its live version, POLICY@V stays with one.
        steps: Shares of the users, which rise.
        hold: How long each step lasts at least.
        metrics: What decides the ramp (`rlrec help outcomes`); repeatable [default: reward_per_unit as its policy learns].
        guards: What must not fall by more; repeatable.
        dry_run: Say what would be stored, and store nothing."""

    def advance(self, name: str, *, dry_run: bool = False) -> Result:
        """Let the ramp of a route take its next step, or take its candidate back: for cron, as often as you like.

        It prints what it did, and when the next step may come. Every call also looks for losses. Exit 0 if the ramp goes
        on, waits or is over. Exit 3 once when the candidate is taken back, and at every call while its users are not split
        as defined: the ramp then stays as it is, and somebody must look into it.

        dry_run: Say what would be stored, and store nothing."""

    def show(self, name: str) -> Result:
        """Show what a route serves, since when and why, and what it served before, newest first."""

    def list(self) -> Records:
        """List routes with what they serve."""

    def rollback(self, name: str, *, dry_run: bool = False) -> Result:
        """Serve again what the route served before its last change; each further call undoes one more. A ramp ends with it.
        A promotion by `experiment stop` is undone with it; one by `policy promote` only by `policy rollback`.

        dry_run: Say what would be stored, and store nothing."""

    def __call__(self, name: str) -> Result:
        """Show what a route serves, since when and why, and what it served before, newest first."""


class SessionCommands:
    def list(self, *, limit: int = 100, user: str | None = None) -> Records:
        """List sessions, newest first.

        limit: How many; 0 for all.
        user: Only of this user."""

    def show(self, key: str, *, visit: int | None = None, gamma: float = 1.0, reward: str | None = None) -> Result:
        """Show a visit step by step: state, slate, propensities, events, reward, return.

        visit: Number of the visit.  [default: the newest]
        gamma: Discount of the return.
        reward: Reward definition.  [default: each decision's own]"""

    def end(self, key: str, *, dry_run: bool = False) -> Result:
        """End the newest visit of a session; its next decision opens another visit.

        dry_run: Say what would be stored, and store nothing."""

    def __call__(self, key: str, *, visit: int | None = None, gamma: float = 1.0, reward: str | None = None) -> Result:
        """Show a visit step by step: state, slate, propensities, events, reward, return.

        visit: Number of the visit.  [default: the newest]
        gamma: Discount of the return.
        reward: Reward definition.  [default: each decision's own]"""


class UserCommands:
    def merge(self, key: str, *, into: str, dry_run: bool = False) -> Result:
        """Let both keys mean one user from now on. Past sessions move to --into, the person keeps the variant that either
        key had first in an experiment, and events `return` are derived again. The key may be new. A merge cannot be undone.
        `rlrec db forget` deletes the user with all keys.

        into: The user that the key means from now on.
        dry_run: Say what would be stored, and store nothing."""

    def show(self, key: str) -> Result:
        """Show the user that a key means, and all keys of this user."""

    def __call__(self, key: str) -> Result:
        """Show the user that a key means, and all keys of this user."""


class DecisionCommands:
    def show(self, decision_id: int) -> Result:
        """Show one decision: the belief it was drawn from, the probability of each arm, and what is stored."""

    def __call__(self, decision_id: int) -> Result:
        """Show one decision: the belief it was drawn from, the probability of each arm, and what is stored."""


class PositionCommands:
    def fit(self, name: str, *, log: str | None = None, reward: str = 'default', positions: int | None = None, model: Literal['pbm', 'cascade', 'dcm'] = 'pbm', jobs: int = 1, engine: Literal['local', 'dask'] = 'local', scheduler: str | None = None, plot: str | PathLike[str] | None = None, dry_run: bool = False) -> Result:
        """Estimate the examination of each position relative to the first one, and store the curve as the next version.

        pbm compares neighbouring positions on the arms that the logger could have put at either, with overlap weights from
        its marginals (method overlap). Imported logs without marginals need arms at several positions in equal contexts
        (method em, without intervals). The curve ends above the first position that cannot be compared; if this is position
        2, nothing is stored, and the exit code is 3. Curves never change: NAME is the newest version, NAME@N a fixed one.

        Click models are compared by their likelihood on held-out pages.

        log: Filter of the log, or parquet:DIR, as in `evaluate` [default: all].
        reward: Reward definition whose events are clicks.
        positions: Last position.  [default: the longest page]
        model: Click model: by position, down to the first click, or on after a click with a probability.
        jobs: Processes that share a log of more than 50,000 decisions.
        engine: local processes, or a cluster: dask.
        scheduler: A running Dask cluster, e.g. tcp://127.0.0.1:8786.
        plot: Write the answer as a figure, too.
        dry_run: Say what would be stored, and store nothing."""

    def list(self) -> Records:
        """List all curves."""

    def show(self, reference: str, *, plot: str | PathLike[str] | None = None) -> Result:
        """Show a curve, its intervals, and which click model the log preferred.

        plot: Write the answer as a figure, too."""

    def diff(self, first: str, second: str) -> Records:
        """Compare two curves; a difference is B minus A."""

    def __call__(self, reference: str, *, plot: str | PathLike[str] | None = None) -> Result:
        """Show a curve, its intervals, and which click model the log preferred.

        plot: Write the answer as a figure, too."""


class ExperimentCommands:
    def plan(self, name: str | None = None, *, lift: float | str = '10%', power: float | str = '80%', level: float = 0.95, metric: str | None = None, weights: str = '1,1', comparisons: int | None = None, unit: Literal['user', 'session'] = 'user', log: str | None = None, rate: float | str | None = None) -> Result:
        """Say how many units, and how many days of traffic, an experiment needs to detect a lift. With NAME, for an
        existing experiment: with its variants, units and traffic, and the days that are left.

        It says this for one look fixed beforehand, and for any number of looks (`experiment show`). Rewards count when
        their window is over: wait for this time at the end. Days include the time in which the last users may come back: 7
        days for visits, active days and retention, 28 for returned_28d. --rate needs no store, but then days are not
        known.

        lift: Lift to detect: 5%, or -2%.
        power: Chance to detect it, if it is real.
        level: Confidence of intervals.
        metric: The metric, as in `outcomes` [default: what decides NAME, or reward_per_unit].
        weights: Of the variants.
        comparisons: [default: those that decide]
        unit: Who has a variant.
        log: The traffic: route=home, policy=home, ... [default: all].
        rate: Share of units with an event, in place of a metric of the log."""

    def create(self, name: str, *, variants: Sequence[str] | str | None = None, unit: Literal['user', 'session'] = 'user', holdout_uniform: float | str | None = None, interleave: Sequence[str] = (), layer: str | None = None, layer_share: float | str | None = None, metrics: Sequence[str] | str | None = None, guards: Sequence[str] | str | None = None, best_n: int | None = None, dry_run: bool = False) -> Result:
        """Start an A/B test. Each variant serves a copy of its policy's belief and learns only from its own decisions.

        With --interleave, both versions fill every slate (team draft): for every two positions, a coin decides which picks
        first. Each slot logs its team, and its propensity given the coins; `show` credits rewards to teams. Every visitor
        compares both, so far fewer visitors show which one ranks better.

        variants: The others are compared with the first; at least two, or one and a holdout. @V pins a frozen version; `uniform` needs no policy.
        unit: What is assigned to a variant, permanently.
        holdout_uniform: Share of all units, 1% or 0.01, for a variant `holdout` with the uniform policy.
        interleave: Two frozen versions that fill every slate in turns, in place of variants.
        layer: Share no unit with the other running experiments of this layer.
        layer_share: Share of the layer's units [default: all that are left].
        metrics: Metric that decides (`rlrec help outcomes`); repeatable [default: reward_per_unit by what the variants learn].
        guards: What must not fall by more; repeatable.
        best_n: Number of units at which intervals are tightest: as many as you expect [default: those of the last 30 days, else 5,000].
        dry_run: Say what would be stored, and store nothing."""

    def show(self, name: str, *, rewards: Sequence[str] | str | None = None, level: float = 0.95, log: str | None = None, by: str | None = None, against: str | None = None, fixed: bool = False, details: bool = False, plot: str | PathLike[str] | None = None) -> Result:
        """Show what each variant's units did, the differences, and the check of the split.

        Look as often as you like: intervals and p-values are valid at every look (confidence sequences, clustered by the
        assigned unit). Only decision metrics have a p-value, corrected for all variants and metrics (Holm); guards are
        one-sided, without correction. Other metrics say better or worse only at a level at which all of them together are
        wrong in 0.1 % of experiments. All describe the variants as they served: policies that learn were still learning.

        A variant that brings people back has more decisions, so a mean per decision is about other visits. If the numbers
        of decisions per unit differ (p below 0.001), the reason is `decisions-differ`, and means per decision (--details)
        are not comparable. These, and the holdout, use the first reward.

        With a uniform holdout, what `uniform` earned there is compared with its estimate from the log of the other variants
        (snips, per impression). If they disagree (Welch's t on both standard errors, clustered by unit), do not trust
        estimates from this log. --log does not apply to the holdout and the check of the split.

        rewards: Reward definition; may be repeated [default: what the variants learn].
        level: Confidence of intervals.
        log: Filter of the log, as in `evaluate` [default: all of the experiment].
        by: Segments, by a context field of each unit's first decision.
        against: Variant to compare with [default: the first].
        fixed: Narrower intervals, valid for one look planned beforehand.
        details: Every metric, and means per decision.
        plot: Write the answer as a figure, too."""

    def set(self, name: str, *, weights: Sequence[str] | str, dry_run: bool = False) -> Result:
        """Change the weights of an experiment: a new phase, also of a frozen one.

        Units keep their variant; new units are assigned by the new weights. In the ramp of a route, the share of the last
        variant can only rise, and the units that it gains move to it when they come next. `show` compares variants within
        each phase and combines the differences.

        weights: Of each variant: 0.2 or 20%.
        dry_run: Say what would be stored, and store nothing."""

    def freeze(self, name: str, *, dry_run: bool = False) -> Result:
        """Take no new units into an experiment, and go on serving and measuring those that it has.

        New units get the policy of its first variant, or what the route serves; they are in no variant and not counted.
        `experiment set` opens it again.

        dry_run: Say what would be stored, and store nothing."""

    def stop(self, name: str, *, promote: str | None = None, anyway: bool = False, dry_run: bool = False) -> Result:
        """Stop serving from an experiment; its log stays.

        With --promote, what the variant has learned becomes the next version of its policy, and goes live; if the variant
        does not learn, the version that it copies goes live. Routes to this policy serve it. A route to another policy does
        not change; the answer names the command that changes it. The route of a ramp serves the promoted variant's policy;
        without --promote, what it served before. `rlrec policy rollback`, and for a ramp `rlrec route rollback`, undo it.
        The result of `experiment show` is repeated. Unless the variant is better than the first one or the same, per unit,
        the command asks on a terminal; without a terminal it exits with 3, unless --anyway is given.

        promote: Variant whose belief goes live in its policy.
        anyway: Promote even a variant that is worse, or not yet known to be as good.
        dry_run: Say what would be stored, and store nothing."""

    def list(self) -> Records:
        """List experiments with their variants."""

    def __call__(self, name: str, *, rewards: Sequence[str] | str | None = None, level: float = 0.95, log: str | None = None, by: str | None = None, against: str | None = None, fixed: bool = False, details: bool = False, plot: str | PathLike[str] | None = None) -> Result:
        """Show what each variant's units did, the differences, and the check of the split.

        Look as often as you like: intervals and p-values are valid at every look (confidence sequences, clustered by the
        assigned unit). Only decision metrics have a p-value, corrected for all variants and metrics (Holm); guards are
        one-sided, without correction. Other metrics say better or worse only at a level at which all of them together are
        wrong in 0.1 % of experiments. All describe the variants as they served: policies that learn were still learning.

        A variant that brings people back has more decisions, so a mean per decision is about other visits. If the numbers
        of decisions per unit differ (p below 0.001), the reason is `decisions-differ`, and means per decision (--details)
        are not comparable. These, and the holdout, use the first reward.

        With a uniform holdout, what `uniform` earned there is compared with its estimate from the log of the other variants
        (snips, per impression). If they disagree (Welch's t on both standard errors, clustered by unit), do not trust
        estimates from this log. --log does not apply to the holdout and the check of the split.

        rewards: Reward definition; may be repeated [default: what the variants learn].
        level: Confidence of intervals.
        log: Filter of the log, as in `evaluate` [default: all of the experiment].
        by: Segments, by a context field of each unit's first decision.
        against: Variant to compare with [default: the first].
        fixed: Narrower intervals, valid for one look planned beforehand.
        details: Every metric, and means per decision.
        plot: Write the answer as a figure, too."""


class LogCommands:
    def exclude(self, name: str, *, where: str | None = None, machines: bool = False, dry_run: bool = False) -> Result:
        """Leave decisions out of everything that reads the log, until `log include`.

        Estimates, outcomes, experiments, curves, training and exports leave them out; --log included=NAME or included=all
        brings them back for one command. Users in them are served as before, and nothing is deleted. Beliefs do not learn
        from new decisions of this kind. What a belief learned from earlier ones (and from their later events) stays, until
        `policy rebuild` makes a version without them and `policy promote` lets it serve: the answer names these
        commands.

        where: The decisions, as in the --log of `evaluate`.
        machines: The users and sessions that `doctor` takes for bots.
        dry_run: Say what would be stored, and store nothing."""

    def include(self, name: str, *, dry_run: bool = False) -> Result:
        """End an exclusion: its decisions count again.

        Beliefs that left them out learn from them by `policy rebuild`, whose version serves after `policy promote`.

        dry_run: Say what would be stored, and store nothing."""

    def list(self) -> Records:
        """List the exclusions. Users and sessions are counted; --json names them."""

    def show(self, log: 'str | None' = None) -> Log:
        """Return the decisions that pass a filter, such as `policy=home`; without a filter, return all decisions."""

    def __call__(self, log: 'str | None' = None) -> Log:
        """Return the decisions that pass a filter, such as `policy=home`; without a filter, return all decisions."""


class DbCommands:
    def forget(self, *, user: str, yes: bool = False, dry_run: bool = False) -> Result:
        """Delete a user, and what beliefs learned from them.

        It deletes their sessions, visits, decisions, events, keys and assignments, and contexts that no one else had. What
        the user's slots added is subtracted from all beliefs: learning, frozen and retired ones, variants of experiments,
        and those that were fitted to a log. Trained and fitted parameters and priors cannot be unlearned: `retrain` names
        the versions that learned some from the user.

        The file of an SQLite store is rewritten, so that nothing of the user is left in it; no other process may read it at
        that moment. If this was not possible, `doctor` warns until you repeat the command. In PostgreSQL, rows are deleted;
        run VACUUM FULL to erase their bytes, and delete its backups and archives. Delete other backups, exports and files
        of rejected lines yourself; importing a log again brings its users back.

        user: The user.
        yes: Do not ask.
        dry_run: Count what would be done; nothing is changed."""

    def prune(self, *, before: str | datetime, yes: bool = False, dry_run: bool = False) -> Result:
        """Delete old decisions with their events; beliefs stay as they are.

        It deletes visits that ended before the time, are mature for every reward and have entered every belief that learns
        from them (`rlrec settle`), and sessions, users, contexts and keys that are then unused. Beliefs do not change;
        their sums over deleted slots are stored, so that `doctor` can still check them, and changes of beliefs without a
        decision are merged into one per arm. The rules not_after and not_shown no longer see deleted purchases and
        showings: keep as many days as their windows have.

        Estimates, outcomes, experiments and training then see only the visits that are left, and the beliefs of the named
        policies cannot be rebuilt. Feedback for a deleted decision is refused; a deleted request id or imported line counts
        as new. If this matters, run `export-log` or `db backup` first.

        before: Delete visits that ended before it.
        yes: Do not ask.
        dry_run: Count what would be done; nothing is changed."""

    def backup(self, path: str | PathLike[str], *, dry_run: bool = False) -> Result:
        """Write a snapshot of an SQLite store to a new file.

        Other processes may read and write meanwhile. The file appears when it is complete; an existing file is never
        replaced. It is a normal store: `rlrec --db FILE doctor` checks it. For PostgreSQL use pg_dump.

        dry_run: Say how large it would be; nothing is written."""

    def copy(self, *, to: str, yes: bool = False, dry_run: bool = False) -> Result:
        """Copy the store to another database, row by row.

        Stop all writers first: what they store during the copy is not copied. It copies between SQLite and PostgreSQL in
        any direction. Ids, times and contents stay the same, so estimates are equal to the last digit. Rows are written in
        batches; if it was stopped, the same command continues, unless the store has changed. Until it is complete, no
        command accepts the target as a store.

        to: Where to; a new file or an empty database.
        yes: Do not ask.
        dry_run: Count what would be done; nothing is changed."""

    def roles(self, *, prefix: str = 'rlrec') -> Records:
        """Print SQL that creates PostgreSQL roles with only the rights that they need.

        PREFIX_reader reads: `evaluate`, `report`, `status`, `doctor`. PREFIX_server serves: `recommend`, `feedback`,
        `pipe`, `serve`, `settle`, `session end`; it cannot change or delete logged rows, or define anything. PREFIX_trainer
        also defines, imports, trains and promotes. `init`, `db forget`, `db prune` and `db copy` are for the owner of the
        tables.

        The roles have no login: `GRANT shop_server TO web` gives a login their rights. Run the script as the owner of the
        tables who may create roles; it may be run again, and should be after each `init` that migrates.

        prefix: Prefix of the roles' names."""


class Commands:
    def init(self, *, session_timeout: str | timedelta | None = None, check: bool = False, dry_run: bool = False) -> Result:
        """Create the store, or bring it up to date.

        Safe to repeat, and to run many times at once.

        session_timeout: A visit ends after this long without a decision [default: 30m].
        check: Only look: exit 3 where the store is missing or out of date.
        dry_run: Say what would be stored, and store nothing."""

    def status(self) -> Result:
        """Show what a store holds, what its policies do, what is waiting.

        It exits with 3 if it sees a problem: decisions ahead of the clock, slots that wait for `settle`, events that
        stopped coming or that teach a policy nothing, errors that the last `rlrec doctor` found, routes that an earlier
        release pinned at the end of a ramp. It also names other routes and experiments that serve another version than the
        live one (without exit 3). It does not read the whole log, so it is quick on a large store; `rlrec doctor` checks
        everything.

        decisions_24h counts what was served in the last 24 hours. An immature decision is within the reward window of its
        policy: estimates and training do not use it yet. Unsettled slots have not entered the beliefs that learn `settled`
        rewards. The answer of a policy is the newest result of a gate for its live version."""

    arm: ArmCommands

    reward: RewardCommands

    policy: PolicyCommands

    route: RouteCommands

    def recommend(self, policy: str | None = None, *, experiment: str | None = None, session: str, user: str | None = None, context: Mapping[str, Any] | None = None, k: int = 1, arms: Sequence[str | Mapping[str, Any]] | None = None, block: Sequence[str] | None = None, not_after: Sequence[str] | None = None, not_shown: str | None = None, page: Mapping[str, Any] | None = None, pin: Mapping[str, Any] | None = None, most: Mapping[str, Any] | None = None, least: Mapping[str, Any] | None = None, request_id: str | None = None, seed: int | None = None, dry_run: bool = False) -> Result:
        """Draw a slate and log it with its exact propensities.

        With --input, each line is a request with the keys policy or experiment, session, user, context, k, arms (as of
        --arms or of --candidates), block, not_after, not_shown, page and request_id; it is answered in order, a group of
        lines at a time. A group ends if no further line is waiting; with --seed only at 1,000 lines, at the end of the
        input, or at a line {"op": "flush"}.

        policy: Policy or route to draw from.
        experiment: Experiment to draw for, in place of a policy.
        session: Session key.
        user: User key; a session keeps its first one.
        context: Context: what describes user and moment.
        k: Positions to fill.
        arms: Only these arms, and those of group home; or a JSON array.
        arms, as objects: In place of --arms, with what you know of each: [{"arm": "a", "score": 1.7, "features": {"price": 9}}]; "scores": {"new": 1.7, "old": 0.4} has those of several rankers.
        block: Without these arms.
        not_after: Without arms with this event by the person.
        not_shown: Without arms that the person was shown N times (in 7 days); @push=N counts group push together.
        page: Rules of the page: {"pin": {"1": "a"}, "most": {"shelf": 2}, "least": {"b": 0.05, "@home": {"1": 0.2}}}.
        pin: Show this arm there; repeatable.
        most: At most N with equal FIELD; repeatable.
        least: Minimum probability of an arm, or of all of @GROUP, at position N or at every one; repeatable.
        request_id: A retry under the same id answers the stored decision.
        seed: Seed of the draw [default: 64 random bits].
        dry_run: Draw, and store nothing."""

    def feedback(self, decision_id: int | None = None, events: Mapping[str, float] | None = None, *, position: int | None = None, at: str | datetime | None = None, key: str | None = None, censor: bool | None = None, user: str | None = None, window: str | timedelta | None = None, arm: str | None = None, credit: Literal['last', 'spread'] | None = None, dry_run: bool = False, request_id: str | None = None) -> Result:
        """Record what the user did after a decision.

        VALUE is 1 if not given. Without --position, an event belongs to the slot if the slate has one slot, else to the
        page. With --input each line is {"decision_id": 7, "position": 1, "events": {"click": 1}, "at": "...", "key":
        "..."}; `request_id` may replace `decision_id`; "censor" is true or false. --user, or "user" in a line, replaces the
        decision: `rlrec feedback --user u1 purchase=29`.

        position: The slot; not needed if the slate has one.
        at: When it happened [default: now].
        key: A retry under the same key changes nothing.
        censor: Take slots out of beliefs and estimates.
        user: In place of a decision: the page this user saw last.
        window: With --user: how old that page may be.  [default: 7d]
        arm: With --user: the last showing of this arm.
        credit: spread: shared by all in the window.
        dry_run: Say what would be stored, and store nothing."""

    def settle(self, *, dry_run: bool = False) -> Result:
        """Learn from slots of `settled` rewards whose window is over.

        dry_run: Say what would be stored, and store nothing."""

    session: SessionCommands

    user: UserCommands

    decision: DecisionCommands

    position: PositionCommands

    def train_pg(self, reference: str, *, log: str | None = None, since: str | datetime | None = None, min_new: int = 0, gamma: float = 1.0, discounted: bool = True, entropy: float = 0.0, shapings: Mapping[str, Any] | None = None, baseline: str = 'value', weights: str = 'auto', clip_weight: float | str = '20', no_correction: bool = False, top_k: int = 0, position: str | None = None, from_version: int | None = None, epochs: int = 60, lr: float = 0.005, batch: int = 500, kl_stop: float | None = None, patience: int = 20, seed: int | None = None, jobs: int = 1, engine: Literal['local', 'dask'] = 'local', scheduler: str | None = None, promote: str = 'never', bold: bool = False, cluster: str | None = None, dry_run: bool = False, plot: str | PathLike[str] | None = None) -> Result:
        """Train a policy gradient on logged sessions, and judge it.

        Makes a new version of a policy of kind gradient, from all visits that have ended, of any policy. 60 % of the
        users are trained on, 20 % choose the epoch, and 20 % are the gate that judges the result.

        log: As in `evaluate` [default: loggers with enough evidence].
        since: Only sessions that began at this time or later.
        min_new: If fewer sessions are new, do nothing.
        gamma: Discount per step, 0 to 1.
        discounted: Step t counts gamma^t.
        entropy: Bonus per nat of entropy.
        shapings: Shaping potential of a state; repeatable.
        baseline: Subtracted: none, mean, value (default), rloo.
        weights: By slate, slot or auto.
        clip_weight: Largest importance weight, or none.
        no_correction: No weights, as if the policy had logged everything.
        top_k: Each slot as one of K draws with replacement.
        position: With --top-k [default: the policy's curve].
        from_version: Where to start [default: the live one].
        epochs: Passes, at most.
        lr: First step size.
        batch: Visits per step.
        kl_stop: Stop beyond this mean KL from the start.
        patience: Stop after this many epochs without a better one.
        seed: Order of visits [default: random].
        jobs: Processes that share a log of more than 50,000 decisions.
        engine: local processes, or a cluster: dask.
        scheduler: A running Dask cluster, e.g. tcp://127.0.0.1:8786.
        promote: Goes live never (default), if-better (else exit 3), always.
        bold: Go beyond what the log supports: try it by a ramp.
        cluster: Of the gate: user or session [default: user, else session].
        dry_run: Train and judge, and store nothing.
        plot: Write the answer as a figure, too.

        `rlrec help train-pg` explains the gate, the splits and every option."""

    def evaluate(self, *names: str, estimators: Sequence[str] | str | None = None, targets: Sequence[str | PathLike[str] | object] | str | PathLike[str] | object | None = None, temperature: float | None = None, fitted_on: str | None = None, reward: str | None = None, gamma: float = 1.0, by: str | None = None, greedy: bool = False, log: str | None = None, reward_model: str | PathLike[str] | object | None = None, reward_model_by: str | None = None, reward_model_hash: int = 0, position: str | None = None, interval: str = 'bootstrap-t', level: float = 0.95, cluster: str | None = None, target_samples: int = 1000, seed: int = 0, jobs: int = 1, engine: Literal['local', 'dask'] = 'local', scheduler: str | None = None, plan: float | str | None = None, best: bool = False, details: bool = False, plot: str | PathLike[str] | None = None) -> Records:
        """Estimate from the log what policies would have earned.

        A target is a policy (as it stands now), NAME@V, a variant POLICY@EXPERIMENT/VARIANT, or the built-in `uniform`.
        By default all loggers with enough evidence count, those with less variable weights more. First comes the answer:
        better, worse or no different from what was logged, or how much more data an answer needs. Every estimate has an
        interval, an effective sample size (ess), and a verdict (ok, weak, insufficient) with reasons.

        estimators: Names, or groups; repeatable [default: ips,snips,dr].
        targets: Table decision_id,arm,probability or ...,score.
        temperature: Probabilities from scores: softmax(score / T).
        fitted_on: Decisions that tables learned from, or none.
        reward: Reward definition [default: what each target learns].
        gamma: Discount per step of a session.
        by: One estimate for each position, day, field, ...
        greedy: Judge the target without its exploration.
        log: Decisions, e.g. policy=home,since=2026-01-01, or parquet:DIR; all counts each row once [default: all loggers with enough evidence].
        reward_model: [decision_id,]arm,reward [default: fitted anew].
        reward_model_by: Context field that `value` in that CSV refers to.
        reward_model_hash: Columns to hash each arm's contexts into.
        position: Multiply attraction by examination, by this curve.
        interval: Also normal, cressie-read.
        level: Confidence of the interval.
        cluster: user, session or row [default: user, else session].
        target_samples: Pages simulated per context.
        seed: Random seed.
        jobs: Processes that share a log of more than 50,000 decisions.
        engine: local processes, or a cluster: dask.
        scheduler: A running Dask cluster, e.g. tcp://127.0.0.1:8786.
        plan: How many more visits could detect this lift.
        best: Say which of the targets may still be the best.
        details: Every estimator, and every reason of each.
        plot: Write the answer as a figure, too.

        `rlrec help evaluate` explains units, verdicts, reasons and estimators."""

    def sweep(self, *, kinds: Sequence[str], params: Sequence[str] | str | None = None, features: Mapping[str, Any] | str | PathLike[str] | None = None, reward: str | None = None, log: str | None = None, level: float = 0.95, cluster: str | None = None, jobs: int = 1, engine: Literal['local', 'dask'] = 'local', scheduler: str | None = None, details: bool = False) -> Result:
        """Compare kinds and parameters on a log: which learns best.

        The log is cut into 10 periods. For each of the last 7, a candidate learns from the earlier periods and is
        evaluated on this one, weighted by the logged propensities, never on what it learned from. So a value is that of a
        policy that learned from 60 % of the log on average; the command at the end creates a policy from all of it.

        The first line says which may be best, and whether it is better than what was logged. Intervals of lifts hold for
        all rows together. The table has the candidates, `uniform`, and what was logged on the same rows, the best first.

        Pages are judged one by one, in the logged visits: a sweep does not see a candidate's effect on later pages and
        returns. See `rlrec effects` and `rlrec help visits`.

        kinds: Kinds, of epsilon-greedy, ucb, ucb-tuned, kl-ucb, thompson, exp3, linucb, lin-thompson, logistic-thompson, softmax, plackett-luce, squarecb.
        params: Values of a parameter of one kind; repeatable: every combination is tried, at most 40 in all.
        features: How contexts and arms are read [default: fitted to the log].
        reward: To learn and judge by [default: what policies learn].
        log: Filter, as in `evaluate` [default: all].
        level: Confidence of all intervals together.
        cluster: user, session or row [default: user, else session].
        jobs: Processes that share a log of more than 50,000 decisions.
        engine: local processes, or a cluster: dask.
        scheduler: A running Dask cluster, e.g. tcp://127.0.0.1:8786.
        details: Every estimator, and every reason of each.

        `rlrec help contexts` compares the kinds."""

    def effects(self, *, reward: str | None = None, horizon: str | timedelta | None = None, by: str | None = None, log: str | None = None, position: str | None = None, level: float = 0.95, jobs: int = 1, engine: Literal['local', 'dask'] = 'local', scheduler: str | None = None, plot: str | PathLike[str] | None = None) -> Result:
        """Show the effect of showing an arm, now and in the long run.

        An effect is what one full look at an arm adds, compared with the average of this log: to the reward of the page
        (now), of later pages of the visit (later), and to the probability that the person comes back in time (returning).
        long_run adds these; a return counts with its reward and what the person earned afterwards. looks counts the looks
        at the arm.

        In the log of a better policy, each arm has less to add. `shrunk` shrinks the three towards a prediction from the
        events per look (clicks, purchases; with 8 arms or more, if this predicts effects), else towards their means, and
        adds them: it may lie beyond long_run. With --by, a group is shrunk towards all groups together. Ranks are by
        `shrunk`, and `policy rebuild` of kind long-term learns it.

        Slots were drawn with known probabilities, so what was shown minus what was expected is random: no model of people
        is needed, and the logging policy may learn. Intervals are clustered by person.

        reward: Reward definition [default: what all policies learn].
        horizon: Time within which people come back [default: the window of a reward that weighs `return`, else 7d].
        by: Effects by policy, version, variant, day or a FIELD of the context.
        log: Filter of the log, or parquet:DIR, as in `evaluate` [default: all].
        position: Examination of positions [default: as clicks of the log say].
        level: Confidence of intervals.
        jobs: Processes that share a log of more than 50,000 decisions.
        engine: local processes, or a cluster: dask.
        scheduler: A running Dask cluster, e.g. tcp://127.0.0.1:8786.
        plot: Write the answer as a figure, too.

        `rlrec help visits` shows them at work, and a policy that learns them."""

    experiment: ExperimentCommands

    def outcomes(self, *, by: str | None = None, rewards: Sequence[str] | str | None = None, against: str | None = None, adjust: bool = False, experiment: str | None = None, log: str | None = None, users: Literal['new', 'returning', 'named'] | None = None, entered_since: str | datetime | None = None, age: str | timedelta | None = None, level: float = 0.95, plot: str | PathLike[str] | None = None) -> Result:
        """Show visits, returns and rewards per user, and compare groups.

        A unit is a user, or a session without a user; an experiment defines its own. Variants are compared as in
        `experiment show`: valid at every look, with a p-value for the decision metric. Other intervals are valid one by
        one.

        If a variant causes more visits, its means per visit are about other visits: decide by the metrics per unit.

        by: Groups to compare with the first one: variant, policy, version, hour, day, week or users (new, returning); a context field: segments of an experiment [default: variant, with --experiment].
        rewards: Reward definition; repeatable [default: what the variants learn, or all policies, or `default`].
        against: Variant to compare with [default: first].
        adjust: Reduce variance by the units' past (CUPED).
        experiment: Only the decisions of this experiment, by its unit.
        log: Filter of the log, as in `evaluate` [default: all].
        users: new: units without earlier visits; returning: with some; named: no sessions without a user.
        entered_since: Only units that were assigned, or first served, from then on.
        age: Only the first days of each unit, such as 14d.
        level: Confidence of intervals.
        plot: Write the answer as a figure, too.

        `rlrec help outcomes` explains metrics, groups and reasons."""

    def import_log(self, *files: str | PathLike[str], layout: str, map: Mapping[str, Any] | str | PathLike[str] | None = None, arm_id: str | None = None, actions: int | None = None, reward_from: str | None = None, policy: str | None = None, propensity: Literal['uniform', 'fitted'] | None = None, check: bool = False, dry_run: bool = False, follow: bool = False, poll: str | timedelta | None = None, on_error: Literal['fail', 'quarantine'] = 'fail', rejects: str | PathLike[str] | None = None) -> Result:
        """Import logs of other systems, to evaluate and to learn from.

        Unknown arms are added. A line that was imported before is a duplicate, so an overlapping file adds only new
        lines. Imported decisions are mature at once, and do not change beliefs by themselves. All lines are checked before
        the first one is stored. Times without a zone are read as UTC.

        layout: csv or parquet: any table, with --map. dsjson: Vowpal Wabbit and Azure Personalizer. jsonl: as export-log writes it. obd: Open Bandit Dataset. vw: text of Vowpal Wabbit.
        map: JSON that names columns.
        arm_id: dsjson: field of an action that names its arm, such as i.id.
        actions: vw: a log of --cb, with so many actions.
        reward_from: dsjson: the key of the reward [default: minus _label_cost].
        policy: The owner of the log: new, or of kind logged.
        propensity: Propensities for decisions without: uniform, or fitted to what was shown.
        check: Read and count, and store nothing.
        dry_run: Say what would be stored, and store nothing.
        follow: Go on with lines that are added: see `rlrec help import-log`.
        poll: How often to look for new lines.  [default: 1s]
        on_error: fail: a bad line stops all, nothing is stored. quarantine: bad lines go to --rejects.
        rejects: Where bad lines go.

        `rlrec help import-log` explains layouts, maps and states."""

    def export_log(self, path: str | PathLike[str], *, layout: str = 'jsonl', log: str | None = None, reward: str | None = None) -> Result:
        """Write the log, one decision a line.

        In order of decision, to a file (gzip if it ends in .gz) or to stdout. import-log reads every layout except
        parquet. jsonl is complete; a line on stderr counts what csv and dsjson cannot hold.

        csv: one row per slot, with a header that import-log reads without --map. Columns of the decision come first, then
        those of the slot, last its reward and events; eligible and events are lists in JSON, context and state are objects
        in JSON, and events of the page stand in its first row. It lacks lists of candidates, and features, sets or
        probabilities of arms that came with a decision. A spreadsheet runs cells that begin with =, +, - or @ as formulas:
        import the file there with all columns as text (`rlrec help formats`).

        dsjson: cb for pages of one slot, ccb for longer ones. An action has its arm in `_tag` (--arm-id _tag, where arms
        have a feature `id`) and the features of the arm; session and user stand beside. Rewards are those of the policy's
        definition, or of --reward, from events inside its window, as `evaluate` counts them. It lacks marginals, times of
        events, states, policies, and decisions that are censored or have no propensity. vw: text of --cb_adf for pages of
        one slot; a cost is a negative reward, an arm is the tag of its line. It lacks sessions, users and times.

        parquet: a folder with decisions, events and visits; run again, the command appends new ones. It may be a URL that
        fsspec knows (s3://bucket/log). `rlrec help machines` has its columns; evaluate and exposure read it by `--log
        parquet:DIR`.

        --format is for the summary; stdout has only the log.

        layout: jsonl: one JSON object a decision. csv: a table, a row a slot. dsjson, vw: for Vowpal Wabbit. parquet: PATH is a folder, to which what is new is appended (pip install 'rlrec[parquet]').
        log: Which decisions, e.g. policy=home,since=2026-01-01. Default: all.
        reward: Reward definition [default: that of each policy]; not of parquet."""

    log: LogCommands

    def simulate(self, environment: str, *, parameters: Mapping[str, Any] | None = None, policy: str | None = None, experiment: str | None = None, sessions: int | None = None, steps: int | None = None, k: int = 1, ephemeral: bool = False, runs: int = 1, kind: str | None = None, params: Mapping[str, Any] | None = None, group: int = 1, seed: int | None = None, dry_run: bool = False) -> Result:
        """Serve a simulated audience whose best arm or policy is known.

        ENV, one arm a decision: bernoulli, drift, delayed, contextual. Pages: pbm, cascade, page. Visitors with memory:
        barista, choc-kale, corridor, and shop and news, which have pages, too. Through the store, the clock starts at its
        newest decision, and an empty catalogue gets the audience's arms. The regret is the expected reward of the best
        pages (with memory: of the optimum) minus that of the pages shown.

        parameters: Parameter of ENV; repeatable.
        policy: Policy or route to draw from.
        experiment: Experiment to draw for, in place of a policy.
        sessions: How many sessions [with --ephemeral: 1].
        steps: Decisions of a session [default: 1].
        k: Slots of a page.
        ephemeral: Study in memory; the store does not change.
        runs: Number of runs.
        kind: Kind of policy to study, in place of --policy.
        params: A parameter of that kind; repeatable.
        group: Sessions at a time, from one belief.
        seed: Seed of all draws [default: random].
        dry_run: Say what would be stored, and store nothing.

        `rlrec help simulate` explains every audience, its parameters and figures."""

    def exposure(self, *, policy: str | None = None, log: str | None = None, by: Literal['day'] | None = None, reward: str | None = None, position: str | None = None, jobs: int = 1, engine: Literal['local', 'dask'] = 'local', scheduler: str | None = None, plot: str | PathLike[str] | None = None) -> Result:
        """Show each arm's share of the log, and how even the shares are.

        Expected exposure sums an arm's probabilities at each position of each decision, so it does not depend on the
        draws. Realised exposure counts the slots that showed the arm. An arm counts in the figures of the catalogue if it
        was eligible in any decision. The rate is the mean reward of its mature slots, each weighted by the examination of
        its position if there is a curve (`rlrec position fit`).

        Figures of the catalogue (with expected_ in front: of expected exposure):
          coverage         share of the arms that had a slot
          gini             0: all arms had the same; near 1: one had it all
          entropy          in nats; effective_arms is its exponential
          floor_share      share of slots that a uniform pick fills, expected
          popularity_lift  mean summed reward of the arms shown, over that of the
                           catalogue: above 1, popular arms are shown more
          young_share      share of slots with an arm added less than 7 days before
          variety          mean distance (1 - cosine) of two arms of a slate, by the
                           features of the catalogue

        With --json, underived counts decisions without known probabilities of arms, for which expected exposure is null;
        underived_reason says why (null if there are none).

        policy: Only decisions of this policy.
        log: Filter of the log, or parquet:DIR, as in `evaluate` [default: all].
        by: The figures of the catalogue for each day, too.
        reward: Reward of the rates [default: what the policy, or all, learn].
        position: Curve that counts pulls of the rates [default: the policy's].
        jobs: Processes that share a log of more than 50,000 decisions.
        engine: local processes, or a cluster: dask.
        scheduler: A running Dask cluster, e.g. tcp://127.0.0.1:8786.
        plot: Write the answer as a figure, too."""

    def exploration(self, *, policy: str | None = None, log: str | None = None, reward: str | None = None, level: float = 0.95, seed: int = 0) -> Result:
        """Show what exploration costs, and what it earns.

        The policy is compared with itself without exploration (floor, epsilon, temperature 0) on the same mature rows,
        each with the belief that served it. cost is the reward per slot that exploration costs: the self-normalised
        estimate without exploration, minus the mean as served. It does not say what the beliefs would have learned without
        exploration. It has bounds once 5 rewards can be expected from the slots that exploration added (few-rewards). For a
        policy that draws at random without a belief, there is nothing to compare with (no-belief).

        What it earned:
          risen          arms that were shown mostly by exploration in some twentieth
                         of the time, and have more than an equal share in the last
          ess            effective sample size, in rows, for judging `uniform` and the
                         other policies by this log
          without_floor  the same for a log of as many rows without exploration

        With --json, left_out counts mature slots without a probability by position; left_out_reason says why (null if there
        are none).

        policy: The policy [default: the only one that has served].
        log: Filter of its log, as in `evaluate` [default: all].
        reward: Reward definition [default: the policy's].
        level: Confidence of intervals.
        seed: Seed of the bootstrap."""

    def report(self, file: str | PathLike[str], *, policy: str | None = None, log: str | None = None, reward: str | None = None, since: str | datetime | None = None, title: str | None = None, estimates: bool = True) -> Result:
        """Write an HTML page about the store, with figures, to share.

        The page is one HTML file without scripts or external files: experiments, what policies would earn, the reward
        and returning visitors over time, beliefs, exposure, position curves, learning curves, and the quick checks of
        `doctor`. Every figure has a table of its data; a figure that cannot be drawn yet says why.

        Estimates and exposure are from the newest 100,000 decisions. The page is written under another name first, and then
        renamed.

        policy: Only this policy with its variants, or POLICY@EXPERIMENT/VARIANT.
        log: Filter of the log, as in `evaluate` [default: all].
        reward: Reward definition of all comparisons [default: what policies learn].
        since: Only decisions from this time on.
        title: Heading of the page [default: What the recommender does].
        estimates: Whether to estimate what policies would earn."""

    def doctor(self, *, sample: int | None = None, seed: int = 0, repair_clock: bool = False, dry_run: bool = False) -> Result:
        """Audit the store: beliefs, propensities, draws, references, time.

        It changes nothing, but stores its time and findings for `rlrec status`. An error is exit 3, a warning is not.
        csv and ndjson have one line per finding.

        A decision logged far in the future (by --now, RLREC_NOW, or a wrong clock of the host) stops the clock: no later
        decision can lie before it, and nothing matures. --repair-clock moves all decisions that lie in the future, with
        their events and visits, back by the same time, so that the newest is at now. It says how many it moved, by how many
        seconds, and how many times of other rows (versions, sessions, runs) it moved; it audits nothing else. Future events
        of past decisions are not moved. This is the only command that changes logged times. Stop all writers first.

        sample: Rederive only N random decisions (without it: all, at most 10,000). In a log of more than 20,000 decisions, these are runs of 10 neighbours, which mostly share a belief; only their sessions and the newest rows are audited, and the output says how rare a fault can be and remain unseen.
        seed: Seed of the sample.
        repair_clock: Move what lies ahead of the database's clock back to now.
        dry_run: Say what would be stored, and store nothing."""

    db: DbCommands
