//! Direct scoring, images inline.

use super::{ConvertError, Result, all, task::sources, text};
use crate::limits::{GROUP_SIZE_MAX, PROMPT_BYTES_MAX};
use crate::pb;
use crate::task::{InlineGroup, SampleScore};

impl From<InlineGroup> for pb::ScoreGroupRequest {
    fn from(group: InlineGroup) -> Self {
        Self {
            prompt: group.prompt,
            requirement: group.requirement,
            sources_png: group.sources_png,
            edits_png: group.edits_png,
        }
    }
}

impl TryFrom<pb::ScoreGroupRequest> for InlineGroup {
    type Error = ConvertError;

    fn try_from(request: pb::ScoreGroupRequest) -> Result<Self> {
        Ok(Self {
            prompt: text("judge.prompt", request.prompt, PROMPT_BYTES_MAX)?,
            requirement: text("judge.requirement", request.requirement, PROMPT_BYTES_MAX)?,
            sources_png: sources("judge.sources_png", request.sources_png, Ok)?,
            edits_png: all("judge.edits_png", request.edits_png, GROUP_SIZE_MAX, Ok)?,
        })
    }
}

impl From<Vec<SampleScore>> for pb::ScoreGroupReply {
    fn from(scores: Vec<SampleScore>) -> Self {
        Self {
            scores: scores.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::ScoreGroupReply> for Vec<SampleScore> {
    type Error = ConvertError;

    fn try_from(reply: pb::ScoreGroupReply) -> Result<Self> {
        all(
            "judge.scores",
            reply.scores,
            GROUP_SIZE_MAX,
            TryInto::try_into,
        )
    }
}
