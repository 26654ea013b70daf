//! The client side of the `Coordinator` service.

use std::time::Duration;

use retouch_proto::{
    grpc::coordinator_client::CoordinatorClient,
    limits::MESSAGE_BYTES_MAX,
    worker::{Registered, Registration, Report, ReportReply},
};
use thiserror::Error;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::token::Token;

const CONNECT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A call that was not answered as hoped.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// Another attempt may go better.
    #[error("{0}")]
    Away(String),
    /// The coordinator will never take this worker.
    #[error("{0}")]
    Refused(String),
}

/// Calls to one coordinator; the connection is made again when it breaks.
#[derive(Clone, Debug)]
pub(super) struct CoordinatorCalls {
    client: CoordinatorClient<Channel>,
    token: Token,
}

impl CoordinatorCalls {
    pub(super) fn new(address: &str, token: Token) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        let client = CoordinatorClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { client, token })
    }

    pub(super) async fn register(
        &mut self,
        registration: Registration,
        deadline: Duration,
    ) -> Result<Registered, CallError> {
        let mut request = self.token.request(registration.into());
        request.set_timeout(deadline);
        let reply = self.client.register(request).await?.into_inner();
        Registered::try_from(reply).map_err(|error| CallError::Refused(error.to_string()))
    }

    pub(super) async fn report(
        &mut self,
        report: Report,
        deadline: Duration,
    ) -> Result<ReportReply, CallError> {
        let mut request = self.token.request(report.into());
        request.set_timeout(deadline);
        let reply = self.client.report(request).await?.into_inner();
        ReportReply::try_from(reply).map_err(|error| CallError::Refused(error.to_string()))
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let text = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::Unimplemented
            | Code::OutOfRange => Self::Refused(text),
            _ => Self::Away(text),
        }
    }
}
