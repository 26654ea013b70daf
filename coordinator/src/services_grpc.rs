//! The `Coordinator` and `Control` services: from messages to requests and back (A2).

use std::pin::Pin;
use std::sync::Arc;

use retouch_credentials::{Access, Authority, Principal};
use retouch_proto::grpc::control_server::{Control, ControlServer};
use retouch_proto::grpc::coordinator_server::{Coordinator, CoordinatorServer};
use retouch_proto::grpc::{
    CheckpointRequest, ConfigReply, ConfigRequest, ControlReply, DrainRequest, Event,
    EventsRequest, GroupsReply, GroupsRequest, PauseRequest, RegisterReply, RegisterRequest,
    ReportReply, ReportRequest, RestartRequest, ResumeRequest, StatusReply, StatusRequest,
    StopRequest, VersionsReply, VersionsRequest,
};
use retouch_proto::limits::MESSAGE_BYTES_MAX;
use retouch_proto::lookup::GroupQuery;
use retouch_proto::worker::{Registered, Registration, Report};
use retouch_proto::{RunId, WorkerId, status};
use tokio::sync::{broadcast, oneshot};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::lookup::{Lookup, at_work, name_owners};
use crate::machine::io::{Command, Ticket};
use crate::roster::{Impostor, Roster};
use crate::shell::{Handle, Refused, Request as ShellRequest};
use crate::store::StoreError;

/// What both services need.
#[derive(Clone)]
pub(crate) struct Services {
    /// The shell's queue.
    pub(crate) handle: Handle,
    /// Who may call.
    pub(crate) access: Access,
    /// Issues certificates for join tokens, if this coordinator does.
    pub(crate) authority: Option<Arc<Authority>>,
    /// Whose name is whose.
    pub(crate) roster: Roster,
    /// The run that workers join.
    pub(crate) run: RunId,
    /// The resolved run file, for workers.
    pub(crate) config_toml: String,
    /// What people find in the record.
    pub(crate) lookup: Lookup,
}

impl Services {
    /// Both services and the health service, ready to be served.
    pub(crate) async fn routes(self) -> Routes {
        let authority = self.authority.clone();
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<CoordinatorServer<Self>>().await;
        reporter.set_serving::<ControlServer<Self>>().await;
        let coordinator = CoordinatorServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let control = ControlServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let routes = Routes::new(coordinator)
            .add_service(control)
            .add_service(health);
        match authority {
            Some(authority) => authority.add_enrollment(routes),
            None => routes,
        }
    }

    /// Only people steer.
    fn admit_control<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.access.admit(request, &[Principal::Control]).map(drop)
    }

    fn send(&self, request: ShellRequest) -> Result<(), Status> {
        self.handle.send(request).map_err(|refused| match refused {
            Refused::Busy => Status::resource_exhausted("the coordinator is busy; come again"),
            Refused::Gone => gone(),
        })
    }

    async fn command(&self, command: Command) -> Result<Response<ControlReply>, Status> {
        let (sender, answer) = oneshot::channel();
        self.send(ShellRequest::Control(command, sender))?;
        let answer = answer.await.map_err(|_| gone())?;
        let controlled = answer.map_err(Status::failed_precondition)?;
        Ok(Response::new(controlled.into()))
    }

    async fn run_status(&self) -> Result<status::RunStatus, Status> {
        let (sender, answer) = oneshot::channel();
        self.send(ShellRequest::Status(sender))?;
        answer.await.map_err(|_| gone())
    }

    /// Reads the record on a thread that may block.
    async fn look_up<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Lookup) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let lookup = self.lookup.clone();
        let found = tokio::task::spawn_blocking(move || look(&lookup)).await;
        let found = found.map_err(|error| Status::internal(error.to_string()))?;
        found.map_err(|error| Status::internal(error.to_string()))
    }
}

fn worker(name: String) -> Result<WorkerId, Status> {
    WorkerId::new(name).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn gone() -> Status {
    Status::unavailable("the coordinator has ended")
}

impl From<Impostor> for Status {
    fn from(impostor: Impostor) -> Self {
        Self::permission_denied(impostor.to_string())
    }
}

/// Tells the shell when a caller goes away before it was answered.
struct HangUp {
    handle: Handle,
    ticket: Option<Ticket>,
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            // If the queue is full, missing heartbeats tell the same a little later.
            let _ = self.handle.send(ShellRequest::HungUp(ticket));
        }
    }
}

#[tonic::async_trait]
impl Coordinator for Services {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        let caller = self.access.admit(&request, &Principal::WORKERS)?;
        let registration = Registration::try_from(request.into_inner())?;
        self.roster
            .register(&caller, &registration.worker, registration.role)?;
        let (sender, answer) = oneshot::channel();
        self.send(ShellRequest::Register(registration, sender))?;
        let generation = answer.await.map_err(|_| gone())?;
        let (run, config_toml) = (self.run.clone(), self.config_toml.clone());
        Ok(Response::new(
            Registered {
                generation,
                run,
                config_toml,
            }
            .into(),
        ))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportReply>, Status> {
        let caller = self.access.admit(&request, &Principal::WORKERS)?;
        let report = Report::try_from(request.into_inner())?;
        self.roster.check(&caller, &report.worker)?;
        let (sender, answer) = oneshot::channel();
        let ticket = self.handle.ticket();
        self.send(ShellRequest::Report(ticket, report, sender))?;
        let mut hang_up = HangUp {
            handle: self.handle.clone(),
            ticket: Some(ticket),
        };
        let reply = answer.await.map_err(|_| gone());
        hang_up.ticket = None;
        Ok(Response::new(reply?.into()))
    }
}

#[tonic::async_trait]
impl Control for Services {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        self.admit_control(&request)?;
        let status = self.run_status().await?;
        let reply =
            StatusReply::try_from(&status).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(reply))
    }

    async fn pause(
        &self,
        request: Request<PauseRequest>,
    ) -> Result<Response<ControlReply>, Status> {
        self.admit_control(&request)?;
        self.command(Command::Pause).await
    }

    async fn resume(
        &self,
        request: Request<ResumeRequest>,
    ) -> Result<Response<ControlReply>, Status> {
        self.admit_control(&request)?;
        self.command(Command::Resume).await
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<ControlReply>, Status> {
        self.admit_control(&request)?;
        let command = match request.into_inner().worker {
            name if name.is_empty() => Command::Drain,
            name => Command::DrainWorker(worker(name)?),
        };
        self.command(command).await
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<ControlReply>, Status> {
        self.admit_control(&request)?;
        self.command(Command::Checkpoint).await
    }

    async fn restart(
        &self,
        request: Request<RestartRequest>,
    ) -> Result<Response<ControlReply>, Status> {
        self.admit_control(&request)?;
        let worker = worker(request.into_inner().worker)?;
        self.command(Command::RestartWorker(worker)).await
    }

    async fn groups(
        &self,
        request: Request<GroupsRequest>,
    ) -> Result<Response<GroupsReply>, Status> {
        self.admit_control(&request)?;
        let query = GroupQuery::try_from(request.into_inner())?;
        let status = self.run_status().await?;
        let at_work = at_work(&status);
        let mut groups = self
            .look_up(move |lookup| lookup.groups(&query, &at_work))
            .await?;
        name_owners(&mut groups, &status);
        let reply = GroupsReply::try_from(&groups[..])?;
        let bytes = reply.groups_json.len();
        if bytes >= MESSAGE_BYTES_MAX {
            let problem = format!("{} groups are {bytes} bytes; ask for fewer", groups.len());
            return Err(Status::out_of_range(problem));
        }
        Ok(Response::new(reply))
    }

    async fn versions(
        &self,
        request: Request<VersionsRequest>,
    ) -> Result<Response<VersionsReply>, Status> {
        self.admit_control(&request)?;
        let versions = self.look_up(Lookup::versions).await?;
        Ok(Response::new(VersionsReply::try_from(&versions[..])?))
    }

    async fn config(
        &self,
        request: Request<ConfigRequest>,
    ) -> Result<Response<ConfigReply>, Status> {
        // A node that is about to join must know what to have at hand; workers get it in any case.
        self.access.admit(&request, &Principal::JOINING)?;
        let config_toml = self.config_toml.clone();
        Ok(Response::new(ConfigReply { config_toml }))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<ControlReply>, Status> {
        self.admit_control(&request)?;
        self.command(Command::Stop).await
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn events(
        &self,
        request: Request<EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        self.admit_control(&request)?;
        let EventsRequest {
            after_sequence: after,
            follow,
        } = request.into_inner();
        let (sender, answer) = oneshot::channel();
        self.send(ShellRequest::Events(after, sender))?;
        let (past, future) = answer.await.map_err(|_| gone())?;
        let past = past.into_iter().map(|event| Ok(Event::from(event)));
        let past = tokio_stream::iter(past);
        Ok(Response::new(if follow {
            Box::pin(past.chain(followed(future)))
        } else {
            Box::pin(past)
        }))
    }
}

fn followed(
    events: broadcast::Receiver<status::Event>,
) -> impl Stream<Item = Result<Event, Status>> {
    BroadcastStream::new(events).map(|event| match event {
        Ok(event) => Ok(event.into()),
        Err(BroadcastStreamRecvError::Lagged(count)) => Err(Status::data_loss(format!(
            "{count} events were missed; ask again from the last one"
        ))),
    })
}
