//! The `Judge` service: groups of direct callers, images inline.

use std::sync::{Arc, OnceLock};

use retouch_proto::{
    grpc::{
        ScoreGroupReply, ScoreGroupRequest,
        judge_server::{Judge, JudgeServer},
    },
    limits::JUDGE_MESSAGE_BYTES_MAX,
    task::InlineGroup,
};
use retouch_worker::{DeviceThread, TokenCheck};
use tonic::{Request, Response, Status, service::Routes};

use crate::scorer::{Group, Scorer};

/// The judges once they are loaded; before that, callers are told so.
pub(crate) type LoadedScorer = Arc<OnceLock<DeviceThread<Scorer>>>;

#[derive(Debug)]
struct JudgeService {
    scorer: LoadedScorer,
    token: TokenCheck,
}

/// The service as a part of the worker's server.
pub(crate) fn routes(scorer: LoadedScorer, token: TokenCheck) -> Routes {
    let server = JudgeServer::new(JudgeService { scorer, token })
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
        self.token.check(request.metadata())?;
        let scorer = self
            .scorer
            .get()
            .ok_or_else(|| Status::unavailable("the judges are still being loaded"))?;
        let InlineGroup {
            prompt,
            requirement,
            source_png,
            edits_png,
        } = request.into_inner().try_into()?;
        let decode = move || Group::decode(prompt, requirement, &source_png, &edits_png);
        let group = tokio::task::spawn_blocking(decode)
            .await
            .map_err(internal)?;
        let group = group.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let scores = scorer
            .run(move |scorer| scorer.score(&group))
            .await
            .map_err(internal)?;
        let scores = scores.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(ScoreGroupReply {
            scores: scores.into_iter().map(Into::into).collect(),
        }))
    }
}

fn internal(error: impl ToString) -> Status {
    Status::internal(error.to_string())
}
