//! `retouch versions`: what each iteration left behind.

use std::fmt::Write;

use clap::Args;
use retouch_proto::lookup::VersionView;

use super::{control_grpc::ControlClient, record::record_of, target::Target};
use crate::{
    output::{self, print_json},
    show::short,
};

/// List what each iteration left behind.
///
/// Lists what each committed iteration left behind: the policy version that samples next, the learner's state, whether
/// a checkpoint holds it, and the EMA adapter that the checkpoint exported (a folder `adapters/<hash>` of the run
/// folder, which `retouch edit` takes). Asks the coordinator, or reads the record if the run is over.
#[derive(Debug, Args)]
pub(crate) struct VersionsArgs {
    #[command(flatten)]
    target: Target,
    /// Print whole hashes as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: VersionsArgs) -> anyhow::Result<()> {
    let versions = match ControlClient::connect(&args.target).await {
        Ok(mut control) => control.versions().await?,
        Err(error) => record_of(&args.target, error)?.versions()?,
    };
    if args.json {
        return print_json(&versions);
    }
    output::print(table(&versions));
    Ok(())
}

fn table(versions: &[VersionView]) -> String {
    if versions.is_empty() {
        return "no iteration is committed yet: the base model samples\n".to_owned();
    }
    let mut out = format!(
        "{:>9} {:<12} {:<12} {:<10} {:<12} {:>8}\n",
        "iteration", "version", "state", "checkpoint", "ema adapter", "reward"
    );
    for version in versions {
        let hash = |hash: &Option<String>| hash.as_deref().map_or("-", short).to_owned();
        let _ = writeln!(
            out,
            "{:>9} {:<12} {:<12} {:<10} {:<12} {:>8}",
            version.iteration,
            version.version.as_deref().map_or("base", short),
            hash(&version.state),
            if version.checkpointed { "yes" } else { "-" },
            hash(&version.ema_adapter),
            version
                .reward_mean
                .map_or("-".to_owned(), |r| format!("{r:.4}")),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use retouch_proto::Iteration;

    use super::*;

    #[test]
    fn every_version_is_a_row() {
        let version = |iteration, ema_adapter: Option<&str>| VersionView {
            iteration: Iteration(iteration),
            version: Some("0123456789abcdef".into()),
            state: Some("fedcba9876543210".into()),
            checkpointed: ema_adapter.is_some(),
            ema_adapter: ema_adapter.map(Into::into),
            reward_mean: Some(0.5),
        };
        let shown = table(&[version(1, None), version(2, Some("aaaabbbbccccdddd"))]);
        let expected = "\
iteration version      state        checkpoint ema adapter    reward
        1 0123456789ab fedcba987654 -          -              0.5000
        2 0123456789ab fedcba987654 yes        aaaabbbbcccc   0.5000
";
        assert_eq!(shown, expected);
    }
}
