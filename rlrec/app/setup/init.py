"""This module creates or upgrades the store under one lock. It is safe to do this again, and in several processes at
once."""

from __future__ import annotations

from rlrec.app.inputs import seeds
from rlrec.errors import Conflict
from rlrec.records import Record, Reward
from rlrec.store import Store, Unit
from rlrec.store.database import schema
from rlrec.store.log import settings
from rlrec.store.policies import policies
from rlrec.store.upkeep import copying

TIMEOUT_US = 30 * 60 * 1_000_000
DEFAULT_REWARD = Reward(
    id=0, name="default", weights={"click": 1.0, "reward": 1.0}, window_us=30 * 60 * 1_000_000, default=0.0,
    clip_low=0.0, clip_high=1.0, learn="served", late="count",
)  # fmt: skip


class Result(Record):
    revision: str
    created: bool
    migrated: bool


def init(store: Store, *, session_timeout_us: int | None = None, dry_run: bool = False) -> Result:
    """Create the store, or bring it to the revision of this program. Raises Conflict if the store has another timeout.
    session_timeout_us: the pause that ends a visit; dry_run: whether to try only, and change nothing."""

    def notice_migration(old_revision: str) -> None:
        command = copying.backup_command(store.address, f"{store.url.database}-{old_revision}")
        change = f"migrating the store {store.address} from revision {old_revision} to {schema.HEAD}"
        store.notice(f"{change}; only a backup leads back: if there is none, interrupt this and run `{command}`")

    old_revision, revision = schema.upgrade(store.url, dry_run=dry_run, waits=store.waits, notify=notice_migration)
    answer = Result(revision=revision, created=old_revision is None, migrated=old_revision not in (None, revision))

    def work(unit: Unit) -> None:
        if not settings.exist(unit):
            timeout = TIMEOUT_US if session_timeout_us is None else session_timeout_us
            settings.create(unit, session_timeout_us=timeout, salt=settings.BY_KEY + seeds.random_salt())
            policies.add_reward(unit, DEFAULT_REWARD)
            settings.add_run(unit, "init", {"revision": revision, "session_timeout_us": timeout})
        else:
            _check_timeout(unit, session_timeout_us)

    if not dry_run:
        store.write(work, repeatable=True)
    elif old_revision == revision:
        with store.read() as unit:
            _check_timeout(unit, session_timeout_us)
    return answer


def _check_timeout(unit: Unit, session_timeout_us: int | None) -> None:
    """Raise Conflict if the store has another session timeout than this one."""
    if session_timeout_us is not None and settings.get(unit).session_timeout_us != session_timeout_us:
        hint = "visits were counted by it: make a new store"
        raise Conflict("the store has another session timeout already", hint=hint)


def check(store: Store) -> Result:
    """Return the state of the store, in the form of the result of `init`, without changes. Raises CheckFailed if the
    store is missing or out of date."""
    with store.read() as unit:
        settings.get(unit)
    return Result(revision=schema.HEAD, created=False, migrated=False)  # other revisions are refused
