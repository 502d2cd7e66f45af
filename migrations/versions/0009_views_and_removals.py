"""Views of decisions, slots and versions for people who write SQL; and a record of rows that were deleted.

A later migration that changes a table drops the views first: SQLite refuses to rename a table under them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
REAL = sa.Double().with_variant(sa.REAL(), "sqlite")
BYTES = sa.LargeBinary().with_variant(sa.BLOB(), "sqlite")
SUMS = ("pulls", "reward_sum", "reward_squares")

# By database: a time as text; the terms of a reward, by kind; the weight, logarithm and cap of a term; both ends of a
# range.
SQLITE = {
    "time": "strftime('%Y-%m-%dT%H:%M:%S.', {0} / 1000000, 'unixepoch') || printf('%06dZ', {0} % 1000000)",
    "terms": "json_each(r.weights)",
    "weight": "CASE t.type WHEN 'object' THEN json_extract(t.value, '$.weight') ELSE t.value END",
    "log1p": "t.type = 'object' AND coalesce(json_extract(t.value, '$.log1p'), 0)",
    "cap": "CASE t.type WHEN 'object' THEN json_extract(t.value, '$.cap') END",
    "least": "min",
    "greatest": "max",
}
POSTGRES = {
    "time": "to_char(timestamp 'epoch' + {0} * interval '1 microsecond', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    "terms": "jsonb_each(r.weights::jsonb)",
    "weight": "CASE jsonb_typeof(t.value) WHEN 'object' THEN t.value ->> 'weight' ELSE t.value #>> '{}' END::float8",
    "log1p": "jsonb_typeof(t.value) = 'object' AND coalesce(t.value ->> 'log1p', 'false')::boolean",
    "cap": "CASE jsonb_typeof(t.value) WHEN 'object' THEN t.value ->> 'cap' END::float8",
    "least": "least",
    "greatest": "greatest",
}

V_DECISION = """
CREATE VIEW v_decision AS
SELECT d.id AS decision_id, {d_at} AS at, p.name AS policy, n.number AS version, e.name AS experiment,
    a.label AS variant, o.name AS route, s.key AS session_key, u.key AS user_key, d.visit, d.step, c.body AS context,
    d.state, d.size, l.size AS eligible, d.log_propensity, d.request_key AS request_id, d.imported
FROM decision d JOIN policy p ON p.id = d.policy_id JOIN version n ON n.id = d.version_id
    JOIN session s ON s.id = d.session_id JOIN context c ON c.id = d.context_id
    JOIN eligible_set l ON l.id = d.eligible_id LEFT JOIN users u ON u.id = s.user_id
    LEFT JOIN variant a ON a.id = d.variant_id LEFT JOIN experiment e ON e.id = a.experiment_id
    LEFT JOIN route_decision q ON q.decision_id = d.id LEFT JOIN route o ON o.id = q.route_id
"""

# The reward of a slot: the values of a kind add up, are cut and compressed, and weighed; the sum is clipped. Events
# after the window do not count, as in estimates.
V_SLOT = """
CREATE VIEW v_slot AS
SELECT d.id AS decision_id, i.position, {d_at} AS at, p.name AS policy, n.number AS version, s.key AS session_key,
    u.key AS user_key, m.key AS arm, i.propensity, i.marginal, i.score, i.censored, r.name AS reward_name,
    coalesce((
        SELECT CASE WHEN count(*) > 0 THEN
            {least}({greatest}(sum(weighed.term), coalesce(r.clip_low, -1e100)), coalesce(r.clip_high, 1e100)) END
        FROM (
            SELECT of_kind.weight * CASE
                WHEN NOT of_kind.compressed THEN of_kind.total
                WHEN of_kind.total < 0 THEN -ln(1 - of_kind.total) ELSE ln(1 + of_kind.total) END AS term
            FROM (
                SELECT {weight} AS weight, {log1p} AS compressed,
                    CASE WHEN {cap} < sum(v.value) THEN {cap} ELSE sum(v.value) END AS total
                FROM event v JOIN {terms} t ON t.key = v.kind
                WHERE v.decision_id = i.decision_id AND v.position = i.position AND v.at <= d.at + r.window_us
                GROUP BY t.key, t.value{type}
            ) AS of_kind
        ) AS weighed
    ), r.default_value) AS reward,
    CASE d.imported WHEN 1 THEN {d_at} ELSE {matures} END AS mature_at
FROM slot i JOIN decision d ON d.id = i.decision_id JOIN policy p ON p.id = d.policy_id
    JOIN version n ON n.id = d.version_id JOIN reward r ON r.id = n.reward_id JOIN session s ON s.id = d.session_id
    JOIN arm m ON m.id = i.arm_id LEFT JOIN users u ON u.id = s.user_id
"""

V_VERSION = """
CREATE VIEW v_version AS
SELECT p.name AS policy, p.kind, n.number AS version, n.status, CASE WHEN h.live_id = n.id THEN 1 ELSE 0 END AS live,
    r.name AS reward_name, q.name || '@' || b.number AS parent, {n_created_at} AS created_at, n.learned_from
FROM version n JOIN policy p ON p.id = n.policy_id JOIN reward r ON r.id = n.reward_id
    LEFT JOIN policy_head h ON h.policy_id = n.policy_id
    LEFT JOIN version b ON b.id = n.parent_id LEFT JOIN policy q ON q.id = b.policy_id
"""


def upgrade() -> None:
    # how many commands deleted decisions, and the largest id of these: no new decision gets an id up to it
    op.add_column("settings", sa.Column("removals", BIG, nullable=True))
    op.add_column("settings", sa.Column("removed_to", BIG, nullable=True))
    op.add_column("policy_head", sa.Column("pruned_to", BIG, nullable=True))
    op.create_table(
        "pruned_sums",
        *(sa.Column(name, BIG, autoincrement=False, nullable=False) for name in ("version_id", "bucket", "arm_id")),
        sa.Column("ordinal", BIG, nullable=False),
        *(sa.Column(name, REAL, nullable=False) for name in SUMS),
        sa.Column("extra", BYTES, nullable=True),
        *(
            sa.CheckConstraint(f"{name} BETWEEN -1e308 AND 1e308", name=op.f(f"ck_pruned_sums_{name}_finite"))
            for name in SUMS
        ),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_pruned_sums_version_id"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_pruned_sums_arm_id"),
        sa.PrimaryKeyConstraint("version_id", "bucket", "arm_id", name="pk_pruned_sums"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    sqlite = op.get_bind().dialect.name == "sqlite"
    words = SQLITE if sqlite else POSTGRES
    times = {"d_at": "d.at", "n_created_at": "n.created_at", "matures": "(d.at + r.window_us)"}
    words = words | {name: words["time"].format(column) for name, column in times.items()}
    words["type"] = ", t.type" if sqlite else ""
    for view in (V_DECISION, V_SLOT, V_VERSION):
        op.get_bind().exec_driver_sql(view.format(**words))
