"""This migration creates the store: arms, policies and their beliefs, sessions, decisions, events, experiments, routes;
and views for people who write SQL.

A later migration that changes a table drops the views first: SQLite refuses to rename a table under them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.INTEGER(), "sqlite")
SMALL = sa.SmallInteger().with_variant(sa.INTEGER(), "sqlite")
REAL = sa.Double().with_variant(sa.REAL(), "sqlite")
BYTES = sa.LargeBinary().with_variant(sa.BLOB(), "sqlite")
TEXT = sa.Text()

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
    op.create_table(
        "arm",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("features", TEXT, nullable=False),
        sa.Column("added_at", BIG, nullable=False),
        sa.Column("retired_at", BIG, nullable=True),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 200", name="ck_arm_key_length"),
        sa.PrimaryKeyConstraint("id", name="pk_arm"),
        sa.UniqueConstraint("key", name="uq_arm_key"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "context",
        sa.Column("id", BIG, nullable=False),
        sa.Column("digest", BYTES, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_context"),
        sa.UniqueConstraint("digest", name="uq_context_digest"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "eligible_set",
        sa.Column("id", BIG, nullable=False),
        sa.Column("digest", BYTES, nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("arms", TEXT, nullable=False),
        sa.CheckConstraint("size > 0", name="ck_eligible_set_size_positive"),
        sa.PrimaryKeyConstraint("id", name="pk_eligible_set"),
        sa.UniqueConstraint("digest", name="uq_eligible_set_digest"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "experiment",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("unit", TEXT, nullable=False),
        sa.Column("salt", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("definition", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("stopped_at", BIG, nullable=True),
        sa.CheckConstraint("status IN ('running', 'stopped')", name="ck_experiment_status_known"),
        sa.CheckConstraint("unit IN ('user', 'session')", name="ck_experiment_unit_known"),
        sa.PrimaryKeyConstraint("id", name="pk_experiment"),
        sa.UniqueConstraint("name", name="uq_experiment_name"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "policy",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("params", TEXT, nullable=False),
        sa.Column("definition", TEXT, nullable=False),
        sa.Column("base_id", BIG, autoincrement=False, nullable=True),
        sa.Column("created_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["policy.id"], name="fk_policy_base_id"),
        sa.PrimaryKeyConstraint("id", name="pk_policy"),
        sa.UniqueConstraint("name", name="uq_policy_name"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "reward",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("weights", TEXT, nullable=False),
        sa.Column("learn", TEXT, nullable=False),
        sa.Column("late", TEXT, nullable=False),
        sa.Column("window_us", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("default_value", REAL, nullable=False),
        sa.Column("clip_low", REAL, nullable=True),
        sa.Column("clip_high", REAL, nullable=True),
        sa.CheckConstraint("late IN ('count', 'ignore')", name="ck_reward_late_known"),
        sa.CheckConstraint("learn IN ('served', 'settled')", name="ck_reward_learn_known"),
        sa.CheckConstraint("clip_high BETWEEN -1e308 AND 1e308", name="ck_reward_clip_high_finite"),
        sa.CheckConstraint("clip_low <= clip_high", name="ck_reward_clip_order"),
        sa.CheckConstraint("clip_low BETWEEN -1e308 AND 1e308", name="ck_reward_clip_low_finite"),
        sa.CheckConstraint("default_value BETWEEN -1e308 AND 1e308", name="ck_reward_default_value_finite"),
        sa.CheckConstraint("window_us >= 0", name="ck_reward_window_positive"),
        sa.PrimaryKeyConstraint("id", name="pk_reward"),
        sa.UniqueConstraint("name", name="uq_reward_name"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "route",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_route"),
        sa.UniqueConstraint("name", name="uq_route_name"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "run",
        sa.Column("id", BIG, nullable=False),
        sa.Column("command", TEXT, nullable=False),
        sa.Column("options", TEXT, nullable=False),
        sa.Column("result", TEXT, nullable=True),
        sa.Column("at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "users",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("digest", BIG, nullable=True),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 200", name="ck_users_key_length"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("key", name="uq_users_key"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "arm_history",
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("revision", BIG, autoincrement=False, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("features", TEXT, nullable=False),
        sa.Column("retired", SMALL, nullable=False),
        sa.CheckConstraint("retired IN (0, 1)", name="ck_arm_history_retired_flag"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_arm_history_arm_id"),
        sa.PrimaryKeyConstraint("arm_id", "revision", name="pk_arm_history"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "lease",
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("token", TEXT, nullable=False),
        sa.Column("taken_at", BIG, nullable=False),
        sa.Column("expires_at", BIG, nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_lease_policy_id"),
        sa.PrimaryKeyConstraint("policy_id", name="pk_lease"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "position_curve",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("options", TEXT, nullable=False),
        sa.Column("positions", TEXT, nullable=False),
        sa.Column("report", TEXT, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("reward_id", BIG, autoincrement=False, nullable=False),
        sa.CheckConstraint("model IN ('pbm', 'cascade', 'dcm')", name="ck_position_curve_model_known"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 200", name="ck_position_curve_name_length"),
        sa.CheckConstraint("number > 0", name="ck_position_curve_number_positive"),
        sa.ForeignKeyConstraint(["reward_id"], ["reward.id"], name="fk_position_curve_reward_id"),
        sa.PrimaryKeyConstraint("id", name="pk_position_curve"),
        sa.UniqueConstraint("name", "number", name="uq_position_curve_name_number"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "session",
        sa.Column("id", BIG, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("user_id", BIG, autoincrement=False, nullable=True),
        sa.Column("split", SMALL, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("digest", BIG, nullable=True),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 200", name="ck_session_key_length"),
        sa.CheckConstraint("split IN (0, 1, 2)", name="ck_session_split_known"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_session_user_id"),
        sa.PrimaryKeyConstraint("id", name="pk_session"),
        sa.UniqueConstraint("key", name="uq_session_key"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "settings",
        sa.Column("id", SMALL, autoincrement=False, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("session_timeout_us", BIG, nullable=False),
        sa.Column("catalogue_revision", BIG, nullable=False),
        sa.Column("removals", BIG, nullable=True),
        sa.Column("removed_to", BIG, nullable=True),
        sa.Column("salt", TEXT, nullable=False),
        sa.Column("catalogue_id", BIG, autoincrement=False, nullable=True),
        sa.CheckConstraint("id = 1", name="ck_settings_one_row"),
        sa.CheckConstraint("session_timeout_us > 0", name="ck_settings_session_timeout_positive"),
        sa.ForeignKeyConstraint(["catalogue_id"], ["eligible_set.id"], name="fk_settings_catalogue_id"),
        sa.PrimaryKeyConstraint("id", name="pk_settings"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "variant",
        sa.Column("id", BIG, nullable=False),
        sa.Column("experiment_id", BIG, autoincrement=False, nullable=False),
        sa.Column("label", TEXT, nullable=False),
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("weight", REAL, nullable=False),
        sa.CheckConstraint("weight > 0 AND weight <= 1e308", name="ck_variant_weight_positive"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiment.id"], name="fk_variant_experiment_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_variant_policy_id"),
        sa.PrimaryKeyConstraint("id", name="pk_variant"),
        sa.UniqueConstraint("experiment_id", "label", name="uq_variant_experiment_id_label"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "version",
        sa.Column("id", BIG, nullable=False),
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("ordinal", BIG, nullable=False),
        sa.Column("entered_to", BIG, nullable=True),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("learned_from", TEXT, nullable=False),
        sa.Column("parameters", TEXT, nullable=True),
        sa.Column("report", TEXT, nullable=True),
        sa.Column("reward_id", BIG, autoincrement=False, nullable=False),
        sa.Column("parent_id", BIG, autoincrement=False, nullable=True),
        sa.CheckConstraint("status IN ('learning', 'frozen', 'retired')", name="ck_version_status_known"),
        sa.CheckConstraint("number > 0", name="ck_version_number_positive"),
        sa.ForeignKeyConstraint(["parent_id"], ["version.id"], name="fk_version_parent_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_version_policy_id"),
        sa.ForeignKeyConstraint(["reward_id"], ["reward.id"], name="fk_version_reward_id"),
        sa.PrimaryKeyConstraint("id", name="pk_version"),
        sa.UniqueConstraint("policy_id", "number", name="uq_version_policy_id_number"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "arm_weights",
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("weights", BYTES, nullable=False),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_arm_weights_arm_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_arm_weights_version_id"),
        sa.PrimaryKeyConstraint("version_id", "arm_id", name="pk_arm_weights"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "assignment",
        sa.Column("id", BIG, nullable=False),
        sa.Column("experiment_id", BIG, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG, autoincrement=False, nullable=True),
        sa.Column("session_id", BIG, autoincrement=False, nullable=True),
        sa.Column("variant_id", BIG, autoincrement=False, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.CheckConstraint("(user_id IS NULL) <> (session_id IS NULL)", name="ck_assignment_one_unit"),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiment.id"], name="fk_assignment_experiment_id"),
        sa.ForeignKeyConstraint(["session_id"], ["session.id"], name="fk_assignment_session_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_assignment_user_id"),
        sa.ForeignKeyConstraint(["variant_id"], ["variant.id"], name="fk_assignment_variant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_assignment"),
        sa.UniqueConstraint("experiment_id", "session_id", name="uq_assignment_experiment_id_session_id"),
        sa.UniqueConstraint("experiment_id", "user_id", name="uq_assignment_experiment_id_user_id"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "belief",
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("bucket", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("ordinal", BIG, nullable=False),
        sa.Column("pulls", REAL, nullable=False),
        sa.Column("reward_sum", REAL, nullable=False),
        sa.Column("reward_squares", REAL, nullable=False),
        sa.Column("extra", BYTES, nullable=True),
        sa.CheckConstraint("pulls BETWEEN -1e308 AND 1e308", name="ck_belief_pulls_finite"),
        sa.CheckConstraint("reward_squares BETWEEN -1e308 AND 1e308", name="ck_belief_reward_squares_finite"),
        sa.CheckConstraint("reward_sum BETWEEN -1e308 AND 1e308", name="ck_belief_reward_sum_finite"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_belief_arm_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_belief_version_id"),
        sa.PrimaryKeyConstraint("version_id", "bucket", "arm_id", name="pk_belief"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "belief_delta",
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("bucket", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("seq", BIG, autoincrement=False, nullable=False),
        sa.Column("d_pulls", REAL, nullable=False),
        sa.Column("d_reward_sum", REAL, nullable=False),
        sa.Column("d_reward_squares", REAL, nullable=False),
        sa.Column("ordinal", BIG, nullable=False),
        sa.Column("pulls", REAL, nullable=False),
        sa.Column("reward_sum", REAL, nullable=False),
        sa.Column("reward_squares", REAL, nullable=False),
        sa.Column("extra", BYTES, nullable=True),
        sa.CheckConstraint("pulls BETWEEN -1e308 AND 1e308", name="ck_belief_delta_pulls_finite"),
        sa.CheckConstraint("reward_squares BETWEEN -1e308 AND 1e308", name="ck_belief_delta_reward_squares_finite"),
        sa.CheckConstraint("reward_sum BETWEEN -1e308 AND 1e308", name="ck_belief_delta_reward_sum_finite"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_belief_delta_arm_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_belief_delta_version_id"),
        sa.PrimaryKeyConstraint("version_id", "bucket", "arm_id", "seq", name="pk_belief_delta"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "decision",
        sa.Column("id", BIG, nullable=False),
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("belief_seq", BIG, nullable=False),
        sa.Column("belief_ordinal", BIG, nullable=True),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("ordinal", BIG, nullable=True),
        sa.Column("session_id", BIG, autoincrement=False, nullable=False),
        sa.Column("visit", BIG, nullable=False),
        sa.Column("step", BIG, nullable=False),
        sa.Column("context_id", BIG, autoincrement=False, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("eligible_id", BIG, autoincrement=False, nullable=False),
        sa.Column("catalogue_revision", BIG, nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("log_propensity", REAL, nullable=True),
        sa.Column("seed", BIG, nullable=True),
        sa.Column("variant_id", BIG, autoincrement=False, nullable=True),
        sa.Column("at", BIG, nullable=False),
        sa.Column("imported", SMALL, nullable=False),
        sa.Column("request_key", TEXT, nullable=True),
        sa.Column("request_digest", BYTES, nullable=True),
        sa.Column("run_id", BIG, autoincrement=False, nullable=True),
        sa.Column("source", TEXT, nullable=True),
        sa.Column("history", BYTES, nullable=True),
        sa.Column(
            "keep_probability",
            REAL,
            sa.CheckConstraint(
                "keep_probability > 0 AND keep_probability <= 1", name="ck_decision_keep_probability_probability"
            ),
            nullable=True,
        ),
        sa.Column(
            "estimated",
            SMALL,
            sa.CheckConstraint("estimated IN (0, 1)", name="ck_decision_estimated_flag"),
            nullable=True,
        ),
        sa.CheckConstraint(
            "imported = 1 OR (log_propensity IS NOT NULL AND seed IS NOT NULL)", name="ck_decision_live_complete"
        ),
        sa.CheckConstraint("imported IN (0, 1)", name="ck_decision_imported_flag"),
        sa.CheckConstraint("length(request_key) BETWEEN 1 AND 200", name="ck_decision_request_key_length"),
        sa.CheckConstraint("log_propensity <= 0 AND log_propensity >= -1e308", name="ck_decision_log_propensity_range"),
        sa.CheckConstraint("size > 0", name="ck_decision_size_positive"),
        sa.CheckConstraint("step >= 0", name="ck_decision_step_positive"),
        sa.ForeignKeyConstraint(["context_id"], ["context.id"], name="fk_decision_context_id"),
        sa.ForeignKeyConstraint(["eligible_id"], ["eligible_set.id"], name="fk_decision_eligible_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_decision_policy_id"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_decision_run_id"),
        sa.ForeignKeyConstraint(["session_id"], ["session.id"], name="fk_decision_session_id"),
        sa.ForeignKeyConstraint(["variant_id"], ["variant.id"], name="fk_decision_variant_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_decision_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_decision"),
        sa.UniqueConstraint("session_id", "visit", "step", name="uq_decision_session_id_visit_step"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index(
        "ix_decision_at",
        "decision",
        ["at"],
        unique=False,
        sqlite_where=sa.text("imported = 0"),
        postgresql_where=sa.text("imported = 0"),
    )
    op.create_index("ix_decision_policy_id_id", "decision", ["policy_id", "id"], unique=False)
    op.create_index(
        "uq_decision_request_key",
        "decision",
        ["request_key"],
        unique=True,
        sqlite_where=sa.text("request_key IS NOT NULL"),
        postgresql_where=sa.text("request_key IS NOT NULL"),
    )
    op.create_table(
        "gate_look",
        sa.Column("id", BIG, nullable=False),
        sa.Column("route_id", BIG, autoincrement=False, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("report", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_gate_look_policy_id"),
        sa.ForeignKeyConstraint(["route_id"], ["route.id"], name="fk_gate_look_route_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_gate_look_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_gate_look"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index("ix_gate_look_route_id_at", "gate_look", ["route_id", "at"], unique=False)
    op.create_table(
        "policy_head",
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("ordinal", BIG, nullable=False),
        sa.Column("pruned_to", BIG, nullable=True),
        sa.Column("live_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["live_id"], ["version.id"], name="fk_policy_head_live_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_policy_head_policy_id"),
        sa.PrimaryKeyConstraint("policy_id", name="pk_policy_head"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "prior",
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("alpha", REAL, nullable=False),
        sa.Column("beta", REAL, nullable=False),
        sa.CheckConstraint("alpha > 0 AND alpha <= 1e308", name="ck_prior_alpha_positive"),
        sa.CheckConstraint("beta > 0 AND beta <= 1e308", name="ck_prior_beta_positive"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_prior_arm_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_prior_version_id"),
        sa.PrimaryKeyConstraint("version_id", "arm_id", name="pk_prior"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "promotion",
        sa.Column("id", BIG, nullable=False),
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("previous_id", BIG, autoincrement=False, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("rolled_back_at", BIG, nullable=True),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_promotion_policy_id"),
        sa.ForeignKeyConstraint(["previous_id"], ["version.id"], name="fk_promotion_previous_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_promotion_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_promotion"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index("ix_promotion_policy_id_id", "promotion", ["policy_id", "id"], unique=False)
    op.create_table(
        "pruned_sums",
        sa.Column("version_id", BIG, autoincrement=False, nullable=False),
        sa.Column("bucket", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("ordinal", BIG, nullable=False),
        sa.Column("pulls", REAL, nullable=False),
        sa.Column("reward_sum", REAL, nullable=False),
        sa.Column("reward_squares", REAL, nullable=False),
        sa.Column("extra", BYTES, nullable=True),
        sa.CheckConstraint("pulls BETWEEN -1e308 AND 1e308", name="ck_pruned_sums_pulls_finite"),
        sa.CheckConstraint("reward_squares BETWEEN -1e308 AND 1e308", name="ck_pruned_sums_reward_squares_finite"),
        sa.CheckConstraint("reward_sum BETWEEN -1e308 AND 1e308", name="ck_pruned_sums_reward_sum_finite"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_pruned_sums_arm_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_pruned_sums_version_id"),
        sa.PrimaryKeyConstraint("version_id", "bucket", "arm_id", name="pk_pruned_sums"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "shadow",
        sa.Column("id", BIG, nullable=False),
        sa.Column("route_id", BIG, autoincrement=False, nullable=False),
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("version_id", BIG, autoincrement=False, nullable=True),
        sa.Column("started_at", BIG, nullable=False),
        sa.Column("stopped_at", BIG, nullable=True),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_shadow_policy_id"),
        sa.ForeignKeyConstraint(["route_id"], ["route.id"], name="fk_shadow_route_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_shadow_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_shadow"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index("ix_shadow_route_id_id", "shadow", ["route_id", "id"], unique=False)
    op.create_table(
        "visit",
        sa.Column("session_id", BIG, autoincrement=False, nullable=False),
        sa.Column("number", BIG, autoincrement=False, nullable=False),
        sa.Column("started_at", BIG, nullable=False),
        sa.Column("last_at", BIG, nullable=False),
        sa.Column("steps", BIG, nullable=False),
        sa.Column("recent", TEXT, nullable=False),
        sa.Column("ended_at", BIG, nullable=True),
        sa.Column("history", BYTES, nullable=True),
        sa.CheckConstraint("number > 0", name="ck_visit_number_positive"),
        sa.CheckConstraint("steps >= 0", name="ck_visit_steps_positive"),
        sa.ForeignKeyConstraint(["session_id"], ["session.id"], name="fk_visit_session_id"),
        sa.PrimaryKeyConstraint("session_id", "number", name="pk_visit"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "candidate_list",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("catalogue_id", BIG, autoincrement=False, nullable=True),
        sa.Column("arms", TEXT, nullable=False),
        sa.Column("propensities", TEXT, nullable=False),
        sa.Column("log_propensity", REAL, nullable=False),
        sa.CheckConstraint(
            "log_propensity <= 0 AND log_propensity >= -1e308", name="ck_candidate_list_log_propensity_range"
        ),
        sa.ForeignKeyConstraint(["catalogue_id"], ["eligible_set.id"], name="fk_candidate_list_catalogue_id"),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_candidate_list_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", name="pk_candidate_list"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "decision_features",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("context_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["context_id"], ["context.id"], name="fk_decision_features_context_id"),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_decision_features_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", name="pk_decision_features"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "feedback_key",
        sa.Column("key", TEXT, nullable=False),
        sa.Column("digest", BYTES, nullable=False),
        sa.Column("at", BIG, nullable=True),
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 200", name="ck_feedback_key_key_length"),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_feedback_key_decision_id"),
        sa.PrimaryKeyConstraint("key", name="pk_feedback_key"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "import_line",
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("digest", BYTES, nullable=False),
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_import_line_decision_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_import_line_policy_id"),
        sa.PrimaryKeyConstraint("policy_id", "digest", name="pk_import_line"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "last_decision",
        sa.Column("user_id", BIG, autoincrement=False, nullable=False),
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_last_decision_decision_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_last_decision_user_id"),
        sa.PrimaryKeyConstraint("user_id", name="pk_last_decision"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "logged_support",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("probabilities", BYTES, nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_logged_support_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", name="pk_logged_support"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "route_change",
        sa.Column("id", BIG, nullable=False),
        sa.Column("route_id", BIG, autoincrement=False, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("policy_id", BIG, autoincrement=False, nullable=False),
        sa.Column("version_id", BIG, autoincrement=False, nullable=True),
        sa.Column("experiment_id", BIG, autoincrement=False, nullable=True),
        sa.Column("command", TEXT, nullable=False),
        sa.Column("look_id", BIG, autoincrement=False, nullable=True),
        sa.Column("restored_id", BIG, autoincrement=False, nullable=True),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiment.id"], name="fk_route_change_experiment_id"),
        sa.ForeignKeyConstraint(["look_id"], ["gate_look.id"], name="fk_route_change_look_id"),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name="fk_route_change_policy_id"),
        sa.ForeignKeyConstraint(["restored_id"], ["route_change.id"], name="fk_route_change_restored_id"),
        sa.ForeignKeyConstraint(["route_id"], ["route.id"], name="fk_route_change_route_id"),
        sa.ForeignKeyConstraint(["version_id"], ["version.id"], name="fk_route_change_version_id"),
        sa.PrimaryKeyConstraint("id", name="pk_route_change"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_index("ix_route_change_route_id_id", "route_change", ["route_id", "id"], unique=False)
    op.create_table(
        "route_decision",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("route_id", BIG, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_route_decision_decision_id"),
        sa.ForeignKeyConstraint(["route_id"], ["route.id"], name="fk_route_decision_route_id"),
        sa.PrimaryKeyConstraint("decision_id", name="pk_route_decision"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "shadow_decision",
        sa.Column("shadow_id", BIG, autoincrement=False, nullable=False),
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("log_probability", REAL, nullable=True),
        sa.CheckConstraint(
            "log_probability <= 0 AND log_probability >= -1e308", name="ck_shadow_decision_log_probability_range"
        ),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_shadow_decision_decision_id"),
        sa.ForeignKeyConstraint(["shadow_id"], ["shadow.id"], name="fk_shadow_decision_shadow_id"),
        sa.PrimaryKeyConstraint("shadow_id", "decision_id", name="pk_shadow_decision"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "slot",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("position", BIG, autoincrement=False, nullable=False),
        sa.Column("arm_id", BIG, autoincrement=False, nullable=False),
        sa.Column("propensity", REAL, nullable=True),
        sa.Column("marginal", REAL, nullable=True),
        sa.Column("min_propensity", REAL, nullable=True),
        sa.Column("score", REAL, nullable=True),
        sa.Column("censored", SMALL, nullable=False),
        sa.Column("rounded", SMALL, nullable=False),
        sa.CheckConstraint("censored IN (0, 1)", name="ck_slot_censored_flag"),
        sa.CheckConstraint("marginal > 0 AND marginal <= 1", name="ck_slot_marginal_probability"),
        sa.CheckConstraint("min_propensity >= 0 AND min_propensity <= 1", name="ck_slot_min_propensity_range"),
        sa.CheckConstraint("position > 0", name="ck_slot_position_positive"),
        sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="ck_slot_propensity_probability"),
        sa.CheckConstraint("rounded IN (0, 1)", name="ck_slot_rounded_flag"),
        sa.CheckConstraint("score BETWEEN -1e308 AND 1e308", name="ck_slot_score_finite"),
        sa.ForeignKeyConstraint(["arm_id"], ["arm.id"], name="fk_slot_arm_id"),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_slot_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", "position", name="pk_slot"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "slot_set",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("arms", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_slot_set_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", name="pk_slot_set"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "team_draft",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("teams", TEXT, nullable=False),
        sa.CheckConstraint("length(teams) > 0", name="ck_team_draft_teams_named"),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_team_draft_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", name="pk_team_draft"),
        sqlite_strict=True,
        sqlite_with_rowid=True,
    )
    op.create_table(
        "event",
        sa.Column("decision_id", BIG, autoincrement=False, nullable=False),
        sa.Column("number", BIG, autoincrement=False, nullable=False),
        sa.Column("position", BIG, nullable=True),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("value", REAL, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("received_at", BIG, nullable=False),
        sa.Column("seq", BIG, nullable=False),
        sa.Column("key", TEXT, nullable=True),
        sa.CheckConstraint("length(kind) BETWEEN 1 AND 64", name="ck_event_kind_length"),
        sa.CheckConstraint("value BETWEEN -1e308 AND 1e308", name="ck_event_value_finite"),
        sa.ForeignKeyConstraint(
            ["decision_id", "position"], ["slot.decision_id", "slot.position"], name="fk_event_decision_id_position"
        ),
        sa.ForeignKeyConstraint(["decision_id"], ["decision.id"], name="fk_event_decision_id"),
        sa.PrimaryKeyConstraint("decision_id", "number", name="pk_event"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    # ### end Alembic commands ###
    sqlite = op.get_bind().dialect.name == "sqlite"
    words = SQLITE if sqlite else POSTGRES
    times = {"d_at": "d.at", "n_created_at": "n.created_at", "matures": "(d.at + r.window_us)"}
    words = words | {name: words["time"].format(column) for name, column in times.items()}
    words["type"] = ", t.type" if sqlite else ""
    for view in (V_DECISION, V_SLOT, V_VERSION):
        op.get_bind().exec_driver_sql(view.format(**words))
