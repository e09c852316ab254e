//! Certificates for servers and clients of tests, made anew for each.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// An authority, a server's certificate of its for `localhost` (and not for `127.0.0.1`), a client's of its, and one of
/// each from another authority. All are PEM files in a directory that goes with this value.
pub struct Pki {
    folder: TempDir,
}

impl Pki {
    /// Makes all of them.
    pub fn create() -> Self {
        let pki = Self { folder: TempDir::new().expect("a directory") };
        for (authority, prefix) in [("cdc test", ""), ("somebody else", "other-")] {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, authority);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let ca = CertifiedIssuer::self_signed(params, key()).expect("an authority");
            pki.write(&format!("{prefix}ca.pem"), &ca.pem());
            for (name, purpose) in [
                ("server", ExtendedKeyUsagePurpose::ServerAuth),
                ("client", ExtendedKeyUsagePurpose::ClientAuth),
            ] {
                let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
                params.distinguished_name.push(DnType::CommonName, name);
                params.extended_key_usages = vec![purpose];
                let key = key();
                let certificate = params.signed_by(&key, &ca).expect("a certificate");
                pki.write(&format!("{prefix}{name}.pem"), &certificate.pem());
                pki.write(&format!("{prefix}{name}-key.pem"), &key.serialize_pem());
            }
        }
        pki
    }

    /// Where a file is: `ca.pem`, `server.pem`, `server-key.pem`, `client.pem`, `client-key.pem`, and the same with
    /// `other-` in front.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its text.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("its text")
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}
