//! `retouch groups`: find groups, and see all that is known of them.

use std::{fmt::Write, path::PathBuf};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use retouch_coordinator::lookup::AtWork;
use retouch_proto::{
    GroupId, Iteration,
    lookup::{Attempts, CandidateView, GroupQuery, GroupStage, GroupView},
};

use super::{control_grpc::ControlClient, record::record_of, save, target::Target};
use crate::{
    exit::UsageError,
    exit::complain,
    output::{self, print_json, say},
    show::{duration, policy},
};

/// Find groups: scores per candidate, reasons, who made them.
///
/// Finds groups and shows what became of them: who sampled and judged them, with which policy,
/// their scores, why they were dropped. Asks the coordinator, or reads the record if the run is
/// over and its folder is here.
///
/// With --save, the pictures of one group are written to a folder: the source, every candidate, a
/// sheet with rewards, advantages and digit probabilities, and group.json. Workers hold a group's
/// pictures until its iteration is committed; one group of each iteration is kept in
/// samples/groups of the run folder (samples.keep_groups).
///
/// Examples:
///
///   retouch groups runs/first --state filtered
///   retouch groups runs/first --id 3/7 --save group-3-7
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct GroupsArgs {
    #[command(flatten)]
    target: Target,
    /// One group, as `iteration/number`: it is shown with every candidate's score.
    #[arg(long, value_name = "I/N", value_parser = group_id)]
    id: Option<GroupId>,
    /// Groups of this iteration.
    #[arg(long, conflicts_with = "id")]
    iteration: Option<u32>,
    /// Groups with this text in the instruction, in any case.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Groups in this state.
    #[arg(long, value_parser = stages())]
    state: Option<GroupStage>,
    /// Show every candidate: reward, advantage, p(0) to p(5), entropy.
    #[arg(long)]
    scores: bool,
    /// Also groups of iterations that were taken back by a rewind.
    #[arg(long)]
    rewound: bool,
    /// Show at most so many, newest iterations first; 1000 is the most.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// Write the group's pictures, a sheet of them with all scores, and group.json to this new folder.
    #[arg(long, value_name = "FOLDER", requires = "id")]
    save: Option<PathBuf>,
    /// Print all that is known as JSON.
    #[arg(long)]
    json: bool,
}

fn group_id(text: &str) -> Result<GroupId, String> {
    let parts = text.split_once('/');
    let id = parts.and_then(|(iteration, index)| {
        let (iteration, index) = (Iteration(iteration.parse().ok()?), index.parse().ok()?);
        Some(GroupId { iteration, index })
    });
    id.ok_or_else(|| "a group is named iteration/number, such as 3/7".to_owned())
}

/// Reads a state's name, and lets shells complete it.
fn stages() -> impl TypedValueParser<Value = GroupStage> {
    let names = PossibleValuesParser::new(GroupStage::ALL.map(GroupStage::as_str));
    names.map(|name| GroupStage::from_name(&name).expect("a listed name"))
}

pub(crate) async fn run(args: GroupsArgs) -> anyhow::Result<()> {
    if let Some(folder) = &args.save {
        save::check_folder(folder)?;
    }
    let groups = find(&args).await?;
    if let (Some(folder), Some(id)) = (&args.save, args.id) {
        let group = groups.first();
        let group = group.ok_or_else(|| UsageError(format!("the run has no group {id}")))?;
        save::save(&args.target, group, folder).await?;
    }
    if args.json {
        return print_json(&groups);
    }
    if groups.is_empty() {
        say!("no group is like that");
    } else if args.scores || args.id.is_some() {
        groups
            .iter()
            .for_each(|group| output::print(details(group)));
    } else {
        output::print(table(&groups));
    }
    Ok(())
}

async fn find(args: &GroupsArgs) -> anyhow::Result<Vec<GroupView>> {
    let query = args.query();
    match ControlClient::connect(&args.target).await {
        Ok(mut control) => control.groups(query).await,
        Err(error) => {
            let lookup = record_of(&args.target, error)?;
            if let Some(reason) = lookup.without_rows() {
                complain(format_args!(
                    "instructions and images are not shown: the dataset can't be read from here: {reason}"
                ));
            }
            Ok(lookup.groups(&query, &AtWork::new())?)
        }
    }
}

impl GroupsArgs {
    fn query(&self) -> GroupQuery {
        let of_id = self.id.map(|id| id.iteration);
        GroupQuery {
            iteration: of_id.or(self.iteration.map(Iteration)),
            index: self.id.map(|id| id.index),
            prompt: self.prompt.clone(),
            stage: self.state,
            attempts: if self.rewound {
                Attempts::All
            } else {
                Attempts::Valid
            },
            limit: self.limit,
        }
    }
}

fn table(groups: &[GroupView]) -> String {
    let mut out = format!(
        "{:<8} {:<9} {:>7} {:<16} {:<18} {:<18} {}\n",
        "group", "state", "reward", "policy", "sampled by", "judged by", "instruction"
    );
    for group in groups {
        let _ = writeln!(
            out,
            "{:<8} {:<9} {:>7} {:<16} {:<18} {:<18} {}",
            group.group.to_string(),
            state(group),
            group
                .reward_mean
                .map_or("-".to_owned(), |r| format!("{r:.4}")),
            group.policy.as_ref().map_or("-".to_owned(), policy),
            group.sampled_by.as_deref().unwrap_or("-"),
            group.scored_by.as_deref().unwrap_or("-"),
            group.prompt,
        );
        if let Some(reason) = &group.dropped {
            let _ = writeln!(out, "         dropped: {reason}");
        }
    }
    out
}

fn state(group: &GroupView) -> String {
    match group.rewound {
        true => "rewound".to_owned(),
        false => group.state.to_string(),
    }
}

fn details(group: &GroupView) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "group {}: {}", group.group, state(group));
    let _ = writeln!(out, "  instruction  {}", group.prompt);
    if !group.requirement.is_empty() {
        let _ = writeln!(out, "  requirement  {}", group.requirement);
    }
    let (row, round) = (group.dataset_row, group.round);
    let _ = writeln!(
        out,
        "  source       {} (row {row}, round {round})",
        group.images.join(", ")
    );
    if let Some(worker) = &group.sampled_by {
        let with = group.policy.as_ref().map_or("-".to_owned(), policy);
        let took = duration(group.sampled_s.unwrap_or(0.0));
        let _ = writeln!(
            out,
            "  sampled      by {worker} with policy {with}, in {took}"
        );
    }
    if let Some(worker) = &group.scored_by {
        let took = duration(group.scored_s.unwrap_or(0.0));
        let _ = writeln!(out, "  judged       by {worker}, in {took}");
    }
    if let Some(worker) = &group.at_work {
        let _ = writeln!(out, "  under way    at {worker}");
    }
    if let Some(reason) = &group.dropped {
        let _ = writeln!(out, "  dropped      {reason}");
    }
    if let Some(mean) = group.reward_mean {
        let _ = writeln!(out, "  mean reward  {mean:.4}");
        candidates(&mut out, &group.candidates);
    }
    out.push('\n');
    out
}

fn candidates(out: &mut String, candidates: &[CandidateView]) {
    let _ = writeln!(
        out,
        "  {:>9} {:>7} {:>10}   {:<12} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>8}",
        "candidate",
        "reward",
        "advantage",
        "judge",
        "score",
        "p(0)",
        "p(1)",
        "p(2)",
        "p(3)",
        "p(4)",
        "p(5)",
        "entropy"
    );
    for (sample, candidate) in candidates.iter().enumerate() {
        let advantage = candidate
            .advantage
            .map_or("-".to_owned(), |a| format!("{a:+.4}"));
        let mut begin = format!("{sample:>9} {:>7.4} {advantage:>10}", candidate.reward);
        for term in &candidate.terms {
            let p: String = term
                .probabilities
                .iter()
                .map(|p| format!(" {p:>6.3}"))
                .collect();
            let (name, value, entropy) = (&term.name, term.value, term.entropy);
            let _ = writeln!(
                out,
                "  {begin:<28}   {name:<12} {value:>6.3}{p} {entropy:>8.3}"
            );
            begin.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::{status::PolicyStatus, task::TermScore};

    use super::*;

    fn group() -> GroupView {
        let term = TermScore {
            name: "edit".into(),
            value: 0.5,
            probabilities: [0.0, 0.1, 0.2, 0.3, 0.4, 0.0],
            entropy: 1.25,
        };
        GroupView {
            group: group_id("3/7").unwrap(),
            state: GroupStage::Kept,
            rewound: false,
            dataset_row: 12,
            prompt: "make the ball red".into(),
            requirement: String::new(),
            images: vec!["images/a.png".into()],
            round: 0,
            policy: Some(PolicyStatus {
                iteration: Iteration(2),
                version: Some("fedcba9876543210".into()),
            }),
            sampled_by: Some("rollout-0".into()),
            sampled_s: Some(1.5),
            scored_by: Some("reward-0".into()),
            scored_s: Some(0.5),
            at_work: None,
            reward_mean: Some(0.5),
            dropped: None,
            pictures: None,
            candidates: vec![CandidateView {
                reward: 0.5,
                advantage: Some(-0.25),
                image: None,
                terms: vec![term],
            }],
        }
    }

    #[test]
    fn details_tell_who_made_it_and_every_score() {
        let expected = "\
group 3/7: kept
  instruction  make the ball red
  source       images/a.png (row 12, round 0)
  sampled      by rollout-0 with policy 2:fedcba987654, in 1.5 s
  judged       by reward-0, in 0.5 s
  mean reward  0.5000
  candidate  reward  advantage   judge         score   p(0)   p(1)   p(2)   p(3)   p(4)   p(5)  entropy
          0  0.5000    -0.2500   edit          0.500  0.000  0.100  0.200  0.300  0.400  0.000    1.250

";
        assert_eq!(details(&group()), expected);
    }

    #[test]
    fn the_table_has_a_row_for_each_and_the_reason_of_what_was_dropped() {
        let dropped = GroupView {
            state: GroupStage::Dropped,
            dropped: Some("3 attempts failed".into()),
            reward_mean: None,
            ..group()
        };
        let shown = table(&[group(), dropped]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 4, "{shown}");
        assert!(
            lines[1].starts_with("3/7      kept       0.5000 2:fedcba987654"),
            "{shown}"
        );
        assert_eq!(lines[3], "         dropped: 3 attempts failed");
    }

    #[test]
    fn groups_are_named_by_iteration_and_number() {
        assert_eq!(group_id("3/7").unwrap().to_string(), "3/7");
        assert!(group_id("37").is_err() && group_id("a/1").is_err());
    }
}
