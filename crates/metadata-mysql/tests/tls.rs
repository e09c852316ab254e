//! TLS as the store's URL has it, against real servers with certificates of ours.

use metadata_api::MetadataError;
use metadata_api::store::QueryStore as _;
use metadata_mysql::{MysqlStore, migrate};
use test_servers::{Kind, Pki, drop_database, execute, fresh_database};

use crate::server::options;

/// A server with TLS, and a migrated database on it.
async fn server(kind: Kind) -> (Pki, test_servers::Server, String) {
    let pki = Pki::create();
    let server = kind.start_with_tls(&pki).await;
    let url = fresh_database(server.url()).await;
    migrate(options(&url)).await.expect("an empty database");
    (pki, server, url)
}

async fn assert_opens(url: &str) {
    let store = MysqlStore::open(options(url)).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    store.identity().await.expect("it works");
    assert_eq!(migrate(options(url)).await.expect("so does this"), 0);
}

async fn assert_refused(url: &str, part: &str) {
    for error in
        [MysqlStore::open(options(url)).await.expect_err(url), migrate(options(url)).await.expect_err(url)]
    {
        assert!(matches!(error, MetadataError::Unsupported { .. }), "{url}: {error:?}");
        assert!(error.to_string().contains(part), "`{part}` is not in: {url}: {error}");
    }
}

/// `VERIFY_CA` and `VERIFY_IDENTITY` refuse what they should, and nothing else does.
pub async fn the_servers_certificate_is_verified(kind: Kind) {
    let (pki, _server, url) = server(kind).await;
    let [ca, other] = ["ca.pem", "other-ca.pem"].map(|name| pki.path(name).display().to_string());
    let by_address = url.replace("localhost", "127.0.0.1");
    assert_ne!(by_address, url, "the engine is on this host, and the certificate for `localhost`");
    assert_opens(&format!("{url}?ssl-mode=DISABLED")).await;
    assert_opens(&url).await;
    assert_opens(&format!("{url}?ssl-mode=REQUIRED")).await;
    assert_opens(&format!("{url}?ssl-mode=VERIFY_CA&ssl-ca={ca}")).await;
    assert_opens(&format!("{by_address}?ssl-mode=VERIFY_CA&ssl-ca={ca}")).await;
    assert_opens(&format!("{url}?ssl-mode=VERIFY_IDENTITY&ssl-ca={ca}")).await;
    for mode in ["VERIFY_CA", "VERIFY_IDENTITY"] {
        assert_refused(&format!("{url}?ssl-mode={mode}&ssl-ca={other}"), "certificate is refused").await;
        assert_refused(&format!("{url}?ssl-mode={mode}"), "certificate is refused").await;
    }
    assert_refused(
        &format!("{by_address}?ssl-mode=VERIFY_IDENTITY&ssl-ca={ca}"),
        "for the host's name in the store's URL",
    )
    .await;
}

/// `REQUIRE SSL` and `REQUIRE X509`: what the server demands of a user, the URL can give.
pub async fn users_may_be_held_to_tls_and_certificates(kind: Kind) {
    let (pki, _server, url) = server(kind).await;
    let database = url.rsplit('/').next().expect("a name");
    for (user, what) in [("held_to_tls", "SSL"), ("held_to_x509", "X509")] {
        execute(
            &url,
            &format!(
                "CREATE USER {user}@'%' IDENTIFIED BY 'hunter2' REQUIRE {what}; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON `{database}`.* TO {user}@'%'"
            ),
        )
        .await;
    }
    let by =
        |user: &str, query: &str| format!("{}?{query}", url.replace("root@", &format!("{user}:hunter2@")));
    assert_opens(&by("held_to_tls", "ssl-mode=REQUIRED")).await;
    assert_refused(&by("held_to_tls", "ssl-mode=DISABLED"), "").await;
    let client = |prefix: &str| {
        let path = |name: &str| pki.path(&format!("{prefix}{name}")).display().to_string();
        format!(
            "ssl-mode=VERIFY_IDENTITY&ssl-ca={}&ssl-cert={}&ssl-key={}",
            pki.path("ca.pem").display(),
            path("client.pem"),
            path("client-key.pem")
        )
    };
    assert_opens(&by("held_to_x509", &client(""))).await;
    assert_refused(&by("held_to_x509", "ssl-mode=REQUIRED"), "client certificate").await;
    assert_refused(&by("held_to_x509", &client("other-")), "ssl-cert must be of an authority").await;
}

/// MySQL's default authentication sends a password over TLS, or encrypted for whoever asks for it, which we do not do.
#[tokio::test]
async fn no_password_goes_without_tls() {
    let url = fresh_database(&Kind::Mysql.url().await).await;
    let user = crate::grants::User::create(&url).await;
    assert_refused(&format!("{}?ssl-mode=DISABLED", user.url()), "ssl-mode=REQUIRED").await;
    user.drop().await;
    drop_database(&url).await;
}

/// Whoever insists on TLS gets no connection without.
pub async fn a_server_without_tls(kind: Kind) {
    let arguments = match kind {
        Kind::Mysql => vec!["--tls-version=".to_owned()],
        Kind::Mariadb => vec!["--skip-ssl".to_owned()],
        // It has none unless it is given a certificate.
        Kind::Tidb => Vec::new(),
    };
    let server = kind.start_with(&arguments, &[]).await;
    let url = fresh_database(server.url()).await;
    migrate(options(&url)).await.expect("an empty database");
    assert_opens(&format!("{url}?ssl-mode=PREFERRED")).await;
    for mode in ["REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"] {
        assert_refused(&format!("{url}?ssl-mode={mode}"), "TLS").await;
    }
}
