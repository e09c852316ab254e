-- Which cluster this database (schema) holds: one row. Its UUID is written once, by `0011_first_rows`.
--
-- For every file here: one DDL statement a file, since DDL commits by itself, and each is re-runnable, so that
-- `cdc migrate` can go on after a kill between any two. Text is compared by its bytes. JSON is kept as text, which the
-- code checks. `version` is for compare-and-set; `update_at` is for people, and no decision reads it.
CREATE TABLE IF NOT EXISTS cluster (
    id         TINYINT UNSIGNED NOT NULL,
    cluster_id VARCHAR(36)      NOT NULL,
    version    BIGINT UNSIGNED  NOT NULL DEFAULT 1,
    update_at  DATETIME(6)      NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    PRIMARY KEY (id)
) DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
