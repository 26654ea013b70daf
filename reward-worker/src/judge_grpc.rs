//! The `Judge` service: groups of direct callers, images inline.

use std::sync::{Arc, OnceLock};

use retouch_credentials::{Access, Principal};
use retouch_proto::{
    grpc::{
        ScoreGroupReply, ScoreGroupRequest,
        judge_server::{Judge, JudgeServer},
    },
    limits::JUDGE_MESSAGE_BYTES_MAX,
    task::InlineGroup,
};
use retouch_worker::Hosted;
use tonic::{Request, Response, Status, service::Routes};

use crate::scorer::{Group, Scorer};

/// The judges once they are loaded; before that, callers are told so.
pub(crate) type LoadedScorer = Arc<OnceLock<Hosted<Scorer>>>;

#[derive(Debug)]
struct JudgeService {
    scorer: LoadedScorer,
    access: Access,
}

/// The service as a part of the worker's server.
pub(crate) fn routes(scorer: LoadedScorer, access: Access) -> Routes {
    let server = JudgeServer::new(JudgeService { scorer, access })
        .max_decoding_message_size(JUDGE_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(JUDGE_MESSAGE_BYTES_MAX);
    Routes::new(server)
}

#[tonic::async_trait]
impl Judge for JudgeService {
    async fn score_group(
        &self,
        request: Request<ScoreGroupRequest>,
    ) -> Result<Response<ScoreGroupReply>, Status> {
        self.access.admit(&request, &[Principal::Control])?;
        let scorer = self
            .scorer
            .get()
            .ok_or_else(|| Status::unavailable("the judges are still being loaded"))?;
        let InlineGroup {
            prompt,
            requirement,
            sources_png,
            edits_png,
        } = request.into_inner().try_into()?;
        let decode = move || Group::decode(prompt, requirement, &sources_png, &edits_png);
        let group = tokio::task::spawn_blocking(decode)
            .await
            .map_err(internal)?;
        let group = group.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let scored = scorer
            .run(move |scorer| scorer.score(&group))
            .await
            .map_err(internal)?;
        let scored = scored.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(scored.scores.into()))
    }
}

fn internal(error: impl ToString) -> Status {
    Status::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use retouch_credentials::{Authority, Strangers, access::Peer};
    use retouch_proto::{grpc::judge_client::JudgeClient, worker::Role};
    use tonic::{Code, transport::server::TcpIncoming};

    use super::*;

    #[tokio::test]
    async fn only_people_call_the_judge() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let access = |principal| Access::from(authority.issue(principal).unwrap());
        let own = access(Principal::Worker(Role::Reward));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut server = own.server(Strangers::Refused).unwrap();
        let router = server.add_routes(routes(LoadedScorer::default(), own));
        tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
        let call = async |access: Access| {
            let endpoint = access.endpoint(&address, Peer::Worker).unwrap();
            let mut client = JudgeClient::new(endpoint.connect_lazy());
            client
                .score_group(ScoreGroupRequest::default())
                .await
                .unwrap_err()
        };
        let refused = call(access(Principal::Worker(Role::Rollout))).await;
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let heard = call(access(Principal::Control)).await;
        assert!(heard.message().contains("still being loaded"), "{heard}");
        let plain = call(Access::Open).await;
        assert!(!plain.message().contains("still being loaded"), "{plain}");
    }
}
