//! `retouch join`: a bare node takes part in a run in one role.

use clap::Args;

use crate::{
    node::{Place, take_part},
    role_name::RoleName,
};

/// Take part in a run from a node that has nothing but this program and the models.
///
/// The node proves what it is by the token of its role, which is in `credentials/<role>/token` of
/// the run folder, or by a certificate (`--credentials`).
///
/// The run file comes from the coordinator. Where it names folders, this node must have them, under
/// the same paths or wherever --path says:
///
///   rollout-worker  model.path (the whole editor) and dataset.path (the images)
///   reward-worker   each reward.terms.path (the judges)
///   learner         model.path (the transformer alone) and the shared run folder, for checkpoints
///
/// The coordinator's address must be one that other machines can reach (`cluster.listen`, or
/// `coordinator --listen`). The worker serves its blobs on a free port, under the address from
/// which it reaches the coordinator. Its name and scratch folder are the same when it is started
/// again.
///
/// It ends with code 0 when the run is over or the worker was drained, with 75 when it is to be
/// started again (SIGTERM, SIGHUP, `retouch restart`), with 130 after SIGINT, and with 2 or 4 where
/// retrying will not help. On these signals the worker leaves once nothing is lost with it, within
/// 20 seconds; a second one ends it at once.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct JoinArgs {
    /// What this node is to do.
    role: RoleName,
    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(args: JoinArgs) -> anyhow::Result<()> {
    take_part(&[args.role], args.place)
}
