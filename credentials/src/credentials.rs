//! What one process holds: the authority's certificate, its own, and its key.

use std::{fmt, path::Path, time::SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{access::principals, error::CredentialsError, files, principal, validity::Validity};

/// The authority's certificate, or those of several, as PEM.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// The process's certificate and what leads to the authority, as PEM.
pub const CERTIFICATE_FILE: &str = "cert.pem";
/// The process's private key, as PEM.
pub const KEY_FILE: &str = "key.pem";

/// A certificate, its key, and whom to trust.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) authority_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Credentials {
    /// Reads `ca.pem`, `cert.pem` and `key.pem`.
    ///
    /// # Errors
    /// If one is missing or holds something else, strangers can read the key, or the certificate is not valid now: nobody
    /// would believe it.
    pub fn load(folder: &Path) -> Result<Self, CredentialsError> {
        Self::load_at(folder, SystemTime::now())
    }

    pub(crate) fn load_at(folder: &Path, now: SystemTime) -> Result<Self, CredentialsError> {
        let credentials = Self::read(folder)?;
        match credentials
            .validity()
            .and_then(|validity| validity.problem(now))
        {
            Some(problem) => Err(CredentialsError::Dates {
                holder: credentials.holder(),
                folder: folder.to_owned(),
                problem,
            }),
            None => Ok(credentials),
        }
    }

    /// Whatever the dates.
    pub(crate) fn read(folder: &Path) -> Result<Self, CredentialsError> {
        let credentials = Self {
            authority_pem: files::read(&folder.join(AUTHORITY_FILE))?,
            certificate_pem: files::read(&folder.join(CERTIFICATE_FILE))?,
            key_pem: files::read_secret(&folder.join(KEY_FILE))?,
        };
        let problem = |file: &str, problem: String| CredentialsError::File {
            path: folder.join(file),
            problem,
        };
        credentials
            .authorities()
            .map_err(|text| problem(AUTHORITY_FILE, text))?;
        credentials
            .chain()
            .map_err(|text| problem(CERTIFICATE_FILE, text))?;
        credentials.key().map_err(|text| problem(KEY_FILE, text))?;
        Ok(credentials)
    }

    /// Writes the three files, for their owner alone.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn write(&self, folder: &Path) -> Result<(), CredentialsError> {
        files::make_folder(folder)?;
        files::write(&folder.join(AUTHORITY_FILE), &self.authority_pem)?;
        files::write(&folder.join(CERTIFICATE_FILE), &self.certificate_pem)?;
        files::write(&folder.join(KEY_FILE), &self.key_pem)
    }

    /// From when until when the certificate is valid.
    pub(crate) fn validity(&self) -> Option<Validity> {
        Validity::of(self.chain().ok()?.first()?)
    }

    /// Whom the certificate speaks for.
    fn holder(&self) -> String {
        let chain = self.chain().unwrap_or_default();
        let known = chain.first().map(principals).unwrap_or_default();
        principal::list(&known)
    }

    pub(crate) fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        certificates(&self.authority_pem)
    }

    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        certificates(&self.certificate_pem)
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        // The parser's error could repeat what it read.
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|_| "holds no private key in PEM form".to_owned())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// At least one certificate.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("holds no certificate in PEM form".to_owned()),
    }
}
