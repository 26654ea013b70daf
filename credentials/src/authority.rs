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
    credentials::{AUTHORITY_FILE, CERTIFICATE_FILE, Credentials, KEY_FILE, certificates},
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
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Of a certificate. Those in the run folder are renewed in time; a copy elsewhere is good for as long as a run.
const VALIDITY: Duration = DAY.saturating_mul(366);
/// Of the authority's own, which is never renewed: nodes elsewhere know it by its hash. (Its dates are for other tools:
/// TLS looks at those of the certificates below it alone, so old folders whose authority has a shorter one stay good.)
const AUTHORITY_VALIDITY: Duration = DAY.saturating_mul(366 * 50);
/// A certificate that is valid for less is renewed.
const RENEW_BEFORE: Duration = DAY.saturating_mul(60);

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

/// Of a certificate that is being made, since 1970.
#[derive(Clone, Copy)]
pub(crate) struct Dates {
    pub(crate) not_before: Duration,
    pub(crate) not_after: Duration,
}

impl Dates {
    /// Valid since ever: what limits a certificate that was stolen is its end, and clocks of a cluster may differ by days.
    pub(crate) fn until(now: SystemTime, validity: Duration) -> Self {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            not_before: Duration::ZERO,
            not_after: now + validity,
        }
    }

    /// Of a certificate that is issued now.
    pub(crate) fn of_certificate(now: SystemTime) -> Self {
        Self::until(now, VALIDITY)
    }

    fn of_authority(now: SystemTime) -> Self {
        Self::until(now, AUTHORITY_VALIDITY)
    }

    fn set(self, params: &mut CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + self.not_before;
        params.not_after = epoch + self.not_after;
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
            Self::create(&own, Dates::of_authority(SystemTime::now()))
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
            issuer: Issuer::new(authority_params(&key, Dates::of_authority(UNIX_EPOCH)), key),
            certificate_pem,
            hash,
            secret: *secret.as_bytes(),
        })
    }

    pub(crate) fn create(own: &Path, dates: Dates) -> Result<Self, CredentialsError> {
        let issue = |source| CredentialsError::Issue {
            principal: "the authority".to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = authority_params(&key, dates)
            .self_signed(&key)
            .map_err(issue)?;
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
        self.issue_with(principal, Dates::of_certificate(SystemTime::now()))
    }

    pub(crate) fn issue_with(
        &self,
        principal: Principal,
        dates: Dates,
    ) -> Result<Credentials, CredentialsError> {
        let issue = |source| CredentialsError::Issue {
            principal: principal.to_string(),
            source,
        };
        let key = KeyPair::generate().map_err(issue)?;
        Ok(Credentials {
            authority_pem: self.certificate_pem.clone(),
            certificate_pem: self.certify(principal, &key, dates).map_err(issue)?,
            key_pem: key.serialize_pem(),
        })
    }

    /// The token with which a node becomes `principal`.
    pub fn token(&self, principal: Principal) -> JoinToken {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        // Tokens of a run stay what they were, whatever its roles are called.
        hasher.update(principal.former_name().as_bytes());
        JoinToken::new(principal, self.hash, hasher.finalize())
    }

    /// Makes a folder complete, with certificate, key and token for every principal. What is there stays, except that
    /// certificates of this authority that expire within 60 days, or are not valid now for another reason, are renewed:
    /// keys and tokens are the same for ever.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_missing(&self, folder: &Path) -> Result<(), CredentialsError> {
        self.write_missing_at(folder, SystemTime::now())
    }

    pub(crate) fn write_missing_at(
        &self,
        folder: &Path,
        now: SystemTime,
    ) -> Result<(), CredentialsError> {
        for principal in Principal::ALL {
            let own = principal_folder(folder, principal);
            // Written last: where it is, the others are.
            if own.join(KEY_FILE).exists() {
                self.renew(&own, principal, now)?;
            } else {
                let dates = Dates::of_certificate(now);
                self.issue_with(principal, dates)?.write(&own)?;
            }
            let token = own.join(TOKEN_FILE);
            if principal != Principal::Coordinator && !token.exists() {
                files::write(&token, &self.token(principal).reveal())?;
            }
        }
        Ok(())
    }

    /// Replaces one file: whoever reads the folder meanwhile finds a certificate that fits the key.
    fn renew(
        &self,
        own: &Path,
        principal: Principal,
        now: SystemTime,
    ) -> Result<(), CredentialsError> {
        // What is damaged is not for us to hide: who loads it says so.
        let Ok(old) = Credentials::read(own) else {
            return Ok(());
        };
        let lasts = old
            .validity()
            .is_some_and(|validity| validity.lasts(now, RENEW_BEFORE));
        if lasts || old.authority_pem != self.certificate_pem {
            return Ok(());
        }
        let issue = |source| CredentialsError::Issue {
            principal: principal.to_string(),
            source,
        };
        let key = KeyPair::from_pem(&old.key_pem).map_err(issue)?;
        let dates = Dates::of_certificate(now);
        let certificate = self.certify(principal, &key, dates).map_err(issue)?;
        let file = own.join(CERTIFICATE_FILE);
        files::write(&file, &certificate)?;
        tracing::info!(file = %file.display(), "a certificate was renewed");
        Ok(())
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
        let issued = self.certify(
            wanted,
            &PublicKey(public_key),
            Dates::of_certificate(SystemTime::now()),
        );
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
        dates: Dates,
    ) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::new(principal.dns_names())?;
        params.distinguished_name = named(&principal.dns_name());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages(principal);
        params.use_authority_key_identifier_extension = true;
        dates.set(&mut params);
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(certificate.pem() + &self.certificate_pem)
    }
}

/// The folder of one principal's credentials; where there is only one by its former name, that.
pub fn principal_folder(folder: &Path, principal: Principal) -> PathBuf {
    let own = folder.join(principal.as_str());
    let former = folder.join(principal.former_name());
    match !own.is_dir() && former.is_dir() {
        true => former,
        false => own,
    }
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
fn authority_params(key: &KeyPair, dates: Dates) -> CertificateParams {
    let mut params = CertificateParams::default();
    let hash = blake3::hash(key.der_bytes()).to_hex();
    params.distinguished_name = named(&format!("retouch run {}", &hash[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dates.set(&mut params);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
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
