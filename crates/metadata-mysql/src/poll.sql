-- A watch poll: everything that a capture wants to know, as of one moment. The head is repeated on each row; a row carries
-- a schedule, a processor, or (nothing being new) neither.
SELECT k.cluster_id, f.revision AS fence_revision, e.leader_id, e.controller_epoch, e.lease_seq,
    e.cooldown, e.version AS election_version, boss.state AS "leader_state?",
    boss.heartbeat_seq AS "leader_beat?", own.state AS "own_state?",
    (SELECT COUNT(*) FROM schedule WHERE owner = ?) AS "owned!: i64",
    (SELECT COUNT(*) FROM processor WHERE capture_id = ? AND state <> 'removed') AS "attached!: i64",
    r.is_processor AS "is_processor?: i64", r.changefeed_uuid AS "changefeed_uuid?: u64",
    r.capture_id AS "capture_id?: String", r.state AS "state?: String",
    r.owner_epoch AS "owner_epoch?: u64", r.epoch AS "epoch?: u64", r.body AS "body?: String",
    r.revision AS "revision?: u64", r.version AS "version?: u64"
FROM cluster k
JOIN fence f ON f.id = 1
JOIN election e ON e.id = 1
LEFT JOIN capture boss ON boss.id = e.leader_id
LEFT JOIN capture own ON own.id = ?
LEFT JOIN (
    (SELECT 0 AS is_processor, changefeed_uuid, owner AS capture_id, owner_state AS state, owner_epoch,
        owner_epoch AS epoch, task_position AS body, revision, version
    FROM schedule
    WHERE owner = ? AND revision >= ? AND (revision > ? OR changefeed_uuid > ?)
    ORDER BY revision, changefeed_uuid LIMIT 500)
    UNION ALL
    (SELECT 1, changefeed_uuid, capture_id, state, owner_epoch, epoch, assignment, revision, version
    FROM processor
    WHERE capture_id = ? AND revision >= ? AND (revision > ? OR changefeed_uuid > ?)
    ORDER BY revision, changefeed_uuid LIMIT 500)
) r ON TRUE
WHERE k.id = 1
ORDER BY r.is_processor, r.revision, r.changefeed_uuid
