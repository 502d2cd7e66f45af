BEGIN TRANSACTION;
CREATE TABLE arm (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	features TEXT NOT NULL, 
	added_at INTEGER NOT NULL, 
	retired_at INTEGER, eligible_from INTEGER, eligible_until INTEGER, 
	CONSTRAINT pk_arm PRIMARY KEY (id), 
	CONSTRAINT ck_arm_key_length CHECK (length(key) BETWEEN 1 AND 200), 
	CONSTRAINT uq_arm_key UNIQUE ("key")
)
 STRICT

;
INSERT INTO "arm" VALUES(1,'a1','{"topic":"tea"}',1767268800000000,NULL,NULL,NULL);
INSERT INTO "arm" VALUES(2,'a2','{}',1767268800000000,NULL,NULL,4070908800000000);
INSERT INTO "arm" VALUES(3,'a3','{"price":3.5}',1767268800000000,1767276060000000,NULL,NULL);
CREATE TABLE arm_group (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	CONSTRAINT pk_arm_group PRIMARY KEY (id), 
	CONSTRAINT uq_arm_group_name UNIQUE (name)
)
 STRICT

;
INSERT INTO "arm_group" VALUES(1,'home');
CREATE TABLE arm_history (
	arm_id INTEGER NOT NULL, 
	revision INTEGER NOT NULL, 
	at INTEGER NOT NULL, 
	features TEXT NOT NULL, 
	retired INTEGER NOT NULL, eligible_from INTEGER, eligible_until INTEGER, 
	CONSTRAINT pk_arm_history PRIMARY KEY (arm_id, revision), 
	CONSTRAINT ck_arm_history_retired_flag CHECK (retired IN (0, 1)), 
	CONSTRAINT fk_arm_history_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "arm_history" VALUES(1,1,1767268800000000,'{"topic":"tea"}',0,NULL,NULL);
INSERT INTO "arm_history" VALUES(2,1,1767268800000000,'{}',0,NULL,NULL);
INSERT INTO "arm_history" VALUES(2,3,1767276060000000,'{}',0,NULL,4070908800000000);
INSERT INTO "arm_history" VALUES(3,1,1767268800000000,'{"price":3.5}',0,NULL,NULL);
INSERT INTO "arm_history" VALUES(3,2,1767276060000000,'{"price":3.5}',1,NULL,NULL);
CREATE TABLE arm_weights (
	version_id INTEGER NOT NULL, 
	arm_id INTEGER NOT NULL, 
	weights BLOB NOT NULL, 
	CONSTRAINT pk_arm_weights PRIMARY KEY (version_id, arm_id), 
	CONSTRAINT fk_arm_weights_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id), 
	CONSTRAINT fk_arm_weights_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 WITHOUT ROWID,
 STRICT

;
CREATE TABLE assignment (
	id INTEGER NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	user_id INTEGER, 
	session_id INTEGER, 
	variant_id INTEGER NOT NULL, 
	at INTEGER NOT NULL, 
	CONSTRAINT pk_assignment PRIMARY KEY (id), 
	CONSTRAINT ck_assignment_one_unit CHECK ((user_id IS NULL) <> (session_id IS NULL)), 
	CONSTRAINT fk_assignment_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiment (id), 
	CONSTRAINT fk_assignment_session_id FOREIGN KEY(session_id) REFERENCES session (id), 
	CONSTRAINT fk_assignment_user_id FOREIGN KEY(user_id) REFERENCES users (id), 
	CONSTRAINT fk_assignment_variant_id FOREIGN KEY(variant_id) REFERENCES variant (id), 
	CONSTRAINT uq_assignment_experiment_id_session_id UNIQUE (experiment_id, session_id), 
	CONSTRAINT uq_assignment_experiment_id_user_id UNIQUE (experiment_id, user_id)
)
 STRICT

;
INSERT INTO "assignment" VALUES(1,1,2,NULL,2,1767276180000000);
CREATE TABLE belief (
	version_id INTEGER NOT NULL, 
	bucket INTEGER NOT NULL, 
	arm_id INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	pulls REAL NOT NULL, 
	reward_sum REAL NOT NULL, 
	reward_squares REAL NOT NULL, 
	extra BLOB, 
	CONSTRAINT pk_belief PRIMARY KEY (version_id, bucket, arm_id), 
	CONSTRAINT ck_belief_pulls_finite CHECK (pulls BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_belief_reward_squares_finite CHECK (reward_squares BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_belief_reward_sum_finite CHECK (reward_sum BETWEEN -1e308 AND 1e308), 
	CONSTRAINT fk_belief_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id), 
	CONSTRAINT fk_belief_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "belief" VALUES(1,0,1,0,1.0,0.0,0.0,NULL);
INSERT INTO "belief" VALUES(1,0,3,0,1.0,1.0,1.0,NULL);
INSERT INTO "belief" VALUES(2,0,2,0,1.0,0.1,1.00000000000000019e-02,NULL);
INSERT INTO "belief" VALUES(3,0,1,0,1.0,0.0,0.0,NULL);
INSERT INTO "belief" VALUES(3,0,3,0,1.0,1.0,1.0,NULL);
INSERT INTO "belief" VALUES(4,0,2,0,1.0,0.1,1.00000000000000019e-02,NULL);
INSERT INTO "belief" VALUES(5,0,1,0,1.0,0.0,0.0,NULL);
INSERT INTO "belief" VALUES(5,0,3,0,1.0,1.0,1.0,NULL);
INSERT INTO "belief" VALUES(6,0,2,0,1.0,0.1,1.00000000000000019e-02,NULL);
CREATE TABLE belief_delta (
	version_id INTEGER NOT NULL, 
	bucket INTEGER NOT NULL, 
	arm_id INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	d_pulls REAL NOT NULL, 
	d_reward_sum REAL NOT NULL, 
	d_reward_squares REAL NOT NULL, 
	ordinal INTEGER NOT NULL, 
	pulls REAL NOT NULL, 
	reward_sum REAL NOT NULL, 
	reward_squares REAL NOT NULL, 
	extra BLOB, 
	CONSTRAINT pk_belief_delta PRIMARY KEY (version_id, bucket, arm_id, seq), 
	CONSTRAINT ck_belief_delta_pulls_finite CHECK (pulls BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_belief_delta_reward_squares_finite CHECK (reward_squares BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_belief_delta_reward_sum_finite CHECK (reward_sum BETWEEN -1e308 AND 1e308), 
	CONSTRAINT fk_belief_delta_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id), 
	CONSTRAINT fk_belief_delta_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "belief_delta" VALUES(1,0,1,1,1.0,0.0,0.0,0,1.0,0.0,0.0,NULL);
INSERT INTO "belief_delta" VALUES(1,0,3,1,1.0,0.0,0.0,0,1.0,0.0,0.0,NULL);
INSERT INTO "belief_delta" VALUES(1,0,3,2,0.0,1.0,1.0,0,1.0,1.0,1.0,NULL);
INSERT INTO "belief_delta" VALUES(1,0,3,4,1.0,0.0,0.0,0,2.0,1.0,1.0,NULL);
INSERT INTO "belief_delta" VALUES(1,0,3,5,-1.0,0.0,0.0,0,1.0,1.0,1.0,NULL);
INSERT INTO "belief_delta" VALUES(2,0,2,3,1.0,0.1,1.00000000000000019e-02,0,1.0,0.1,1.00000000000000019e-02,NULL);
INSERT INTO "belief_delta" VALUES(3,0,1,5,1.0,0.0,0.0,0,1.0,0.0,0.0,NULL);
INSERT INTO "belief_delta" VALUES(3,0,3,5,1.0,1.0,1.0,0,1.0,1.0,1.0,NULL);
INSERT INTO "belief_delta" VALUES(4,0,2,2,1.0,0.1,1.00000000000000019e-02,0,1.0,0.1,1.00000000000000019e-02,NULL);
INSERT INTO "belief_delta" VALUES(5,0,1,0,1.0,0.0,0.0,0,1.0,0.0,0.0,NULL);
INSERT INTO "belief_delta" VALUES(5,0,3,0,1.0,1.0,1.0,0,1.0,1.0,1.0,NULL);
INSERT INTO "belief_delta" VALUES(6,0,2,0,1.0,0.1,1.00000000000000019e-02,0,1.0,0.1,1.00000000000000019e-02,NULL);
CREATE TABLE candidate_list (
	decision_id INTEGER NOT NULL, 
	catalogue_id INTEGER, 
	arms TEXT NOT NULL, 
	propensities TEXT NOT NULL, 
	log_propensity REAL NOT NULL, 
	CONSTRAINT pk_candidate_list PRIMARY KEY (decision_id), 
	CONSTRAINT ck_candidate_list_log_propensity_range CHECK (log_propensity <= 0 AND log_propensity >= -1e308), 
	CONSTRAINT fk_candidate_list_catalogue_id FOREIGN KEY(catalogue_id) REFERENCES eligible_set (id), 
	CONSTRAINT fk_candidate_list_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 STRICT

;
CREATE TABLE context (
	id INTEGER NOT NULL, 
	digest BLOB NOT NULL, 
	body TEXT NOT NULL, 
	CONSTRAINT pk_context PRIMARY KEY (id), 
	CONSTRAINT uq_context_digest UNIQUE (digest)
)
 STRICT

;
INSERT INTO "context" VALUES(1,X'A66ADFB0A220170B8FC1B78C16588A18','{"hour":9}');
INSERT INTO "context" VALUES(2,X'2AFB9B83F9314E5D029766197F539792','{}');
CREATE TABLE decision (
	id INTEGER NOT NULL, 
	policy_id INTEGER NOT NULL, 
	version_id INTEGER NOT NULL, 
	belief_seq INTEGER NOT NULL, 
	belief_ordinal INTEGER, 
	seq INTEGER NOT NULL, 
	ordinal INTEGER, 
	session_id INTEGER NOT NULL, 
	visit INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	context_id INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	eligible_id INTEGER NOT NULL, 
	catalogue_revision INTEGER NOT NULL, 
	size INTEGER NOT NULL, 
	log_propensity REAL, 
	seed INTEGER, 
	variant_id INTEGER, 
	at INTEGER NOT NULL, 
	imported INTEGER NOT NULL, 
	request_key TEXT, 
	request_digest BLOB, 
	run_id INTEGER, 
	source TEXT, 
	history BLOB, 
	keep_probability REAL CONSTRAINT ck_decision_keep_probability_probability CHECK (keep_probability > 0 AND keep_probability <= 1), 
	estimated INTEGER CONSTRAINT ck_decision_estimated_flag CHECK (estimated IN (0, 1)), 
	CONSTRAINT pk_decision PRIMARY KEY (id), 
	CONSTRAINT ck_decision_live_complete CHECK (imported = 1 OR (log_propensity IS NOT NULL AND seed IS NOT NULL)), 
	CONSTRAINT ck_decision_imported_flag CHECK (imported IN (0, 1)), 
	CONSTRAINT ck_decision_request_key_length CHECK (length(request_key) BETWEEN 1 AND 200), 
	CONSTRAINT ck_decision_log_propensity_range CHECK (log_propensity <= 0 AND log_propensity >= -1e308), 
	CONSTRAINT ck_decision_size_positive CHECK (size > 0), 
	CONSTRAINT ck_decision_step_positive CHECK (step >= 0), 
	CONSTRAINT fk_decision_context_id FOREIGN KEY(context_id) REFERENCES context (id), 
	CONSTRAINT fk_decision_eligible_id FOREIGN KEY(eligible_id) REFERENCES eligible_set (id), 
	CONSTRAINT fk_decision_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT fk_decision_run_id FOREIGN KEY(run_id) REFERENCES run (id), 
	CONSTRAINT fk_decision_session_id FOREIGN KEY(session_id) REFERENCES session (id), 
	CONSTRAINT fk_decision_variant_id FOREIGN KEY(variant_id) REFERENCES variant (id), 
	CONSTRAINT fk_decision_version_id FOREIGN KEY(version_id) REFERENCES version (id), 
	CONSTRAINT uq_decision_session_id_visit_step UNIQUE (session_id, visit, step)
)
 STRICT

;
INSERT INTO "decision" VALUES(1,1,1,0,NULL,1,NULL,1,1,0,1,'{"step":0}',1,1,2,-1.91897319804538879e+00,1,NULL,1767268860000000,0,'r1',X'0902F51DDB1E4575BC5D001BFEDDCA1D',NULL,NULL,X'',NULL,NULL);
INSERT INTO "decision" VALUES(2,2,2,0,NULL,1,NULL,1,1,1,2,'{"gap_s":60,"recent":["a3","a1"],"step":1}',1,1,1,-1.09861228866810978e+00,1,NULL,1767268920000000,0,NULL,NULL,NULL,NULL,X'00879303000000000202000000000000000000000000000000000000000000000103000001010000',NULL,NULL);
INSERT INTO "decision" VALUES(3,1,1,3,NULL,4,NULL,2,1,0,2,'{"step":0}',1,1,1,-4.70096873686103367e-01,2,NULL,1767269100000000,0,NULL,NULL,NULL,NULL,X'',NULL,NULL);
INSERT INTO "decision" VALUES(4,4,6,0,NULL,1,NULL,3,1,0,2,'{"step":0}',2,3,1,-5.12932943875505781e-02,3,2,1767276180000000,0,NULL,NULL,NULL,NULL,X'',NULL,NULL);
INSERT INTO "decision" VALUES(5,2,2,2,NULL,3,NULL,4,1,0,2,'{"step":0}',2,3,1,-6.93147180559945286e-01,3,NULL,1767276240000000,0,NULL,NULL,NULL,NULL,X'',NULL,NULL);
CREATE TABLE decision_features (
	decision_id INTEGER NOT NULL, 
	context_id INTEGER NOT NULL, 
	CONSTRAINT pk_decision_features PRIMARY KEY (decision_id), 
	CONSTRAINT fk_decision_features_context_id FOREIGN KEY(context_id) REFERENCES context (id), 
	CONSTRAINT fk_decision_features_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 STRICT

;
CREATE TABLE eligible_set (
	id INTEGER NOT NULL, 
	digest BLOB NOT NULL, 
	size INTEGER NOT NULL, 
	arms TEXT NOT NULL, superset_id INTEGER CONSTRAINT fk_eligible_set_superset_id REFERENCES eligible_set (id), 
	CONSTRAINT pk_eligible_set PRIMARY KEY (id), 
	CONSTRAINT ck_eligible_set_size_positive CHECK (size > 0), 
	CONSTRAINT uq_eligible_set_digest UNIQUE (digest)
)
 STRICT

;
INSERT INTO "eligible_set" VALUES(1,X'53C65DEB7D4E0BFC9931D06CFE60790D',3,'[1,2,3]',NULL);
INSERT INTO "eligible_set" VALUES(2,X'44F8075DE475106AAF7822E598A3D25B',2,'[1,2]',NULL);
CREATE TABLE event (
	decision_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	position INTEGER, 
	kind TEXT NOT NULL, 
	value REAL NOT NULL, 
	at INTEGER NOT NULL, 
	received_at INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	"key" TEXT, 
	CONSTRAINT pk_event PRIMARY KEY (decision_id, number), 
	CONSTRAINT ck_event_kind_length CHECK (length(kind) BETWEEN 1 AND 64), 
	CONSTRAINT ck_event_value_finite CHECK (value BETWEEN -1e308 AND 1e308), 
	CONSTRAINT fk_event_decision_id_position FOREIGN KEY(decision_id, position) REFERENCES slot (decision_id, position), 
	CONSTRAINT fk_event_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "event" VALUES(1,1,1,'click',1.0,1767268980000000,1767268980000000,2,'k1');
INSERT INTO "event" VALUES(1,2,1,'dwell_s',3.5,1767268980000000,1767268980000000,2,'k1');
INSERT INTO "event" VALUES(1,3,NULL,'page_view',1.0,1767268980000000,1767268980000000,3,NULL);
INSERT INTO "event" VALUES(2,1,1,'click',1.0,1767269040000000,1767269040000000,2,NULL);
INSERT INTO "event" VALUES(3,1,1,'!censor',1.0,1767269160000000,1767269160000000,5,NULL);
CREATE TABLE exclusion (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	filter TEXT NOT NULL, 
	by_unit INTEGER NOT NULL, 
	created_at INTEGER NOT NULL, 
	CONSTRAINT pk_exclusion PRIMARY KEY (id), 
	CONSTRAINT ck_exclusion_by_unit_flag CHECK (by_unit IN (0, 1)), 
	CONSTRAINT uq_exclusion_name UNIQUE (name)
)
 STRICT

;
INSERT INTO "exclusion" VALUES(1,'staff','',1,1767276600000000);
CREATE TABLE exclusion_unit (
	id INTEGER NOT NULL, 
	exclusion_id INTEGER NOT NULL, 
	user_id INTEGER, 
	session_id INTEGER, 
	CONSTRAINT pk_exclusion_unit PRIMARY KEY (id), 
	CONSTRAINT ck_exclusion_unit_one_unit CHECK ((user_id IS NULL) <> (session_id IS NULL)), 
	CONSTRAINT fk_exclusion_unit_exclusion_id FOREIGN KEY(exclusion_id) REFERENCES exclusion (id), 
	CONSTRAINT fk_exclusion_unit_session_id FOREIGN KEY(session_id) REFERENCES session (id), 
	CONSTRAINT fk_exclusion_unit_user_id FOREIGN KEY(user_id) REFERENCES users (id)
)
 STRICT

;
INSERT INTO "exclusion_unit" VALUES(1,1,2,NULL);
CREATE TABLE experiment (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	unit TEXT NOT NULL, 
	salt TEXT NOT NULL, 
	status TEXT NOT NULL, 
	definition TEXT NOT NULL, 
	created_at INTEGER NOT NULL, 
	stopped_at INTEGER, layer TEXT, parts TEXT, 
	CONSTRAINT pk_experiment PRIMARY KEY (id), 
	CONSTRAINT ck_experiment_status_known CHECK (status IN ('running', 'stopped')), 
	CONSTRAINT ck_experiment_unit_known CHECK (unit IN ('user', 'session')), 
	CONSTRAINT uq_experiment_name UNIQUE (name)
)
 STRICT

;
INSERT INTO "experiment" VALUES(1,'ab','user','fcf6d7d4bb088a2fd4eb16599dc1d441','running','{"best_n":5000,"unit":"user","variants":[["a","home",1],["b","slow@2",1]]}',1767276120000000,NULL,NULL,NULL);
INSERT INTO "experiment" VALUES(2,'front-holdout','user','bff62b5947a03a69142e7e92afef0bf8','running','{"best_n":5000,"holdout_of":"front","unit":"user","variants":[["holdout","uniform",0.05]]}',1767276540000000,NULL,NULL,NULL);
CREATE TABLE feedback_key (
	"key" TEXT NOT NULL, 
	digest BLOB NOT NULL, 
	at INTEGER, 
	decision_id INTEGER NOT NULL, 
	CONSTRAINT pk_feedback_key PRIMARY KEY ("key"), 
	CONSTRAINT ck_feedback_key_key_length CHECK (length(key) BETWEEN 1 AND 200), 
	CONSTRAINT fk_feedback_key_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "feedback_key" VALUES('k1',X'3A766CEB290F3F0003FE0C5F4333335D',NULL,1);
CREATE TABLE gate_look (
	id INTEGER NOT NULL, 
	route_id INTEGER NOT NULL, 
	at INTEGER NOT NULL, 
	policy_id INTEGER NOT NULL, 
	version_id INTEGER NOT NULL, 
	report TEXT NOT NULL, 
	CONSTRAINT pk_gate_look PRIMARY KEY (id), 
	CONSTRAINT fk_gate_look_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT fk_gate_look_route_id FOREIGN KEY(route_id) REFERENCES route (id), 
	CONSTRAINT fk_gate_look_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 STRICT

;
CREATE TABLE group_member (
	arm_group_id INTEGER NOT NULL, 
	arm_id INTEGER NOT NULL, 
	CONSTRAINT pk_group_member PRIMARY KEY (arm_group_id, arm_id), 
	CONSTRAINT fk_group_member_arm_group_id FOREIGN KEY(arm_group_id) REFERENCES arm_group (id), 
	CONSTRAINT fk_group_member_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "group_member" VALUES(1,2);
CREATE TABLE import_line (
	policy_id INTEGER NOT NULL, 
	digest BLOB NOT NULL, 
	decision_id INTEGER NOT NULL, 
	CONSTRAINT pk_import_line PRIMARY KEY (policy_id, digest), 
	CONSTRAINT fk_import_line_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id), 
	CONSTRAINT fk_import_line_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id)
)
 WITHOUT ROWID,
 STRICT

;
CREATE TABLE last_decision (
	user_id INTEGER NOT NULL, 
	decision_id INTEGER NOT NULL, 
	CONSTRAINT pk_last_decision PRIMARY KEY (user_id), 
	CONSTRAINT fk_last_decision_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id), 
	CONSTRAINT fk_last_decision_user_id FOREIGN KEY(user_id) REFERENCES users (id)
)
 STRICT

;
CREATE TABLE lease (
	policy_id INTEGER NOT NULL, 
	holder TEXT NOT NULL, 
	token TEXT NOT NULL, 
	taken_at INTEGER NOT NULL, 
	expires_at INTEGER NOT NULL, 
	CONSTRAINT pk_lease PRIMARY KEY (policy_id), 
	CONSTRAINT fk_lease_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id)
)
 STRICT

;
CREATE TABLE logged_support (
	decision_id INTEGER NOT NULL, 
	probabilities BLOB NOT NULL, 
	CONSTRAINT pk_logged_support PRIMARY KEY (decision_id), 
	CONSTRAINT fk_logged_support_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 STRICT

;
CREATE TABLE merged_user (
	user_id INTEGER NOT NULL, 
	person_id INTEGER NOT NULL, 
	at INTEGER NOT NULL, 
	CONSTRAINT pk_merged_user PRIMARY KEY (user_id), 
	CONSTRAINT ck_merged_user_another CHECK (user_id <> person_id), 
	CONSTRAINT fk_merged_user_person_id FOREIGN KEY(person_id) REFERENCES users (id), 
	CONSTRAINT fk_merged_user_user_id FOREIGN KEY(user_id) REFERENCES users (id)
)
 STRICT

;
INSERT INTO "merged_user" VALUES(3,2,1767276300000000);
CREATE TABLE omission (
	decision_id INTEGER NOT NULL, 
	version_id INTEGER NOT NULL, 
	CONSTRAINT pk_omission PRIMARY KEY (decision_id, version_id), 
	CONSTRAINT fk_omission_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id), 
	CONSTRAINT fk_omission_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 WITHOUT ROWID,
 STRICT

;
CREATE TABLE phase (
	id INTEGER NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	at INTEGER NOT NULL, 
	mode TEXT NOT NULL, 
	weights TEXT NOT NULL, 
	CONSTRAINT pk_phase PRIMARY KEY (id), 
	CONSTRAINT ck_phase_mode CHECK (mode IN ('draws', 'moves', 'frozen')), 
	CONSTRAINT fk_phase_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiment (id)
)
 STRICT

;
INSERT INTO "phase" VALUES(1,1,1767276300000000,'draws','{"a":1.0,"b":2.0}');
CREATE TABLE policy (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	params TEXT NOT NULL, 
	definition TEXT NOT NULL, 
	base_id INTEGER, 
	created_at INTEGER NOT NULL, 
	CONSTRAINT pk_policy PRIMARY KEY (id), 
	CONSTRAINT fk_policy_base_id FOREIGN KEY(base_id) REFERENCES policy (id), 
	CONSTRAINT uq_policy_name UNIQUE (name)
)
 STRICT

;
INSERT INTO "policy" VALUES(1,'home','thompson','{"discount":1.0,"explore_slots":"","floor":0.1,"position":"","window":0.0}','{"from_log":null,"kind":"thompson","params":{"discount":1,"explore_slots":"","floor":0.1,"position":"","window":0},"prior":"5838301fd7181eb82913df66815cba73","reward":"default"}',NULL,1767268800000000);
INSERT INTO "policy" VALUES(2,'slow','epsilon-greedy','{"discount":1.0,"epsilon":0.1,"explore_slots":"","floor":0.0,"position":"","window":0.0}','{"from_log":null,"kind":"epsilon-greedy","params":{"discount":1,"epsilon":0.1,"explore_slots":"","floor":0,"position":"","window":0},"prior":"2afb9b83f9314e5d029766197f539792","reward":"basket"}',NULL,1767268800000000);
INSERT INTO "policy" VALUES(3,'home@ab/a','thompson','{"discount":1.0,"explore_slots":"","floor":0.1,"position":"","window":0.0}','{"experiment":"ab","variant":"a"}',1,1767276120000000);
INSERT INTO "policy" VALUES(4,'slow@ab/b','epsilon-greedy','{"discount":1.0,"epsilon":0.1,"explore_slots":"","floor":0.0,"position":"","window":0.0}','{"experiment":"ab","variant":"b"}',2,1767276120000000);
INSERT INTO "policy" VALUES(5,'uniform@front-holdout/holdout','uniform','{"explore_slots":"","floor":0.0}','{"experiment":"front-holdout","variant":"holdout"}',NULL,1767276540000000);
CREATE TABLE policy_head (
	policy_id INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	pruned_to INTEGER, 
	live_id INTEGER NOT NULL, 
	CONSTRAINT pk_policy_head PRIMARY KEY (policy_id), 
	CONSTRAINT fk_policy_head_live_id FOREIGN KEY(live_id) REFERENCES version (id), 
	CONSTRAINT fk_policy_head_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id)
)
 STRICT

;
INSERT INTO "policy_head" VALUES(1,5,0,NULL,3);
INSERT INTO "policy_head" VALUES(2,3,0,NULL,2);
INSERT INTO "policy_head" VALUES(3,0,0,NULL,5);
INSERT INTO "policy_head" VALUES(4,1,0,NULL,6);
INSERT INTO "policy_head" VALUES(5,0,0,NULL,7);
CREATE TABLE position_curve (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	model TEXT NOT NULL, 
	method TEXT NOT NULL, 
	options TEXT NOT NULL, 
	positions TEXT NOT NULL, 
	report TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	created_at INTEGER NOT NULL, 
	reward_id INTEGER NOT NULL, 
	CONSTRAINT pk_position_curve PRIMARY KEY (id), 
	CONSTRAINT ck_position_curve_model_known CHECK (model IN ('pbm', 'cascade', 'dcm')), 
	CONSTRAINT ck_position_curve_name_length CHECK (length(name) BETWEEN 1 AND 200), 
	CONSTRAINT ck_position_curve_number_positive CHECK (number > 0), 
	CONSTRAINT fk_position_curve_reward_id FOREIGN KEY(reward_id) REFERENCES reward (id), 
	CONSTRAINT uq_position_curve_name_number UNIQUE (name, number)
)
 STRICT

;
CREATE TABLE prior (
	version_id INTEGER NOT NULL, 
	arm_id INTEGER NOT NULL, 
	alpha REAL NOT NULL, 
	beta REAL NOT NULL, 
	CONSTRAINT pk_prior PRIMARY KEY (version_id, arm_id), 
	CONSTRAINT ck_prior_alpha_positive CHECK (alpha > 0 AND alpha <= 1e308), 
	CONSTRAINT ck_prior_beta_positive CHECK (beta > 0 AND beta <= 1e308), 
	CONSTRAINT fk_prior_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id), 
	CONSTRAINT fk_prior_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "prior" VALUES(1,1,2.0,8.0);
INSERT INTO "prior" VALUES(3,1,2.0,8.0);
INSERT INTO "prior" VALUES(5,1,2.0,8.0);
CREATE TABLE promotion (
	id INTEGER NOT NULL, 
	policy_id INTEGER NOT NULL, 
	version_id INTEGER NOT NULL, 
	previous_id INTEGER NOT NULL, 
	at INTEGER NOT NULL, 
	rolled_back_at INTEGER, 
	CONSTRAINT pk_promotion PRIMARY KEY (id), 
	CONSTRAINT fk_promotion_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT fk_promotion_previous_id FOREIGN KEY(previous_id) REFERENCES version (id), 
	CONSTRAINT fk_promotion_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 STRICT

;
INSERT INTO "promotion" VALUES(1,1,3,1,1767276000000000,NULL);
CREATE TABLE pruned_sums (
	version_id INTEGER NOT NULL, 
	bucket INTEGER NOT NULL, 
	arm_id INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	pulls REAL NOT NULL, 
	reward_sum REAL NOT NULL, 
	reward_squares REAL NOT NULL, 
	extra BLOB, 
	CONSTRAINT pk_pruned_sums PRIMARY KEY (version_id, bucket, arm_id), 
	CONSTRAINT ck_pruned_sums_pulls_finite CHECK (pulls BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_pruned_sums_reward_squares_finite CHECK (reward_squares BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_pruned_sums_reward_sum_finite CHECK (reward_sum BETWEEN -1e308 AND 1e308), 
	CONSTRAINT fk_pruned_sums_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id), 
	CONSTRAINT fk_pruned_sums_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 WITHOUT ROWID,
 STRICT

;
CREATE TABLE reward (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	weights TEXT NOT NULL, 
	learn TEXT NOT NULL, 
	late TEXT NOT NULL, 
	window_us INTEGER NOT NULL, 
	created_at INTEGER NOT NULL, 
	default_value REAL NOT NULL, 
	clip_low REAL, 
	clip_high REAL, 
	CONSTRAINT pk_reward PRIMARY KEY (id), 
	CONSTRAINT ck_reward_late_known CHECK (late IN ('count', 'ignore')), 
	CONSTRAINT ck_reward_learn_known CHECK (learn IN ('served', 'settled')), 
	CONSTRAINT ck_reward_clip_high_finite CHECK (clip_high BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_reward_clip_order CHECK (clip_low <= clip_high), 
	CONSTRAINT ck_reward_clip_low_finite CHECK (clip_low BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_reward_default_value_finite CHECK (default_value BETWEEN -1e308 AND 1e308), 
	CONSTRAINT ck_reward_window_positive CHECK (window_us >= 0), 
	CONSTRAINT uq_reward_name UNIQUE (name)
)
 STRICT

;
INSERT INTO "reward" VALUES(1,'default','{"click":1.0,"reward":1.0}','served','count',1800000000,1767268800000000,0.0,0.0,1.0);
INSERT INTO "reward" VALUES(2,'basket','{"click":0.1,"purchase":1.0}','settled','ignore',3600000000,1767268800000000,0.0,0.0,1.0);
CREATE TABLE rlrec_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT rlrec_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "rlrec_version" VALUES('0015');
CREATE TABLE route (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	created_at INTEGER NOT NULL, holdout_id INTEGER CONSTRAINT fk_route_holdout_id REFERENCES experiment (id), 
	CONSTRAINT pk_route PRIMARY KEY (id), 
	CONSTRAINT uq_route_name UNIQUE (name)
)
 STRICT

;
INSERT INTO "route" VALUES(1,'front',1767276360000000,2);
CREATE TABLE route_change (
	id INTEGER NOT NULL, 
	route_id INTEGER NOT NULL, 
	at INTEGER NOT NULL, 
	policy_id INTEGER NOT NULL, 
	version_id INTEGER, 
	experiment_id INTEGER, 
	command TEXT NOT NULL, 
	look_id INTEGER, 
	restored_id INTEGER, 
	CONSTRAINT pk_route_change PRIMARY KEY (id), 
	CONSTRAINT fk_route_change_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiment (id), 
	CONSTRAINT fk_route_change_look_id FOREIGN KEY(look_id) REFERENCES gate_look (id), 
	CONSTRAINT fk_route_change_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT fk_route_change_restored_id FOREIGN KEY(restored_id) REFERENCES route_change (id), 
	CONSTRAINT fk_route_change_route_id FOREIGN KEY(route_id) REFERENCES route (id), 
	CONSTRAINT fk_route_change_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 STRICT

;
INSERT INTO "route_change" VALUES(1,1,1767276360000000,1,NULL,NULL,'route create front --to home',NULL,NULL);
INSERT INTO "route_change" VALUES(2,1,1767276420000000,2,4,NULL,'route set front --to slow@2',NULL,NULL);
INSERT INTO "route_change" VALUES(3,1,1767276480000000,1,NULL,NULL,'route rollback front',NULL,1);
CREATE TABLE route_decision (
	decision_id INTEGER NOT NULL, 
	route_id INTEGER NOT NULL, 
	CONSTRAINT pk_route_decision PRIMARY KEY (decision_id), 
	CONSTRAINT fk_route_decision_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id), 
	CONSTRAINT fk_route_decision_route_id FOREIGN KEY(route_id) REFERENCES route (id)
)
 STRICT

;
CREATE TABLE run (
	id INTEGER NOT NULL, 
	command TEXT NOT NULL, 
	options TEXT NOT NULL, 
	result TEXT, 
	at INTEGER NOT NULL, 
	CONSTRAINT pk_run PRIMARY KEY (id)
)
 STRICT

;
INSERT INTO "run" VALUES(1,'init','{"revision": "0015", "session_timeout_us": 1800000000}',NULL,1767268800000000);
INSERT INTO "run" VALUES(2,'policy create','{"features": null, "from_log": null, "from_policy": null, "kind": "thompson", "name": "home", "parameters": {"floor": "0.1"}, "prior": "prior.csv", "prior_from": null, "prior_weight": null, "reward": "default"}','{}',1767268800000000);
INSERT INTO "run" VALUES(3,'policy create','{"features": null, "from_log": null, "from_policy": null, "kind": "epsilon-greedy", "name": "slow", "parameters": {}, "prior": null, "prior_from": null, "prior_weight": null, "reward": "basket"}','{}',1767268800000000);
INSERT INTO "run" VALUES(4,'notice of events','{"kinds": ["d244bf20aad076a30fb8339dbf02860e"]}',NULL,1767268980000000);
INSERT INTO "run" VALUES(5,'notice of events','{"kinds": ["5da50dac1c051b83dce19cca5299f40d"]}',NULL,1767268980000000);
INSERT INTO "run" VALUES(6,'policy freeze','{"from": 1, "policy": "home", "to": 2}',NULL,1767276000000000);
INSERT INTO "run" VALUES(7,'policy promote','{"policy": "home", "version": 2}',NULL,1767276000000000);
INSERT INTO "run" VALUES(8,'policy freeze','{"from": 1, "policy": "slow", "to": 2}',NULL,1767276000000000);
INSERT INTO "run" VALUES(9,'experiment create','{"definition": "{\"unit\":\"user\",\"variants\":[[\"a\",\"home\",1],[\"b\",\"slow@2\",1]]}", "name": "ab"}',NULL,1767276120000000);
INSERT INTO "run" VALUES(10,'experiment set','{"name": "ab", "weights": {"a": 1.0, "b": 2.0}}',NULL,1767276300000000);
INSERT INTO "run" VALUES(11,'route create front --to home','{"to": "home"}',NULL,1767276360000000);
INSERT INTO "run" VALUES(12,'route set front --to slow@2','{"to": "slow@2"}',NULL,1767276420000000);
INSERT INTO "run" VALUES(13,'route rollback front','{"to": "home"}',NULL,1767276480000000);
INSERT INTO "run" VALUES(14,'route set front --holdout 5%','{"holdout": 0.05}',NULL,1767276540000000);
INSERT INTO "run" VALUES(15,'log exclude','{"name": "staff"}','{"decisions": 1}',1767276600000000);
CREATE TABLE session (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	user_id INTEGER, 
	split INTEGER NOT NULL, 
	created_at INTEGER NOT NULL, 
	digest INTEGER, 
	CONSTRAINT pk_session PRIMARY KEY (id), 
	CONSTRAINT ck_session_key_length CHECK (length(key) BETWEEN 1 AND 200), 
	CONSTRAINT ck_session_split_known CHECK (split IN (0, 1, 2)), 
	CONSTRAINT fk_session_user_id FOREIGN KEY(user_id) REFERENCES users (id), 
	CONSTRAINT uq_session_key UNIQUE ("key")
)
 STRICT

;
INSERT INTO "session" VALUES(1,'s1',1,0,1767268860000000,6064584127301525897);
INSERT INTO "session" VALUES(2,'s2',NULL,0,1767269100000000,4234594894547998628);
INSERT INTO "session" VALUES(3,'s3',2,2,1767276180000000,6510796145760724968);
INSERT INTO "session" VALUES(4,'s4',NULL,0,1767276240000000,-559224135835269452);
CREATE TABLE settings (
	id INTEGER NOT NULL, 
	created_at INTEGER NOT NULL, 
	session_timeout_us INTEGER NOT NULL, 
	catalogue_revision INTEGER NOT NULL, 
	removals INTEGER, 
	removed_to INTEGER, 
	salt TEXT NOT NULL, 
	catalogue_id INTEGER, catalogue_from INTEGER, catalogue_until INTEGER, 
	CONSTRAINT pk_settings PRIMARY KEY (id), 
	CONSTRAINT ck_settings_one_row CHECK (id = 1), 
	CONSTRAINT ck_settings_session_timeout_positive CHECK (session_timeout_us > 0), 
	CONSTRAINT fk_settings_catalogue_id FOREIGN KEY(catalogue_id) REFERENCES eligible_set (id)
)
 STRICT

;
INSERT INTO "settings" VALUES(1,1767268800000000,1800000000,3,NULL,NULL,'key:e4aaaa0ccb5de1943ab53ad2f8b9df13',2,-62135596800000000,4070908800000000);
CREATE TABLE shadow (
	id INTEGER NOT NULL, 
	route_id INTEGER NOT NULL, 
	policy_id INTEGER NOT NULL, 
	version_id INTEGER, 
	started_at INTEGER NOT NULL, 
	stopped_at INTEGER, 
	CONSTRAINT pk_shadow PRIMARY KEY (id), 
	CONSTRAINT fk_shadow_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT fk_shadow_route_id FOREIGN KEY(route_id) REFERENCES route (id), 
	CONSTRAINT fk_shadow_version_id FOREIGN KEY(version_id) REFERENCES version (id)
)
 STRICT

;
CREATE TABLE shadow_decision (
	shadow_id INTEGER NOT NULL, 
	decision_id INTEGER NOT NULL, 
	log_probability REAL, 
	CONSTRAINT pk_shadow_decision PRIMARY KEY (shadow_id, decision_id), 
	CONSTRAINT ck_shadow_decision_log_probability_range CHECK (log_probability <= 0 AND log_probability >= -1e308), 
	CONSTRAINT fk_shadow_decision_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id), 
	CONSTRAINT fk_shadow_decision_shadow_id FOREIGN KEY(shadow_id) REFERENCES shadow (id)
)
 WITHOUT ROWID,
 STRICT

;
CREATE TABLE slot (
	decision_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	arm_id INTEGER NOT NULL, 
	propensity REAL, 
	marginal REAL, 
	min_propensity REAL, 
	score REAL, 
	censored INTEGER NOT NULL, 
	rounded INTEGER NOT NULL, 
	CONSTRAINT pk_slot PRIMARY KEY (decision_id, position), 
	CONSTRAINT ck_slot_censored_flag CHECK (censored IN (0, 1)), 
	CONSTRAINT ck_slot_marginal_probability CHECK (marginal > 0 AND marginal <= 1), 
	CONSTRAINT ck_slot_min_propensity_range CHECK (min_propensity >= 0 AND min_propensity <= 1), 
	CONSTRAINT ck_slot_position_positive CHECK (position > 0), 
	CONSTRAINT ck_slot_propensity_probability CHECK (propensity > 0 AND propensity <= 1), 
	CONSTRAINT ck_slot_rounded_flag CHECK (rounded IN (0, 1)), 
	CONSTRAINT ck_slot_score_finite CHECK (score BETWEEN -1e308 AND 1e308), 
	CONSTRAINT fk_slot_arm_id FOREIGN KEY(arm_id) REFERENCES arm (id), 
	CONSTRAINT fk_slot_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "slot" VALUES(1,1,3,4.58787878787878411e-01,4.58787878787878467e-01,8.24242424242424276e-02,0.5,0,0);
INSERT INTO "slot" VALUES(1,2,1,0.319881109643329,2.93515151515151451e-01,0.319881109643329,0.2,0,0);
INSERT INTO "slot" VALUES(2,1,2,3.33333333333333314e-01,3.33333333333333314e-01,3.33333333333333314e-01,0.0,0,0);
INSERT INTO "slot" VALUES(3,1,3,0.624941724941725,0.624941724941725,4.59207459207459228e-02,6.66666666666666629e-01,1,0);
INSERT INTO "slot" VALUES(4,1,2,0.95,0.95,4.99999999999999889e-02,0.1,0,0);
INSERT INTO "slot" VALUES(5,1,1,0.5,0.5,0.5,0.0,0,0);
CREATE TABLE slot_set (
	decision_id INTEGER NOT NULL, 
	arms TEXT NOT NULL, 
	CONSTRAINT pk_slot_set PRIMARY KEY (decision_id), 
	CONSTRAINT fk_slot_set_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 STRICT

;
CREATE TABLE team_draft (
	decision_id INTEGER NOT NULL, 
	teams TEXT NOT NULL, 
	CONSTRAINT pk_team_draft PRIMARY KEY (decision_id), 
	CONSTRAINT ck_team_draft_teams_named CHECK (length(teams) > 0), 
	CONSTRAINT fk_team_draft_decision_id FOREIGN KEY(decision_id) REFERENCES decision (id)
)
 STRICT

;
CREATE TABLE users (
	id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	digest INTEGER, 
	CONSTRAINT pk_users PRIMARY KEY (id), 
	CONSTRAINT ck_users_key_length CHECK (length(key) BETWEEN 1 AND 200), 
	CONSTRAINT uq_users_key UNIQUE ("key")
)
 STRICT

;
INSERT INTO "users" VALUES(1,'u1',-3068554161859749486);
INSERT INTO "users" VALUES(2,'u2',-5847214714441786502);
INSERT INTO "users" VALUES(3,'u3',2271443038429964291);
CREATE TABLE variant (
	id INTEGER NOT NULL, 
	experiment_id INTEGER NOT NULL, 
	label TEXT NOT NULL, 
	policy_id INTEGER NOT NULL, 
	weight REAL NOT NULL, 
	CONSTRAINT pk_variant PRIMARY KEY (id), 
	CONSTRAINT ck_variant_weight_positive CHECK (weight > 0 AND weight <= 1e308), 
	CONSTRAINT fk_variant_experiment_id FOREIGN KEY(experiment_id) REFERENCES experiment (id), 
	CONSTRAINT fk_variant_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT uq_variant_experiment_id_label UNIQUE (experiment_id, label)
)
 STRICT

;
INSERT INTO "variant" VALUES(1,1,'a',3,1.0);
INSERT INTO "variant" VALUES(2,1,'b',4,1.0);
INSERT INTO "variant" VALUES(3,2,'holdout',5,0.05);
INSERT INTO "variant" VALUES(4,2,'served',1,0.95);
CREATE TABLE version (
	id INTEGER NOT NULL, 
	policy_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	ordinal INTEGER NOT NULL, 
	entered_to INTEGER, 
	created_at INTEGER NOT NULL, 
	status TEXT NOT NULL, 
	learned_from TEXT NOT NULL, 
	parameters TEXT, 
	report TEXT, 
	reward_id INTEGER NOT NULL, 
	parent_id INTEGER, has_omissions INTEGER CONSTRAINT ck_version_has_omissions_flag CHECK (has_omissions IN (0, 1)), 
	CONSTRAINT pk_version PRIMARY KEY (id), 
	CONSTRAINT ck_version_status_known CHECK (status IN ('learning', 'frozen', 'retired')), 
	CONSTRAINT ck_version_number_positive CHECK (number > 0), 
	CONSTRAINT fk_version_parent_id FOREIGN KEY(parent_id) REFERENCES version (id), 
	CONSTRAINT fk_version_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id), 
	CONSTRAINT fk_version_reward_id FOREIGN KEY(reward_id) REFERENCES reward (id), 
	CONSTRAINT uq_version_policy_id_number UNIQUE (policy_id, number)
)
 STRICT

;
INSERT INTO "version" VALUES(1,1,1,0,0,NULL,1767268800000000,'learning','{}',NULL,NULL,1,NULL,NULL);
INSERT INTO "version" VALUES(2,2,1,0,0,2,1767268800000000,'learning','{}',NULL,NULL,2,NULL,NULL);
INSERT INTO "version" VALUES(3,1,2,5,0,NULL,1767276000000000,'frozen','{"last_id":3,"policy_id":1}',NULL,NULL,1,1,NULL);
INSERT INTO "version" VALUES(4,2,2,2,0,NULL,1767276000000000,'frozen','{"last_id":2,"policy_id":2}',NULL,NULL,2,2,NULL);
INSERT INTO "version" VALUES(5,3,2,0,0,NULL,1767276120000000,'frozen','{}',NULL,NULL,1,3,NULL);
INSERT INTO "version" VALUES(6,4,2,0,0,NULL,1767276120000000,'frozen','{}',NULL,NULL,2,4,NULL);
INSERT INTO "version" VALUES(7,5,1,0,0,NULL,1767276540000000,'learning','{}',NULL,NULL,1,NULL,NULL);
CREATE TABLE visit (
	session_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	started_at INTEGER NOT NULL, 
	last_at INTEGER NOT NULL, 
	steps INTEGER NOT NULL, 
	recent TEXT NOT NULL, 
	ended_at INTEGER, 
	history BLOB, 
	CONSTRAINT pk_visit PRIMARY KEY (session_id, number), 
	CONSTRAINT ck_visit_number_positive CHECK (number > 0), 
	CONSTRAINT ck_visit_steps_positive CHECK (steps >= 0), 
	CONSTRAINT fk_visit_session_id FOREIGN KEY(session_id) REFERENCES session (id)
)
 WITHOUT ROWID,
 STRICT

;
INSERT INTO "visit" VALUES(1,1,1767268860000000,1767268920000000,2,'["a3","a1","a2"]',NULL,X'0300000000000000800000010000000003000000000100010000000001000000810000020000000002000000');
INSERT INTO "visit" VALUES(2,1,1767269100000000,1767269100000000,1,'["a3"]',NULL,X'0100000000000000800000030000000003000000');
INSERT INTO "visit" VALUES(3,1,1767276180000000,1767276180000000,1,'["a2"]',NULL,X'0100000000000000800000040000000002000000');
INSERT INTO "visit" VALUES(4,1,1767276240000000,1767276240000000,1,'["a1"]',1767276300000000,X'0100000000000000800000050000000001000000');
CREATE INDEX ix_decision_at ON decision (at) WHERE imported = 0;
CREATE INDEX ix_decision_policy_id_id ON decision (policy_id, id);
CREATE UNIQUE INDEX uq_decision_request_key ON decision (request_key) WHERE request_key IS NOT NULL;
CREATE INDEX ix_gate_look_route_id_at ON gate_look (route_id, at);
CREATE INDEX ix_promotion_policy_id_id ON promotion (policy_id, id);
CREATE INDEX ix_shadow_route_id_id ON shadow (route_id, id);
CREATE INDEX ix_route_change_route_id_id ON route_change (route_id, id);
CREATE VIEW v_decision AS
SELECT d.id AS decision_id, strftime('%Y-%m-%dT%H:%M:%S.', d.at / 1000000, 'unixepoch') || printf('%06dZ', d.at % 1000000) AS at, p.name AS policy, n.number AS version, e.name AS experiment,
    a.label AS variant, o.name AS route, s.key AS session_key, u.key AS user_key, d.visit, d.step, c.body AS context,
    d.state, d.size, l.size AS eligible, d.log_propensity, d.request_key AS request_id, d.imported
FROM decision d JOIN policy p ON p.id = d.policy_id JOIN version n ON n.id = d.version_id
    JOIN session s ON s.id = d.session_id JOIN context c ON c.id = d.context_id
    JOIN eligible_set l ON l.id = d.eligible_id LEFT JOIN users u ON u.id = s.user_id
    LEFT JOIN variant a ON a.id = d.variant_id LEFT JOIN experiment e ON e.id = a.experiment_id
    LEFT JOIN route_decision q ON q.decision_id = d.id LEFT JOIN route o ON o.id = q.route_id;
CREATE VIEW v_slot AS
SELECT d.id AS decision_id, i.position, strftime('%Y-%m-%dT%H:%M:%S.', d.at / 1000000, 'unixepoch') || printf('%06dZ', d.at % 1000000) AS at, p.name AS policy, n.number AS version, s.key AS session_key,
    u.key AS user_key, m.key AS arm, i.propensity, i.marginal, i.score, i.censored, r.name AS reward_name,
    coalesce((
        SELECT CASE WHEN count(*) > 0 THEN
            min(max(sum(weighed.term), coalesce(r.clip_low, -1e100)), coalesce(r.clip_high, 1e100)) END
        FROM (
            SELECT of_kind.weight * CASE
                WHEN NOT of_kind.compressed THEN of_kind.total
                WHEN of_kind.total < 0 THEN -ln(1 - of_kind.total) ELSE ln(1 + of_kind.total) END AS term
            FROM (
                SELECT CASE t.type WHEN 'object' THEN json_extract(t.value, '$.weight') ELSE t.value END AS weight, t.type = 'object' AND coalesce(json_extract(t.value, '$.log1p'), 0) AS compressed,
                    CASE WHEN CASE t.type WHEN 'object' THEN json_extract(t.value, '$.cap') END < sum(v.value) THEN CASE t.type WHEN 'object' THEN json_extract(t.value, '$.cap') END ELSE sum(v.value) END AS total
                FROM event v JOIN json_each(r.weights) t ON t.key = v.kind
                WHERE v.decision_id = i.decision_id AND v.position = i.position AND v.at <= d.at + r.window_us
                GROUP BY t.key, t.value, t.type
            ) AS of_kind
        ) AS weighed
    ), r.default_value) AS reward,
    CASE d.imported WHEN 1 THEN strftime('%Y-%m-%dT%H:%M:%S.', d.at / 1000000, 'unixepoch') || printf('%06dZ', d.at % 1000000) ELSE strftime('%Y-%m-%dT%H:%M:%S.', (d.at + r.window_us) / 1000000, 'unixepoch') || printf('%06dZ', (d.at + r.window_us) % 1000000) END AS mature_at
FROM slot i JOIN decision d ON d.id = i.decision_id JOIN policy p ON p.id = d.policy_id
    JOIN version n ON n.id = d.version_id JOIN reward r ON r.id = n.reward_id JOIN session s ON s.id = d.session_id
    JOIN arm m ON m.id = i.arm_id LEFT JOIN users u ON u.id = s.user_id;
CREATE VIEW v_version AS
SELECT p.name AS policy, p.kind, n.number AS version, n.status, CASE WHEN h.live_id = n.id THEN 1 ELSE 0 END AS live,
    r.name AS reward_name, q.name || '@' || b.number AS parent, strftime('%Y-%m-%dT%H:%M:%S.', n.created_at / 1000000, 'unixepoch') || printf('%06dZ', n.created_at % 1000000) AS created_at, n.learned_from
FROM version n JOIN policy p ON p.id = n.policy_id JOIN reward r ON r.id = n.reward_id
    LEFT JOIN policy_head h ON h.policy_id = n.policy_id
    LEFT JOIN version b ON b.id = n.parent_id LEFT JOIN policy q ON q.id = b.policy_id;
CREATE INDEX ix_merged_user_person_id ON merged_user (person_id);
CREATE INDEX ix_session_user_id ON session (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX ix_phase_experiment_id ON phase (experiment_id);
CREATE INDEX ix_exclusion_unit_exclusion_id ON exclusion_unit (exclusion_id);
CREATE INDEX ix_exclusion_unit_session_id ON exclusion_unit (session_id);
CREATE INDEX ix_exclusion_unit_user_id ON exclusion_unit (user_id);
CREATE INDEX ix_group_member_arm_id ON group_member (arm_id);
CREATE INDEX ix_eligible_set_superset_id ON eligible_set (superset_id);
COMMIT;
