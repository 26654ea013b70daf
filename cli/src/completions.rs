//! `retouch completions`, and what a shell is told each time that somebody asks it to complete a command line. Arguments
//! say themselves what they offer.

use clap::{Args, Command};
use clap_complete::{CompleteEnv, Shell, env::Shells};

use crate::output;

/// Says to this program that a shell asks, and which.
const VARIABLE: &str = "_RETOUCH_COMPLETE";

/// Print a script that completes command lines, for a shell.
///
/// The script has this program say what comes next: commands, options and their values, files and
/// folders, keys of run files, runs, and the workers of a run that is going on.
///
/// Examples:
///
///   echo 'source <(retouch completions bash)' >> ~/.bashrc
///   echo 'source <(retouch completions zsh)' >> ~/.zshrc        (after compinit)
///   echo 'retouch completions fish | source' >> ~/.config/fish/config.fish
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    shell: Shell,
}

pub(crate) fn run(args: CompletionsArgs) -> anyhow::Result<()> {
    output::print(script(args.shell)?);
    Ok(())
}

/// Answers a shell that asks, and ends the process; without such a question, does nothing.
pub(crate) fn answer(cli: impl Fn() -> Command) {
    CompleteEnv::with_factory(cli).var(VARIABLE).complete();
}

pub(crate) fn script(shell: Shell) -> anyhow::Result<String> {
    let shells = Shells::builtins();
    let shell = shells.completer(&shell.to_string());
    let shell = shell.expect("a shell that can be named can ask");
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "retouch", "retouch", "retouch", &mut script)?;
    Ok(String::from_utf8(script)?)
}
