-- What a changefeed is doing. `state` is spelled as TiCDC spells it; empty = uninitialized.
CREATE TABLE IF NOT EXISTS changefeed_state (
    changefeed_uuid BIGINT UNSIGNED NOT NULL,
    state           VARCHAR(16)     NOT NULL,
    warning         MEDIUMTEXT      NULL,
    error           MEDIUMTEXT      NULL,
    version         BIGINT UNSIGNED NOT NULL DEFAULT 1,
    update_at       DATETIME(6)     NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (changefeed_uuid)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
