//! The client side of the `Coordinator` service.

use std::time::Duration;

use retouch_credentials::{
    Access, CredentialsError, access::Peer, explain, is_distrust, is_refusal,
};
use retouch_proto::{
    grpc::coordinator_client::CoordinatorClient,
    limits::MESSAGE_BYTES_MAX,
    worker::{Registered, Registration, Report, ReportReply},
};
use thiserror::Error;
use tonic::{Request, Status, transport::Channel};

use super::address::CoordinatorAddress;

const CONNECT: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A call that was not answered as hoped.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// Another attempt may go better.
    #[error("{0}")]
    Away(String),
    /// One of the two does not believe the other's certificate. Whoever was believed before may
    /// only have given its port to a stranger for a moment.
    #[error("{0}")]
    Distrust(String),
    /// The coordinator will never take this worker.
    #[error("{0}")]
    Refused(String),
}

/// Calls to one coordinator; the connection is made again when it breaks.
#[derive(Clone, Debug)]
pub(super) struct CoordinatorCalls {
    address: CoordinatorAddress,
    access: Access,
    connection: Option<Connection>,
}

#[derive(Clone, Debug)]
struct Connection {
    address: String,
    client: CoordinatorClient<Channel>,
}

impl CoordinatorCalls {
    /// Connects when the first call is made.
    pub(super) fn new(
        address: CoordinatorAddress,
        access: Access,
    ) -> Result<Self, CredentialsError> {
        let connection = match &address {
            CoordinatorAddress::Fixed(fixed) => Some(connect_lazily(fixed, &access)?),
            CoordinatorAddress::File(_) => None,
        };
        Ok(Self {
            address,
            access,
            connection,
        })
    }

    pub(super) async fn register(
        &mut self,
        registration: Registration,
        deadline: Duration,
    ) -> Result<Registered, CallError> {
        let request = with_deadline(registration.into(), deadline);
        let reply = self.client()?.register(request).await?.into_inner();
        Registered::try_from(reply).map_err(|error| CallError::Refused(error.to_string()))
    }

    pub(super) async fn report(
        &mut self,
        report: Report,
        deadline: Duration,
    ) -> Result<ReportReply, CallError> {
        let request = with_deadline(report.into(), deadline);
        let reply = self.client()?.report(request).await?.into_inner();
        ReportReply::try_from(reply).map_err(|error| CallError::Refused(error.to_string()))
    }

    /// After a call that failed: the coordinator may have come back under another address.
    pub(super) fn follow(&mut self) {
        if let CoordinatorAddress::File(_) = &self.address
            && let Ok(address) = self.address.resolve()
            && self
                .connection
                .as_ref()
                .is_none_or(|old| old.address != address)
        {
            tracing::info!(address, "the coordinator has a new address");
            self.connection = connect_lazily(&address, &self.access).ok();
        }
    }

    fn client(&mut self) -> Result<&mut CoordinatorClient<Channel>, CallError> {
        if self.connection.is_none() {
            let address = self.address.resolve().map_err(CallError::Away)?;
            let connection = connect_lazily(&address, &self.access);
            self.connection = Some(connection.map_err(|error| CallError::Away(error.to_string()))?);
        }
        let connection = self.connection.as_mut();
        let absent = || CallError::Away("there is no connection".to_owned());
        Ok(&mut connection.ok_or_else(absent)?.client)
    }
}

fn connect_lazily(address: &str, access: &Access) -> Result<Connection, CredentialsError> {
    let endpoint = access
        .endpoint(address, Peer::Coordinator)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let client = CoordinatorClient::new(endpoint.connect_lazy())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Ok(Connection {
        address: address.to_owned(),
        client,
    })
}

fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let text = explain(&status);
        if is_refusal(&status) {
            Self::Refused(text)
        } else if is_distrust(&status) {
            Self::Distrust(text)
        } else {
            Self::Away(text)
        }
    }
}
