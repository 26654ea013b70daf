//! A coordinator that says what a test tells it to.

use std::{net::SocketAddr, time::Duration};

use retouch_proto::{
    grpc::{
        RegisterReply, RegisterRequest, ReportReply, ReportRequest,
        coordinator_server::{Coordinator, CoordinatorServer},
    },
    worker::{self, Registered, Registration, Report},
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// Every wait of a test ends by then.
const PATIENCE: Duration = Duration::from_secs(20);

type Answer<T> = oneshot::Sender<Result<T, Status>>;

#[derive(Debug)]
enum Call {
    Register(Registration, Answer<Registered>),
    Report(Report, Answer<worker::ReportReply>),
}

#[derive(Debug)]
struct Service(mpsc::Sender<Call>);

/// The calls of a worker, one after the other.
#[derive(Debug)]
pub(super) struct FakeCoordinator {
    pub(super) address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    /// The service's own runtime: shutting it down closes connections as the end of a
    /// process does.
    runtime: Option<Runtime>,
}

impl Drop for FakeCoordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A registration that waits for its answer.
#[derive(Debug)]
pub(super) struct OpenRegistration {
    registration: Registration,
    answer: Answer<Registered>,
}

/// A report that waits for its answer.
#[derive(Debug)]
pub(super) struct OpenReport {
    pub(super) report: Report,
    answer: Answer<worker::ReportReply>,
}

impl OpenReport {
    pub(super) fn answer(self, reply: worker::ReportReply) -> Report {
        // The worker may have sent a newer report already.
        let _ = self.answer.send(Ok(reply));
        self.report
    }
}

impl FakeCoordinator {
    pub(super) async fn start(address: &str) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (sender, calls) = mpsc::channel(16);
        let address = address.to_owned();
        let listening = runtime.spawn(async move { TcpListener::bind(address).await.unwrap() });
        let listener = listening.await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(CoordinatorServer::new(Service(sender)));
        runtime.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self {
            address,
            calls,
            runtime: Some(runtime),
        }
    }

    /// The port is free again afterwards.
    pub(super) async fn kill(mut self) {
        let runtime = self.runtime.take().expect("it runs until it is killed");
        let ending = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE));
        ending.await.unwrap();
    }

    /// Answers the next registration.
    pub(super) async fn admit(&mut self, answer: Result<Registered, Status>) -> Registration {
        let open = self.registration().await;
        let _ = open.answer.send(answer);
        open.registration
    }

    /// The next registration. Reports that the worker gave up may still arrive before it.
    pub(super) async fn registration(&mut self) -> OpenRegistration {
        loop {
            if let Call::Register(registration, answer) = self.next().await {
                return OpenRegistration {
                    registration,
                    answer,
                };
            }
        }
    }

    /// The next report for which the condition holds; others get an empty reply.
    pub(super) async fn report_with(&mut self, condition: impl Fn(&Report) -> bool) -> OpenReport {
        loop {
            let open = self.report().await;
            if condition(&open.report) {
                return open;
            }
            open.answer(super::nothing());
        }
    }

    /// Answers every call at once for this long, reports with `reply`; gives how many registrations and reports came.
    pub(super) async fn count_calls(
        &mut self,
        period: Duration,
        reply: worker::ReportReply,
    ) -> [usize; 2] {
        let mut counts = [0; 2];
        let _ = timeout(period, async {
            loop {
                match self.next().await {
                    Call::Register(_, answer) => {
                        counts[0] += 1;
                        let _ = answer.send(Ok(super::registered(2)));
                    }
                    Call::Report(_, answer) => {
                        counts[1] += 1;
                        let _ = answer.send(Ok(reply.clone()));
                    }
                }
            }
        })
        .await;
        counts
    }

    async fn report(&mut self) -> OpenReport {
        match self.next().await {
            Call::Report(report, answer) => OpenReport { report, answer },
            Call::Register(registration, _) => panic!("expected a report, got {registration:?}"),
        }
    }

    async fn next(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv())
            .await
            .expect("the worker calls")
            .expect("the service lives")
    }
}

impl Service {
    async fn ask<T>(&self, call: impl FnOnce(Answer<T>) -> Call) -> Result<T, Status> {
        let (sender, answer) = oneshot::channel();
        self.0
            .send(call(sender))
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        answer
            .await
            .map_err(|_| Status::unavailable("the test does not answer"))?
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        let registration = Registration::try_from(request.into_inner())?;
        let registered = self
            .ask(|answer| Call::Register(registration, answer))
            .await?;
        Ok(Response::new(registered.into()))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportReply>, Status> {
        let report = Report::try_from(request.into_inner())?;
        let reply = self.ask(|answer| Call::Report(report, answer)).await?;
        Ok(Response::new(reply.into()))
    }
}
