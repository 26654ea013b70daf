//! The `Enrollment` service and its client side (A2).

use std::{sync::Arc, time::Duration};

use retouch_proto::{
    grpc::{
        EnrollReply, EnrollRequest,
        enrollment_client::EnrollmentClient,
        enrollment_server::{Enrollment, EnrollmentServer},
    },
    limits::ENROLL_MESSAGE_BYTES_MAX,
};
use tonic::{Request, Response, Status, service::Routes, transport::ClientTlsConfig};

use crate::{
    access,
    authority::{Authority, Refusal},
    error::{CredentialsError, explain, is_distrust, is_refusal},
    pinned::PinnedAuthority,
    principal::Principal,
    token::JoinToken,
};

const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Issues certificates to nodes with a token.
#[derive(Debug)]
struct EnrollmentService(Arc<Authority>);

impl Authority {
    /// Adds the service that takes join tokens.
    pub fn add_enrollment(self: Arc<Self>, routes: Routes) -> Routes {
        let server = EnrollmentServer::new(EnrollmentService(self))
            .max_decoding_message_size(ENROLL_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(ENROLL_MESSAGE_BYTES_MAX);
        routes.add_service(server)
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollReply>, Status> {
        let from = request.remote_addr();
        let EnrollRequest {
            token,
            principal,
            public_key,
        } = request.into_inner();
        let principal: Principal = principal.parse().map_err(invalid)?;
        let token: JoinToken = token.parse().map_err(invalid)?;
        let issued = self.0.enroll(&token, principal, &public_key);
        tracing::info!(%principal, ?from, admitted = issued.is_ok(), "a node came with a join token");
        let certificate_pem = issued.map_err(|refusal| match refusal {
            Refusal::Stranger => Status::unauthenticated(refusal.to_string()),
            Refusal::OtherPrincipal { .. } => Status::permission_denied(refusal.to_string()),
            Refusal::Key { .. } => invalid(refusal),
            Refusal::Broken => Status::internal(refusal.to_string()),
        })?;
        Ok(Response::new(EnrollReply { certificate_pem }))
    }
}

fn invalid(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A call that was not answered as hoped.
pub(crate) enum CallError {
    /// Another attempt may go better.
    Away(String),
    /// It won't.
    Refused(String),
    /// Nothing was sent.
    Credentials(CredentialsError),
}

/// The certificate, and behind it the authority's.
pub(crate) async fn enroll(
    coordinator: &str,
    token: &JoinToken,
    principal: Principal,
    public_key: &[u8],
) -> Result<String, CallError> {
    access::use_ring();
    let endpoint = access::parse("https", coordinator).map_err(CallError::Credentials)?;
    let tls = ClientTlsConfig::new().domain_name(Principal::Coordinator.dns_name());
    let pinned = Arc::new(PinnedAuthority::new(token.authority));
    let endpoint = endpoint.tls_config_with_verifier(tls, pinned);
    let endpoint = endpoint
        .map_err(|error| CallError::Refused(error.to_string()))?
        .connect_timeout(ANSWER_MAX)
        .timeout(ANSWER_MAX);
    let mut client = EnrollmentClient::new(endpoint.connect_lazy())
        .max_decoding_message_size(ENROLL_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ENROLL_MESSAGE_BYTES_MAX);
    let request = EnrollRequest {
        token: token.reveal(),
        principal: principal.to_string(),
        public_key: public_key.to_vec(),
    };
    match client.enroll(request).await {
        Ok(reply) => Ok(reply.into_inner().certificate_pem),
        Err(status) if is_refusal(&status) || is_distrust(&status) => {
            Err(CallError::Refused(explain(&status)))
        }
        Err(status) => Err(CallError::Away(explain(&status))),
    }
}

/// A call to the service by someone with a certificate.
#[cfg(test)]
pub(crate) async fn call(endpoint: &tonic::transport::Endpoint) -> Result<(), Status> {
    let mut client = EnrollmentClient::new(endpoint.connect_lazy());
    client.enroll(EnrollRequest::default()).await.map(drop)
}
