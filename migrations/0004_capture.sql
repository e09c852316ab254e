-- One row a capture: its heartbeats touch this row and nothing else. `heartbeat_seq` is their compare-and-set; a beat does
-- not move `version`. `heartbeat_at` has no index: whoever looks for dead captures watches every `heartbeat_seq`.
CREATE TABLE IF NOT EXISTS capture (
    id             VARCHAR(36)     NOT NULL,
    advertise_addr VARCHAR(255)    NOT NULL,
    binary_version VARCHAR(255)    NOT NULL,
    labels         TEXT            NOT NULL,
    machine_id     VARCHAR(255)    NOT NULL,
    state          VARCHAR(16)     NOT NULL,
    heartbeat_seq  BIGINT UNSIGNED NOT NULL DEFAULT 0,
    heartbeat_at   DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    started_at     DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    revision       BIGINT UNSIGNED NOT NULL,
    version        BIGINT UNSIGNED NOT NULL DEFAULT 1,
    update_at      DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (id)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
