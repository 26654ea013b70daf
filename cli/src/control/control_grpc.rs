//! The Control service as a client of domain types (A2).

use anyhow::Context;
use retouch_coordinator::Command;
use retouch_credentials::{
    access::{Access, Peer},
    explain, is_distrust,
};
use retouch_proto::{
    RunConfig,
    grpc::{
        CheckpointRequest, ConfigRequest, ControlReply, DrainRequest, Event as EventMessage,
        EventsRequest, GroupsRequest, PauseRequest, RestartRequest, ResumeRequest, StatusRequest,
        StopRequest, VersionsRequest, control_client::ControlClient as Client,
    },
    limits::MESSAGE_BYTES_MAX,
    lookup::{GroupQuery, GroupView, VersionView},
    status::{Controlled, Event, EventKind, RunStatus},
};
use tonic::{Code, Response, Status, Streaming, transport::Channel};

use super::target::{ANSWER_MAX, Target};
use crate::exit::{Refused, Unreachable};

/// A connection to a coordinator's Control service.
#[derive(Clone)]
pub(crate) struct ControlClient {
    client: Client<Channel>,
}

/// What happened, and with `follow` what happens.
pub(crate) struct Events(Streaming<EventMessage>);

/// Whether to go on with what happens from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Only what happened so far.
    Now,
    /// What happens, too, until the coordinator ends.
    TheEnd,
}

impl ControlClient {
    pub(crate) async fn connect(target: &Target) -> anyhow::Result<Self> {
        let address = target.address()?;
        let access = target.access(&address).await?;
        Self::connect_as(&access, &address).await
    }

    /// A connection as whoever has this access.
    pub(crate) async fn connect_as(access: &Access, address: &str) -> anyhow::Result<Self> {
        let endpoint = access
            .endpoint(address, Peer::Coordinator)?
            .connect_timeout(ANSWER_MAX)
            .timeout(ANSWER_MAX);
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| unconnected(error, address))?;
        let client = Client::new(channel);
        Ok(Self {
            client: client.max_decoding_message_size(MESSAGE_BYTES_MAX),
        })
    }

    pub(crate) async fn status(&mut self) -> anyhow::Result<RunStatus> {
        let reply = answered(self.client.status(StatusRequest {}).await)?;
        RunStatus::try_from(reply)
            .context("the coordinator's status is of another version of retouch")
    }

    pub(crate) async fn tell(&mut self, command: Command) -> anyhow::Result<Controlled> {
        let reply = self.call(command).await;
        Ok(answered(reply)?.try_into()?)
    }

    async fn call(&mut self, command: Command) -> Result<Response<ControlReply>, Status> {
        let client = &mut self.client;
        match command {
            Command::Pause => client.pause(PauseRequest {}).await,
            Command::Resume => client.resume(ResumeRequest {}).await,
            Command::Stop => client.stop(StopRequest {}).await,
            Command::Checkpoint => client.checkpoint(CheckpointRequest {}).await,
            Command::Drain => client.drain(DrainRequest::default()).await,
            Command::DrainWorker(worker) => {
                let worker = worker.into();
                client.drain(DrainRequest { worker }).await
            }
            Command::RestartWorker(worker) => {
                let worker = worker.into();
                client.restart(RestartRequest { worker }).await
            }
        }
    }

    /// Groups that the query describes, newest iteration first.
    pub(crate) async fn groups(&mut self, query: GroupQuery) -> anyhow::Result<Vec<GroupView>> {
        let request = GroupsRequest::from(query);
        Ok(answered(self.client.groups(request).await)?.try_into()?)
    }

    /// What each committed iteration left behind, oldest first.
    pub(crate) async fn versions(&mut self) -> anyhow::Result<Vec<VersionView>> {
        let reply = self.client.versions(VersionsRequest {}).await;
        Ok(answered(reply)?.try_into()?)
    }

    /// The resolved run file.
    pub(crate) async fn config(&mut self) -> anyhow::Result<RunConfig> {
        let reply = answered(self.client.config(ConfigRequest {}).await)?;
        RunConfig::from_toml(&reply.config_toml)
            .context("the coordinator's run file is of another version of retouch")
    }

    /// Events after the one with this number.
    pub(crate) async fn events(&mut self, after: u64, until: Until) -> anyhow::Result<Events> {
        let request = EventsRequest {
            after_sequence: after,
            follow: until == Until::TheEnd,
        };
        Ok(Events(answered(self.client.events(request).await)?))
    }
}

impl Events {
    /// The next one; none when there are no more.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        let event = self.0.message().await.map_err(failed)?;
        Ok(event.map(Event::try_from).transpose()?)
    }
}

/// Whether the run ends with this event.
pub(super) fn is_end(event: &Event) -> bool {
    matches!(event.kind, EventKind::Finished | EventKind::Failed)
}

fn answered<T>(reply: Result<Response<T>, Status>) -> anyhow::Result<T> {
    reply.map(Response::into_inner).map_err(failed)
}

fn unconnected(error: tonic::transport::Error, address: &str) -> anyhow::Error {
    let status = Status::from_error(error.into());
    if is_distrust(&status) {
        return distrusted(&status);
    }
    let away = format!(
        "no coordinator answers at {address}; if the run is over, `retouch versions` tells what it left"
    );
    anyhow::Error::msg(explain(&status)).context(Unreachable(away))
}

/// Another attempt would end in the same way.
fn distrusted(status: &Status) -> anyhow::Error {
    let reason = explain(status);
    Refused(format!("the certificate is not believed: {reason}")).into()
}

/// tonic's own message is a wall of metadata; people need the code and the reason.
fn failed(status: Status) -> anyhow::Error {
    if is_distrust(&status) {
        return distrusted(&status);
    }
    let (reason, code) = (status.message(), status.code());
    match code {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            Unreachable(format!("the coordinator went away: {reason} ({code:?})")).into()
        }
        _ => Refused(format!("the coordinator refuses: {reason} ({code:?})")).into(),
    }
}
