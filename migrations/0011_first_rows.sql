-- The rows that are locked must be there before anybody locks them (TiDB has no gap locks), and the cluster's UUID is
-- written once. No DDL here: sqlx runs it in one transaction.
INSERT IGNORE INTO cluster (id, cluster_id) VALUES (1, UUID());
INSERT IGNORE INTO fence (id) VALUES (1);
INSERT IGNORE INTO election (id) VALUES (1);
