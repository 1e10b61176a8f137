//! `vhd completions`: the command line completed by a shell.

use clap::Args;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vhd completions bash > /etc/bash_completion.d/vhd
  vhd completions zsh > ~/.zfunc/_vhd
  vhd completions fish > ~/.config/fish/completions/vhd.fish";

/// Arguments of `vhd completions`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::definition(), "vhd", &mut script);
    let mut out = Output::stdout();
    out.write(&String::from_utf8_lossy(&script))?;
    out.finish()?;
    Ok(Exit::Ok)
}
