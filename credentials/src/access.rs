//! From credentials to servers, endpoints, and the check of every call.

use std::{error::Error, sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;
use tonic::{
    Request, Status,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig},
};

use crate::{
    credentials::Credentials,
    error::{CredentialsError, causes},
    handshake::Handshake,
    principal::{self, Principal, worker_dns_name},
};

/// A peer must have shown its certificate by then.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// How a process proves who it is, and whom it believes.
#[derive(Clone, Debug)]
pub enum Access {
    /// Plain connections, and everybody may do everything: for tests and benchmarks within one
    /// process. No command line leads here.
    Open,
    /// Mutual TLS, and every call is checked for the caller's principal.
    Mutual(Arc<Credentials>),
}

/// What becomes of callers without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strangers {
    /// Their connection ends in the handshake.
    Refused,
    /// They may connect; every service but that which takes join tokens refuses them.
    MayEnroll,
}

/// Whom a connection must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The run's coordinator.
    Coordinator,
    /// A worker of any role.
    Worker,
}

/// Who calls, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Access is open.
    Anyone,
    /// What the certificate says.
    Known(Vec<Principal>),
}

impl Caller {
    /// Whether the caller may act as this principal.
    pub fn may_be(&self, principal: Principal) -> bool {
        match self {
            Self::Anyone => true,
            Self::Known(known) => known.contains(&principal),
        }
    }
}

impl From<Credentials> for Access {
    fn from(credentials: Credentials) -> Self {
        Self::Mutual(Arc::new(credentials))
    }
}

impl Access {
    /// A server to which services can be added.
    ///
    /// # Errors
    /// If certificate or key can't be used.
    pub fn server(&self, strangers: Strangers) -> Result<Server, CredentialsError> {
        let Self::Mutual(credentials) = self else {
            return Ok(Server::builder());
        };
        use_ring();
        let tls = ServerTlsConfig::new()
            .identity(identity(credentials))
            .client_ca_root(Certificate::from_pem(&credentials.authority_pem))
            .client_auth_optional(strangers == Strangers::MayEnroll)
            .timeout(HANDSHAKE_MAX);
        Server::builder()
            .tls_config(tls)
            .map_err(|error| CredentialsError::Unusable(chain(&error)))
    }

    /// An endpoint that only connects to the right kind of peer.
    ///
    /// # Errors
    /// If the address is not `host:port`, or certificate or key can't be used.
    pub fn endpoint(&self, address: &str, peer: Peer) -> Result<Endpoint, CredentialsError> {
        let Self::Mutual(credentials) = self else {
            return parse("http", address);
        };
        let tls = ClientTlsConfig::new()
            .identity(identity(credentials))
            .ca_certificate(Certificate::from_pem(&credentials.authority_pem))
            .domain_name(peer.dns_name())
            .timeout(HANDSHAKE_MAX);
        use_ring();
        parse("https", address)?
            .tls_config(tls)
            .map_err(|error| CredentialsError::Unusable(chain(&error)))
    }

    /// Who calls, if it is one of those who may.
    ///
    /// # Errors
    /// `Unauthenticated` without a certificate, `PermissionDenied` with another principal's.
    pub fn admit<T>(&self, request: &Request<T>, allowed: &[Principal]) -> Result<Caller, Status> {
        if let Self::Open = self {
            return Ok(Caller::Anyone);
        }
        let wanted = principal::list(allowed);
        let certificates = request.peer_certs();
        let certificate = certificates.as_ref().and_then(|chain| chain.first());
        let certificate = certificate.ok_or_else(|| {
            Status::unauthenticated(format!(
                "no client certificate was presented; this call needs one of {wanted}"
            ))
        })?;
        let known = principals(certificate);
        if known.iter().any(|principal| allowed.contains(principal)) {
            return Ok(Caller::Known(known));
        }
        Err(Status::permission_denied(format!(
            "the client certificate is for {}, this call needs one of {wanted}",
            if known.is_empty() {
                "nobody of a run".to_owned()
            } else {
                principal::list(&known)
            }
        )))
    }

    /// The same for plain sockets between processes of one role.
    ///
    /// # Errors
    /// If certificate or key can't be used.
    pub fn handshake(&self, peer: Principal) -> Result<Handshake, CredentialsError> {
        match self {
            Self::Open => Ok(Handshake::open()),
            Self::Mutual(credentials) => Handshake::mutual(credentials, peer),
        }
    }
}

impl Peer {
    fn dns_name(self) -> String {
        match self {
            Self::Coordinator => Principal::Coordinator.dns_name(),
            Self::Worker => worker_dns_name(),
        }
    }
}

/// The principals that a verified certificate names.
pub(crate) fn principals(certificate: &CertificateDer<'_>) -> Vec<Principal> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else {
        return Vec::new();
    };
    let names = certificate.valid_dns_names();
    names.filter_map(Principal::of_dns_name).collect()
}

pub(crate) fn parse(scheme: &str, address: &str) -> Result<Endpoint, CredentialsError> {
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"));
    endpoint.map_err(|error| CredentialsError::Address {
        address: address.to_owned(),
        reason: chain(&error),
    })
}

/// Makes ring what TLS computes with in this process, for libraries that build TLS by themselves.
pub fn use_ring() {
    // Somebody else may have set it, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn identity(credentials: &Credentials) -> Identity {
    Identity::from_pem(&credentials.certificate_pem, &credentials.key_pem)
}

fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
