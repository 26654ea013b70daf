//! The Control service as a client of domain types (A2).

use anyhow::Context;
use retouch_credentials::access::Peer;
use retouch_proto::{
    grpc::{
        DrainRequest, PauseRequest, ResumeRequest, StatusRequest, StopRequest,
        control_client::ControlClient as Client,
    },
    limits::MESSAGE_BYTES_MAX,
    status::RunStatus,
};
use tonic::{Status, transport::Channel};

use crate::control::{ANSWER_MAX, Target};

/// A connection to a coordinator's Control service.
pub(crate) struct ControlClient {
    client: Client<Channel>,
}

impl ControlClient {
    pub(crate) async fn connect(target: &Target) -> anyhow::Result<Self> {
        let address = target.address()?;
        let access = target.access(&address).await?;
        let endpoint = access
            .endpoint(&address, Peer::Coordinator)?
            .connect_timeout(ANSWER_MAX)
            .timeout(ANSWER_MAX);
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("no coordinator answers at {address}; the run may be over"))?;
        let client = Client::new(channel);
        Ok(Self {
            client: client.max_decoding_message_size(MESSAGE_BYTES_MAX),
        })
    }

    pub(crate) async fn status(&mut self) -> anyhow::Result<RunStatus> {
        let reply = self
            .client
            .status(StatusRequest {})
            .await
            .map_err(refused)?
            .into_inner();
        serde_json::from_str(&reply.status_json)
            .context("the coordinator's status is of another version of retouch")
    }

    pub(crate) async fn pause(&mut self) -> anyhow::Result<String> {
        Ok(self
            .client
            .pause(PauseRequest {})
            .await
            .map_err(refused)?
            .into_inner()
            .state)
    }

    pub(crate) async fn resume(&mut self) -> anyhow::Result<String> {
        Ok(self
            .client
            .resume(ResumeRequest {})
            .await
            .map_err(refused)?
            .into_inner()
            .state)
    }

    pub(crate) async fn drain(&mut self) -> anyhow::Result<String> {
        Ok(self
            .client
            .drain(DrainRequest {})
            .await
            .map_err(refused)?
            .into_inner()
            .state)
    }

    pub(crate) async fn stop(&mut self) -> anyhow::Result<String> {
        Ok(self
            .client
            .stop(StopRequest {})
            .await
            .map_err(refused)?
            .into_inner()
            .state)
    }
}

/// tonic's own message is a wall of metadata; people need the code and the reason.
fn refused(status: Status) -> anyhow::Error {
    anyhow::anyhow!(
        "the coordinator refused: {} ({:?})",
        status.message(),
        status.code()
    )
}
