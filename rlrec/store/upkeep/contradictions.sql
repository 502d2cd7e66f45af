-- Rows that contradict others: what is found, with its subject where that is no decision, and the statement of the
-- rows, by whose columns it is told. A test is a block between empty lines. {slots}, {visits}: counts of each decision
-- and of each visit; {removed}: the largest id that was deleted, up to which ordinals have gaps; {longest_wait} in
-- microseconds.

-- not every position of its page has a slot
SELECT d.id FROM decision d LEFT JOIN {slots} s ON s.decision_id = d.id WHERE s.n IS NULL OR s.last > d.size
  OR (d.imported = 0 AND s.n <> d.size)

-- the version it names belongs to another policy
SELECT d.id FROM decision d JOIN version v ON v.id = d.version_id WHERE v.policy_id <> d.policy_id

-- the variant it names belongs to another policy
SELECT d.id FROM decision d JOIN variant v ON v.id = d.variant_id WHERE v.policy_id <> d.policy_id

-- its unit is not assigned to its variant
SELECT d.id FROM decision d JOIN variant v ON v.id = d.variant_id JOIN experiment e ON e.id = v.experiment_id
  JOIN session s ON s.id = d.session_id LEFT JOIN assignment a ON a.experiment_id = e.id AND a.session_id = s.id
  LEFT JOIN assignment b ON b.experiment_id = e.id AND b.user_id = s.user_id AND e.unit = 'user' WHERE
  coalesce(a.variant_id, 0) <> v.id AND coalesce(b.variant_id, 0) <> v.id AND NOT EXISTS (SELECT 1 FROM merged_user m
  JOIN assignment c ON c.user_id = m.user_id AND c.experiment_id = e.id WHERE m.person_id = s.user_id AND
  c.variant_id = v.id) AND NOT EXISTS (SELECT 1 FROM phase p WHERE p.experiment_id = e.id AND p.mode = 'moves' AND
  p.at > d.at AND v.id < coalesce(b.variant_id, a.variant_id))

-- user {0}: it is merged, and has sessions of its own
SELECT DISTINCT u.key FROM merged_user m JOIN users u ON u.id = m.user_id JOIN session s ON s.user_id = m.user_id

-- user {0}: it is merged into a user who is merged as well
SELECT u.key FROM merged_user m JOIN users u ON u.id = m.user_id JOIN merged_user n ON n.user_id = m.person_id

-- its change lies beyond the policy's counter, or before its belief
SELECT d.id FROM decision d JOIN policy_head h ON h.policy_id = d.policy_id JOIN version v ON v.id =
  d.version_id WHERE d.seq > h.seq OR d.belief_seq >= d.seq OR (d.imported = 0 AND d.belief_seq < v.seq)

-- a decision of the same change was drawn from another belief
SELECT max(id) FROM decision WHERE imported = 0 GROUP BY policy_id, seq HAVING min(belief_seq) <>
  max(belief_seq)

-- the belief it names was changed more than an hour before it was drawn
SELECT id FROM (SELECT id, belief_seq, max(seq) OVER (PARTITION BY policy_id ORDER BY at RANGE BETWEEN UNBOUNDED
  PRECEDING AND {longest_wait} PRECEDING) AS older FROM decision WHERE imported = 0) n WHERE belief_seq < older

-- its request id and the digest of what was asked do not go together
SELECT id FROM decision WHERE (imported = 0 AND request_key IS NOT NULL AND request_digest IS NULL) OR
  (request_key IS NULL AND request_digest IS NOT NULL)

-- its events are not numbered from 1 without a gap
SELECT decision_id FROM event GROUP BY decision_id HAVING count(*) <> max(number) OR min(number) <> 1

-- an event lies before it, or was received before it happened
SELECT e.decision_id FROM event e JOIN decision d ON d.id = e.decision_id WHERE d.imported = 0 AND (e.at < d.at
  OR e.received_at < e.at)

-- an event's change lies beyond the policy's counter
SELECT e.decision_id FROM event e JOIN decision d ON d.id = e.decision_id JOIN policy_head h ON h.policy_id =
  d.policy_id WHERE e.seq > h.seq

-- one of its events was stored before the one that it follows
SELECT e.decision_id FROM event e JOIN event b ON b.decision_id = e.decision_id AND b.number = e.number - 1
  WHERE e.number > 1 AND (e.seq < b.seq OR e.received_at < b.received_at - CASE WHEN e.seq > b.seq THEN
  {longest_wait} ELSE 0 END)

-- no event of feedback key {1!r} is there
SELECT k.decision_id, k.key FROM feedback_key k WHERE NOT EXISTS (SELECT 1 FROM event e WHERE e.decision_id =
  k.decision_id AND e.key = k.key)

-- the visit it belongs to is not there
SELECT c.first FROM {visits} c LEFT JOIN visit v ON v.session_id = c.session_id AND v.number = c.visit WHERE
  v.session_id IS NULL

-- it lies before the decision of its policy that it follows
SELECT id FROM (SELECT id, at, lag(at) OVER (PARTITION BY policy_id ORDER BY id) AS last FROM decision WHERE
  imported = 0) n WHERE at < last

-- session {0} visit {1}: it does not begin and end with its decisions
SELECT s.key, v.number FROM visit v JOIN session s ON s.id = v.session_id JOIN {visits} c ON c.session_id =
  v.session_id AND c.visit = v.number WHERE c.imported = 0 AND (v.started_at <> c.first_at OR v.last_at <>
  c.last_at)

-- its ordinal does not follow the one before it
SELECT id FROM (SELECT id, ordinal, lag(ordinal) OVER behind AS last, lag(id) OVER behind AS before FROM
  decision WHERE ordinal IS NOT NULL WINDOW behind AS (PARTITION BY policy_id ORDER BY id)) n WHERE ordinal <=
  last OR (ordinal > last + 1 AND before >= {removed})

-- policy {0}: its ordinal is not that of its newest decision
SELECT p.name FROM policy_head h JOIN policy p ON p.id = h.policy_id JOIN (SELECT policy_id, max(ordinal) AS
  last, max(id) AS newest FROM decision GROUP BY policy_id) n ON n.policy_id = h.policy_id WHERE h.ordinal <
  n.last OR (h.ordinal > n.last AND n.newest >= {removed})

-- session {0} visit {1}: it says {2} steps and has {3} decisions
SELECT s.key, v.number, v.steps, c.n FROM {visits} c JOIN visit v ON v.session_id = c.session_id AND v.number
  = c.visit JOIN session s ON s.id = c.session_id WHERE v.steps <> c.last + 1 OR (c.imported = 0 AND c.n <>
  v.steps)

-- session {0} visit {1}: it says {2} steps and has no decision
SELECT s.key, v.number, v.steps, 0 FROM visit v JOIN session s ON s.id = v.session_id WHERE v.steps <> 0 AND NOT
  EXISTS (SELECT 1 FROM decision d WHERE d.session_id = v.session_id AND d.visit = v.number)

-- policy {0}: no live version of its own
SELECT p.name FROM policy p LEFT JOIN policy_head h ON h.policy_id = p.id LEFT JOIN version v ON v.id =
  h.live_id AND v.policy_id = p.id WHERE v.id IS NULL

-- experiment {0}: a unit is assigned to a variant that it does not have
SELECT e.name FROM assignment a JOIN variant v ON v.id = a.variant_id JOIN experiment e ON e.id =
  a.experiment_id WHERE v.experiment_id <> a.experiment_id
