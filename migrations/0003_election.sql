-- One row: who holds the controller's lease. `controller_epoch` is that of the last acquisition and stays when the lease
-- is resigned; `lease_seq` moves with each renewal; `cooldown` is the capture that resigned last.
CREATE TABLE IF NOT EXISTS election (
    id               TINYINT UNSIGNED NOT NULL,
    leader_id        VARCHAR(36)      NULL,
    controller_epoch BIGINT UNSIGNED  NOT NULL DEFAULT 0,
    lease_seq        BIGINT UNSIGNED  NOT NULL DEFAULT 0,
    cooldown         VARCHAR(36)      NULL,
    version          BIGINT UNSIGNED  NOT NULL DEFAULT 1,
    update_at        DATETIME(6)      NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (id)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
