//! The `Coordinator` and `Control` services: from messages to requests and back (A2).

use std::pin::Pin;
use std::sync::Arc;

use retouch_credentials::{Access, Authority, Principal};
use retouch_proto::grpc::control_server::{Control, ControlServer};
use retouch_proto::grpc::coordinator_server::{Coordinator, CoordinatorServer};
use retouch_proto::grpc::{
    ControlReply, DrainRequest, Event, EventsRequest, PauseRequest, RegisterReply, RegisterRequest,
    ReportReply, ReportRequest, ResumeRequest, StatusReply, StatusRequest, StopRequest,
};
use retouch_proto::limits::MESSAGE_BYTES_MAX;
use retouch_proto::worker::{Registered, Registration, Report};
use retouch_proto::{RunId, status};
use tokio::sync::{broadcast, oneshot};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::machine::io::{Command, Ticket};
use crate::roster::{Impostor, Roster};
use crate::shell::{Handle, Refused, Request as ShellRequest};

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
        let state = answer.await.map_err(|_| gone())?;
        Ok(Response::new(ControlReply {
            state: state.to_string(),
        }))
    }
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
        let (sender, answer) = oneshot::channel();
        self.send(ShellRequest::Status(sender))?;
        let status = answer.await.map_err(|_| gone())?;
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
        self.command(Command::Drain).await
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
        let after = request.into_inner().after_sequence;
        let (sender, answer) = oneshot::channel();
        self.send(ShellRequest::Events(sender))?;
        let (past, future) = answer.await.map_err(|_| gone())?;
        let past = past.into_iter().filter(move |event| event.sequence > after);
        let past = tokio_stream::iter(past.map(|event| Ok(Event::from(event))));
        Ok(Response::new(Box::pin(past.chain(followed(future)))))
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
