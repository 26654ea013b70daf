//! Credentials for a node that has nothing but a join token.

use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData};
use tokio::time::{Instant, sleep};

use crate::{
    authority::hash_of,
    credentials::{Credentials, certificates},
    enrollment_grpc::{self, CallError},
    error::CredentialsError,
    principal::Principal,
    token::JoinToken,
};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why a node did not get credentials.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The token is for someone else.
    #[error("this join token is for {token}, not for {wanted}")]
    OtherPrincipal {
        /// Whom the token admits.
        token: Principal,
        /// Who asks.
        wanted: Principal,
    },
    /// The coordinator does not want this node, or is not the token's.
    #[error("the coordinator at {coordinator} refused: {reason}")]
    Refused {
        /// Its address.
        coordinator: String,
        /// What was said.
        reason: String,
    },
    /// Nobody answered in time.
    #[error("no coordinator answered at {coordinator} within {waited_s} s: {reason}")]
    Away {
        /// Its address.
        coordinator: String,
        /// For how long it was tried.
        waited_s: u64,
        /// What the last attempt said.
        reason: String,
    },
    /// Key or certificate can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Becomes `principal` in the token's run: makes a key, which stays here, and has it certified.
/// A coordinator that is not there yet is waited for.
///
/// # Errors
/// If the token is for someone else, the coordinator is not the token's or refuses, or none
/// answers for as long as `patience`.
pub async fn enroll(
    coordinator: &str,
    token: &JoinToken,
    principal: Principal,
    patience: Duration,
) -> Result<Credentials, EnrollError> {
    if token.principal != principal {
        return Err(EnrollError::OtherPrincipal {
            token: token.principal,
            wanted: principal,
        });
    }
    let key = KeyPair::generate().map_err(|source| CredentialsError::Issue {
        principal: principal.to_string(),
        source,
    })?;
    let begin = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let reason =
            match enrollment_grpc::enroll(coordinator, token, principal, key.der_bytes()).await {
                Ok(certificate) => return credentials(coordinator, token, certificate, &key),
                Err(CallError::Away(reason)) => reason,
                Err(CallError::Refused(reason)) => return Err(refused(coordinator, reason)),
                Err(CallError::Credentials(error)) => return Err(error.into()),
            };
        if begin.elapsed() + pause > patience {
            return Err(EnrollError::Away {
                coordinator: coordinator.to_owned(),
                waited_s: patience.as_secs(),
                reason,
            });
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The authority comes behind the certificate, and is the one that the token names.
fn credentials(
    coordinator: &str,
    token: &JoinToken,
    certificate_pem: String,
    key: &KeyPair,
) -> Result<Credentials, EnrollError> {
    let nonsense = |reason: String| refused(coordinator, reason);
    let count = certificates(&certificate_pem).map_err(nonsense)?.len();
    let authority_pem = certificate_pem
        .match_indices("-----BEGIN CERTIFICATE-----")
        .nth(count - 1)
        .map_or("", |(start, _)| &certificate_pem[start..])
        .to_owned();
    if hash_of(&authority_pem).map_err(nonsense)? != token.authority {
        return Err(nonsense(
            "its certificate does not lead to the token's authority".to_owned(),
        ));
    }
    Ok(Credentials {
        authority_pem,
        certificate_pem,
        key_pem: key.serialize_pem(),
    })
}

fn refused(coordinator: &str, reason: String) -> EnrollError {
    EnrollError::Refused {
        coordinator: coordinator.to_owned(),
        reason,
    }
}
