//! Where the metadata lies: `sqlite://PATH` or `mysql://user:password@host:port/database`.

use std::fmt;
use std::path::{Path, PathBuf};

use metadata_api::model::SecretUri;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::exit::Failure;

/// What a store URL may look like, for messages.
const FORMS: &str = "use sqlite://PATH for a file on this host, or mysql://user@host:port/database for MySQL, MariaDB \
                     or TiDB, with the password in --store-password-file or CDC_STORE_PASSWORD";

/// A parsed store URL. `Debug` and `Display` show no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// An embedded database in this file.
    Sqlite(PathBuf),
    /// A shared database server.
    Mysql(SecretUri),
}

impl StoreUrl {
    /// Parses `text`; `password`, if there is one, comes from a file or the environment and goes into a `mysql` URL
    /// that has none. Errors never repeat a URL that does not parse, since it cannot be masked.
    ///
    /// # Errors
    /// [`Failure`] with exit code 2 and the forms that would be right.
    pub fn parse(text: &str, password: Option<&SecretString>) -> Result<Self, Failure> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("sqlite:") {
            return Self::parse_sqlite(path.strip_prefix("//").unwrap_or(path));
        }
        let mut url = Url::parse(text)
            .map_err(|error| Failure::usage(format!("--store is not a URL ({error}); {FORMS}")))?;
        if url.scheme() != "mysql" {
            return Err(Failure::usage(format!(
                "--store: no store for the scheme `{}`; {FORMS}",
                url.scheme()
            )));
        }
        if url.host_str().unwrap_or_default().is_empty() {
            return Err(Failure::usage(format!("--store: the mysql URL has no host; {FORMS}")));
        }
        let database = url.path().trim_start_matches('/');
        if database.is_empty() || database.contains('/') {
            return Err(Failure::usage(format!(
                "--store: the mysql URL must name one database after the port, as in /cdc; {FORMS}"
            )));
        }
        if let Some(password) = password {
            if url.password().is_some() {
                return Err(Failure::usage(
                    "--store has a password, and another one is given by --store-password-file or CDC_STORE_PASSWORD; \
                     leave one of them out",
                ));
            }
            // What looks encoded already it would leave as it is, and `%41` be read as `A`.
            url.set_password(Some(&password.expose_secret().replace('%', "%25")))
                .map_err(|()| Failure::usage(format!("--store: the URL cannot carry a password; {FORMS}")))?;
        }
        Ok(Self::Mysql(SecretUri::parse("store", url.as_str())?))
    }

    fn parse_sqlite(path: &str) -> Result<Self, Failure> {
        if path.is_empty() || path.ends_with('/') {
            return Err(Failure::usage(format!("--store: the sqlite URL names no file; {FORMS}")));
        }
        if path == ":memory:" || path.contains('?') {
            return Err(Failure::usage(
                "--store: sqlite takes the path of a file and no parameters, as in sqlite:///var/lib/cdc/cdc.db",
            ));
        }
        Ok(Self::Sqlite(PathBuf::from(path)))
    }

    /// The SQLite file that is used when nothing else is said: in the data directory.
    pub fn default_in(data_dir: &Path) -> Self {
        Self::Sqlite(data_dir.join("cdc.db"))
    }

    /// Whether the URL itself carries a password.
    pub fn has_password(&self) -> bool {
        matches!(self, Self::Mysql(uri) if uri.has_secret())
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Mysql(uri) => uri.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exit::Exit;

    #[test]
    fn both_kinds_parse() {
        for (text, path) in [
            ("sqlite:///var/lib/cdc/cdc.db", "/var/lib/cdc/cdc.db"),
            ("sqlite://data/cdc.db", "data/cdc.db"),
            ("sqlite:cdc.db", "cdc.db"),
        ] {
            assert_eq!(StoreUrl::parse(text, None).unwrap(), StoreUrl::Sqlite(path.into()));
        }
        let url = StoreUrl::parse("mysql://cdc@db:4000/cdc", Some(&"p/w@:".into())).unwrap();
        let StoreUrl::Mysql(uri) = &url else { panic!("{url}") };
        assert_eq!(uri.expose(), "mysql://cdc:p%2Fw%40%3A@db:4000/cdc");
        assert!(url.has_password());
        assert!(!format!("{url} {url:?}").contains("p%2Fw"), "{url:?}");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_remedy_and_without_the_password() {
        for (text, wanted) in [
            ("", "not a URL"),
            ("cdc.db", "not a URL"),
            ("postgres://u:hunter2@h/db", "no store for the scheme `postgres`"),
            ("mysql://u:hunter2@h:3306", "must name one database"),
            ("mysql://u:hunter2@h:3306/a/b", "must name one database"),
            ("mysql://u:hunter2@h:port/a", "not a URL"),
            ("sqlite://", "names no file"),
            ("sqlite://a.db?mode=ro", "no parameters"),
            ("sqlite::memory:", "no parameters"),
        ] {
            let failure = StoreUrl::parse(text, None).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(wanted), "{text}: {failure}");
            assert!(failure.message.contains("sqlite://"), "{failure}");
            assert!(!failure.message.contains("hunter2"), "{failure}");
        }
        let failure = StoreUrl::parse("mysql://u:hunter2@h/db", Some(&"hunter3".into())).unwrap_err();
        assert!(failure.message.contains("leave one of them out"), "{failure}");
        assert!(!failure.message.contains("hunter"), "{failure}");
    }

    proptest! {
        #[test]
        fn every_password_arrives_as_it_is(password in "\\PC{1,40}") {
            let url = StoreUrl::parse("mysql://u@h/db", Some(&password.as_str().into())).unwrap();
            let StoreUrl::Mysql(uri) = url else { panic!() };
            let url = Url::parse(uri.expose()).unwrap();
            // As the driver decodes it; a form's text has a few more special characters.
            let encoded = url.password().unwrap().replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
            let (decoded, _) = url::form_urlencoded::parse(encoded.as_bytes()).next().unwrap();
            prop_assert_eq!(decoded, password);
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = StoreUrl::parse(&text, Some(&"hunter2".into()));
            let _ = StoreUrl::parse(&format!("mysql://{text}"), None);
        }
    }
}
