//! A run's own certificate authority.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use retouch_proto::ContentHash;

use crate::{
    credentials::{AUTHORITY_FILE, Credentials, certificates},
    error::CredentialsError,
    files,
    principal::Principal,
    token::JoinToken,
};

/// The token of a principal, beside its certificate.
pub const TOKEN_FILE: &str = "token";

const AUTHORITY_FOLDER: &str = "authority";
const AUTHORITY_KEY_FILE: &str = "ca.key";
const SECRET_FILE: &str = "secret";
/// Uncompressed point of P-256.
const PUBLIC_KEY_BYTES: usize = 65;
/// Longer than any run.
const VALIDITY: Duration = Duration::from_secs(366 * 24 * 3600);

/// Issues certificates and knows every principal's token.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    hash: ContentHash,
    /// What tokens are derived from.
    secret: [u8; 32],
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// A key of which only the public half is here.
struct PublicKey<'a>(&'a [u8]);

impl PublicKeyData for PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Why a node gets no certificate.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the join token is not this run's")]
    Stranger,
    #[error("this join token is for {token}, it does not admit {wanted}")]
    OtherPrincipal { token: Principal, wanted: Principal },
    #[error("a public key of {PUBLIC_KEY_BYTES} bytes is expected, {found} came")]
    Key { found: usize },
    #[error("the certificate could not be issued")]
    Broken,
}

impl Authority {
    /// Opens the authority in `folder/authority`, or makes one.
    ///
    /// # Errors
    /// If the files can't be read or written, or strangers can read the secrets.
    pub fn open_or_create(folder: &Path) -> Result<Self, CredentialsError> {
        let own = folder.join(AUTHORITY_FOLDER);
        // Written last: where it is, everything is.
        if own.join(AUTHORITY_KEY_FILE).exists() {
            Self::open(&own)
        } else {
            Self::create(&own)
        }
    }

    fn open(own: &Path) -> Result<Self, CredentialsError> {
        let key_path = own.join(AUTHORITY_KEY_FILE);
        let key = KeyPair::from_pem(&files::read_secret(&key_path)?);
        let key = key.map_err(|_| bad(&key_path, "holds no private key in PEM form"))?;
        let secret_path = own.join(SECRET_FILE);
        let secret = blake3::Hash::from_hex(files::read_secret(&secret_path)?.trim());
        let secret = secret.map_err(|_| bad(&secret_path, "is not 64 hex digits"))?;
        let certificate_path = own.join(AUTHORITY_FILE);
        let certificate_pem = files::read(&certificate_path)?;
        let hash = hash_of(&certificate_pem).map_err(|text| bad(&certificate_path, text))?;
        Ok(Self {
            issuer: Issuer::new(authority_params(&key), key),
            certificate_pem,
            hash,
            secret: *secret.as_bytes(),
        })
    }

    fn create(own: &Path) -> Result<Self, CredentialsError> {
        let issue = |source| CredentialsError::Issue {
            principal: "the authority".to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = authority_params(&key).self_signed(&key).map_err(issue)?;
        let secret = random_secret()?;
        files::make_folder(own)?;
        files::write(&own.join(AUTHORITY_FILE), &certificate.pem())?;
        files::write(
            &own.join(SECRET_FILE),
            blake3::Hash::from(secret).to_hex().as_str(),
        )?;
        files::write(&own.join(AUTHORITY_KEY_FILE), &key.serialize_pem())?;
        Self::open(own)
    }

    /// A new certificate with its key.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn issue(&self, principal: Principal) -> Result<Credentials, CredentialsError> {
        let issue = |source| CredentialsError::Issue {
            principal: principal.to_string(),
            source,
        };
        let key = KeyPair::generate().map_err(issue)?;
        Ok(Credentials {
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: self.certify(principal, &key).map_err(issue)?,
            key_pem: key.serialize_pem(),
        })
    }

    /// The token with which a node becomes `principal`.
    pub fn token(&self, principal: Principal) -> JoinToken {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(principal.as_str().as_bytes());
        JoinToken::new(principal, self.hash, hasher.finalize())
    }

    /// Writes a folder with certificate, key and token for every principal: new certificates
    /// at each call, the same tokens for ever.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write_all(&self, folder: &Path) -> Result<(), CredentialsError> {
        for principal in Principal::ALL {
            let own = principal_folder(folder, principal);
            self.issue(principal)?.write(&own)?;
            if principal != Principal::Coordinator {
                files::write(&own.join(TOKEN_FILE), &self.token(principal).reveal())?;
            }
        }
        Ok(())
    }

    /// Writes what [`Self::write_all`] does, unless it is there.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_missing(&self, folder: &Path) -> Result<(), CredentialsError> {
        // Written last: where it is, everything is.
        let last = principal_folder(folder, Principal::Control).join(TOKEN_FILE);
        if last.exists() {
            return Ok(());
        }
        self.write_all(folder)
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for the holder of a token, whose key stays with it.
    pub(crate) fn enroll(
        &self,
        token: &JoinToken,
        wanted: Principal,
        public_key: &[u8],
    ) -> Result<String, Refusal> {
        let admits = Principal::JOINING.contains(&token.principal);
        if !admits || !token.is(&self.token(token.principal)) {
            return Err(Refusal::Stranger);
        }
        if token.principal != wanted {
            let token = token.principal;
            return Err(Refusal::OtherPrincipal { token, wanted });
        }
        if public_key.len() != PUBLIC_KEY_BYTES {
            let found = public_key.len();
            return Err(Refusal::Key { found });
        }
        let issued = self.certify(wanted, &PublicKey(public_key));
        issued.map_err(|error| {
            tracing::error!(%error, principal = %wanted, "a certificate could not be issued");
            Refusal::Broken
        })
    }

    /// The certificate, and behind it the authority's, so that a joining node can recognise it.
    fn certify(
        &self,
        principal: Principal,
        key: &impl PublicKeyData,
    ) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::new(principal.dns_names())?;
        params.distinguished_name = named(&principal.dns_name());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages(principal);
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params);
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(certificate.pem() + &self.certificate_pem)
    }
}

/// The folder of one principal's credentials.
pub fn principal_folder(folder: &Path, principal: Principal) -> PathBuf {
    folder.join(principal.as_str())
}

/// Workers serve and call, the coordinator only serves, people only call.
fn usages(principal: Principal) -> Vec<ExtendedKeyUsagePurpose> {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    match principal {
        Principal::Coordinator => vec![ServerAuth],
        Principal::Worker(_) => vec![ServerAuth, ClientAuth],
        Principal::Control => vec![ClientAuth],
    }
}

/// Depends on the key alone, so that the issuer is the same whenever it is opened; two runs'
/// authorities have different names, and a certificate of the other run a clear error.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let hash = blake3::hash(key.der_bytes()).to_hex();
    params.distinguished_name = named(&format!("retouch run {}", &hash[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_validity(params: &mut CertificateParams) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Clocks of a cluster may differ, even by days, and only the end of its validity protects a run from a leaked key.
    params.not_before = epoch;
    params.not_after = epoch + now.unwrap_or_default() + VALIDITY;
}

fn random_secret() -> Result<[u8; 32], CredentialsError> {
    let mut secret = [0; 32];
    let provider = rustls::crypto::ring::default_provider();
    provider
        .secure_random
        .fill(&mut secret)
        .map_err(|_| CredentialsError::Unusable("the system has no randomness".to_owned()))?;
    Ok(secret)
}

/// The hash by which tokens name an authority.
pub(crate) fn hash_of(certificate_pem: &str) -> Result<ContentHash, String> {
    Ok(ContentHash::of(&certificates(certificate_pem)?[0]))
}

fn bad(path: &Path, problem: impl Into<String>) -> CredentialsError {
    CredentialsError::File {
        path: path.to_owned(),
        problem: problem.into(),
    }
}
