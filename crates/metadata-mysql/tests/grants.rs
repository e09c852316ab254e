//! What the store's user must be allowed, and what it is told when it is not. That [`PRIVILEGES`] is enough, the whole
//! conformance suite shows, which runs with exactly those; here it is shown that none of them is too much.

use metadata_api::MetadataError;
use metadata_api::store::{AdminStore as _, Authority, CaptureStore as _};
use metadata_mysql::{MysqlStore, PRIVILEGES, migrate};
use test_servers::{Kind, drop_database, execute, fresh_database};

use crate::server::{new_capture, new_changefeed, options};

/// The store's own user of one database of the tests. Its password wants every care that a URL takes.
pub struct User {
    admin_url: String,
    database: String,
    name: String,
}

const PASSWORD: &str = "p:w/d@ %41#?&é";

impl User {
    /// The one that [`Self::create`] makes on the database at `url`.
    pub fn of(url: &str) -> Self {
        let database = url.rsplit('/').next().expect("a name").to_owned();
        // At most 32 characters on some servers.
        let name = format!("u{}", &database[database.len() - 12..]);
        Self { admin_url: url.to_owned(), database, name }
    }

    pub async fn create(url: &str) -> Self {
        let user = Self::of(url);
        user.sql(&format!("CREATE USER '{}'@'%' IDENTIFIED BY '{PASSWORD}'", user.name)).await;
        user
    }

    /// All that a running store needs, table by table.
    pub async fn grant_all(&self) {
        for (table, privileges) in PRIVILEGES {
            self.sql(&self.statement("GRANT", &privileges.join(", "), table, "TO")).await;
        }
    }

    fn statement(&self, verb: &str, privileges: &str, table: &str, preposition: &str) -> String {
        let Self { database, name, .. } = self;
        format!("{verb} {privileges} ON `{database}`.{table} {preposition} '{name}'@'%'")
    }

    pub fn url(&self) -> String {
        let mut url = url::Url::parse(&self.admin_url).expect("a URL");
        url.set_username(&self.name).expect("a name");
        // It encodes all but what looks encoded already.
        url.set_password(Some(&PASSWORD.replace('%', "%25"))).expect("a password");
        url.into()
    }

    async fn sql(&self, sql: &str) {
        execute(&self.admin_url, sql).await;
    }

    pub async fn drop(self) {
        self.sql(&format!("DROP USER '{}'@'%'", self.name)).await;
    }
}

fn assert_refused(error: &MetadataError, parts: &[&str]) {
    assert!(matches!(error, MetadataError::Unsupported { .. }), "{error:?}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A server that starts on a schema that is up to date does no DDL, and needs no right to do any.
pub async fn what_is_needed_is_enough(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    migrate(options(&url)).await.expect("as root");
    let user = User::create(&url).await;
    user.grant_all().await;
    // As `cdc server` does it.
    assert_eq!(migrate(options(&user.url())).await.expect("nothing is to be done"), 0);
    let store = MysqlStore::open(options(&user.url())).await.expect("it opens");
    let term = store.capture_register(&new_capture()).await.expect("registered");
    store.heartbeat_channel().await.expect("a channel").beat(term, 0, 1).await.expect("a beat");
    let uuid =
        store.changefeed_create(Authority::Operator, &new_changefeed("one")).await.expect("created").uuid;
    store.changefeed_remove(Authority::Operator, uuid).await.expect("removed");
    store.capture_deregister(term).await.expect("gone");
    user.drop().await;
    drop_database(&url).await;
}

/// Each single one is needed, is missed at the start and not in the middle of a takeover, and is named with the statement
/// that grants it; which then mends it.
pub async fn each_missing_grant_is_named_with_its_remedy(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    migrate(options(&url)).await.expect("as root");
    let user = User::create(&url).await;
    user.grant_all().await;
    for (table, privileges) in PRIVILEGES {
        for privilege in privileges {
            user.sql(&user.statement("REVOKE", privilege, table, "FROM")).await;
            let error = MysqlStore::open(options(&user.url())).await.expect_err(table);
            let (User { database, name, .. }, table) = (&user, table);
            let remedy = format!("GRANT {privilege} ON `{database}`.`{table}` TO '{name}'@'%';");
            assert_refused(&error, &[&remedy, &format!("'{name}'@'%' may not")]);
            user.sql(&remedy).await;
        }
    }
    MysqlStore::open(options(&user.url())).await.expect("all are back");
    user.sql(&user.statement("REVOKE", "UPDATE", "fence", "FROM")).await;
    user.sql(&user.statement("REVOKE", "INSERT, DELETE", "capture", "FROM")).await;
    let error = MysqlStore::open(options(&user.url())).await.expect_err("two are missing");
    assert_refused(&error, &["may not UPDATE on fence; INSERT, DELETE on capture."]);
    user.drop().await;
    drop_database(&url).await;
}

/// `cdc server` brings the schema up to date where it may; where it may not, it says what is to be run, and by whom.
pub async fn an_old_schema_and_no_right_to_change_it(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    let user = User::create(&url).await;
    let database = user.database.clone();
    user.sql(&user.statement("GRANT", "SELECT, INSERT, UPDATE, DELETE", "*", "TO")).await;
    let remedy = format!("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON `{database}`.* TO");
    let error = migrate(options(&user.url())).await.expect_err("no CREATE");
    assert_refused(
        &error,
        &["11 migrations behind", "may not change it", "CREATE command denied", "`cdc migrate`", &remedy],
    );
    let error = MysqlStore::open(options(&user.url())).await.expect_err("there is no schema");
    assert!(matches!(error, MetadataError::Schema { .. }), "{error:?}");
    // All that it takes today.
    user.sql(&user.statement("GRANT", "CREATE", "*", "TO")).await;
    assert_eq!(migrate(options(&user.url())).await.expect("it may now"), 11);
    // One file is missing, as after an upgrade of the binary.
    user.sql(&user.statement("REVOKE", "CREATE", "*", "FROM")).await;
    user.sql("DELETE FROM _sqlx_migrations WHERE version = 10").await;
    user.sql("DROP TABLE progress").await;
    let error = migrate(options(&user.url())).await.expect_err("no CREATE");
    assert_refused(&error, &["1 migrations behind", "`cdc migrate`", &remedy]);
    user.drop().await;
    drop_database(&url).await;
}

/// A user that may not even look is told so, and not that the schema is missing.
pub async fn a_user_without_anything(kind: Kind) {
    let url = fresh_database(&kind.url().await).await;
    migrate(options(&url)).await.expect("as root");
    let user = User::create(&url).await;
    for error in [
        MysqlStore::open(options(&user.url())).await.expect_err("no rights"),
        migrate(options(&user.url())).await.expect_err("no rights"),
    ] {
        assert_refused(&error, &["GRANT SELECT, INSERT, UPDATE, DELETE ON that database"]);
    }
    // So that it may use the database, but not see what schema it has.
    user.sql(&user.statement("GRANT", "SELECT", "fence", "TO")).await;
    for error in [
        MysqlStore::open(options(&user.url())).await.expect_err("no rights"),
        migrate(options(&user.url())).await.expect_err("no rights"),
    ] {
        let remedy = format!("GRANT SELECT ON `{}`.`_sqlx_migrations` TO", user.database);
        assert_refused(&error, &["may not see what schema there is", "`cdc migrate`", &remedy]);
    }
    user.drop().await;
    drop_database(&url).await;
}
