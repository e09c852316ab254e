//! What this binary calls itself.

/// The release version that the API and `cdc version` answer.
///
/// `cdc cli` of TiCDC parses it as a semantic version and refuses a server below 6.2.0; the first part is the
/// version of TiCDC's HTTP contract that is kept, the build metadata is this project's own version.
pub const RELEASE: &str = concat!("v8.5.7+cdc.", env!("CARGO_PKG_VERSION"));

/// The commit it was built from, when the build said so (`CDC_GIT_HASH`).
pub const GIT_HASH: &str = match option_env!("CDC_GIT_HASH") {
    Some(hash) => hash,
    None => "unknown",
};

/// What `cdc version` prints: the lines of TiCDC's, so that scripts find them.
pub fn text() -> String {
    let build_time = option_env!("CDC_BUILD_TIME").unwrap_or("unknown");
    let branch = option_env!("CDC_GIT_BRANCH").unwrap_or("unknown");
    format!(
        "Release Version: {RELEASE}\nGit Commit Hash: {GIT_HASH}\nGit Branch: {branch}\nUTC Build Time: {build_time}\n\
         Rust Version: {rust}\nFailpoint Build: false\n",
        rust = env!("CARGO_PKG_RUST_VERSION"),
    )
}

/// Reads a release version as a semantic version, the way TiCDC's client does: without a leading `v`, a
/// `-<n>-g<hash>` of `git describe`, `-fips` and `-dirty`. `None` when it is none.
pub fn parse(text: &str) -> Option<semver::Version> {
    let mut text = text.trim().trim_start_matches('v');
    for suffix in ["-dirty", "-dev", "-fips"] {
        text = text.strip_suffix(suffix).unwrap_or(text);
    }
    if let Some((head, hash)) = text.rsplit_once("-g")
        && hash.len() >= 7
        && hash.bytes().all(|b| b.is_ascii_hexdigit())
        && let Some((head, count)) = head.rsplit_once('-')
        && count.bytes().all(|b| b.is_ascii_digit())
    {
        text = head;
    }
    semver::Version::parse(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_one_that_ticdcs_client_accepts() {
        let own = parse(RELEASE).unwrap();
        assert!(own >= semver::Version::new(6, 2, 0), "{own}");
        assert!(own.build.as_str().starts_with("cdc."), "{own}");
        assert!(text().starts_with("Release Version: v8.5.7+cdc."));
    }

    #[test]
    fn git_describe_suffixes_are_not_part_of_a_version() {
        for (text, wanted) in [
            ("v8.1.0", "8.1.0"),
            ("v8.1.0-12-gdeadbeef", "8.1.0"),
            ("v8.1.0-12-gdeadbeef-dirty", "8.1.0"),
            ("v8.5.0-alpha-44-g1234567-dev", "8.5.0-alpha"),
            ("v7.5.1-fips", "7.5.1"),
        ] {
            assert_eq!(parse(text), semver::Version::parse(wanted).ok(), "{text}");
        }
        for text in ["", "latest", "8.1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
