//! `retouch completions`: what a shell needs to complete this program's command lines.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::output;

/// Print a script that completes command lines, for a shell.
///
/// Prints a completion script. For bash: `retouch completions bash > ~/.local/share/bash-completion/completions/retouch`;
/// for zsh, into a folder of `$fpath` as `_retouch`; for fish: `retouch completions fish > ~/.config/fish/completions/retouch.fish`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    shell: Shell,
}

/// Completes the command lines of `cli`.
pub(crate) fn run(args: CompletionsArgs, cli: Command) -> anyhow::Result<()> {
    output::print(script(args.shell, cli)?);
    Ok(())
}

pub(crate) fn script(shell: Shell, mut cli: Command) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli, "retouch", &mut script);
    Ok(String::from_utf8(script)?)
}
