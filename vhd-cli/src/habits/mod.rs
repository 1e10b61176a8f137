//! Words of other programs: when the grammar does not know a command or an option that `qemu-img`, `qemu-nbd`, `vhd-util`,
//! PowerShell's Hyper-V module or VBoxManage has, the error says what it is called here.

mod words;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use words::{COMMANDS, OPTIONS, Option as Row};

/// Adds to an error of the grammar what the unknown word is called here, instead of words that look like it.
pub(crate) fn explain(error: &mut Error, arguments: &[OsString]) {
    let Some(word) = unknown_word(error) else {
        return;
    };
    let tip = match error.kind() {
        ErrorKind::InvalidSubcommand => command_tip(&word),
        _ => option_tip(command_of(arguments), &word),
    };
    if let Some(tip) = tip {
        for kind in [
            ContextKind::SuggestedSubcommand,
            ContextKind::SuggestedArg,
            ContextKind::SuggestedValue,
        ] {
            error.remove(kind);
        }
        error.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![tip.to_owned().into()]),
        );
    }
}

/// The word that the grammar does not know.
fn unknown_word(error: &Error) -> Option<String> {
    let kind = match error.kind() {
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        _ => return None,
    };
    match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.clone()),
        _ => None,
    }
}

/// The first word of the command line that is no option: the command.
fn command_of(arguments: &[OsString]) -> &str {
    let mut words = arguments.iter().skip(1).filter_map(|argument| argument.to_str());
    words.find(|word| !word.starts_with('-')).unwrap_or_default()
}

fn command_tip(word: &str) -> Option<&'static str> {
    let row = COMMANDS
        .iter()
        .find(|(words, _)| words.split(' ').any(|one| one.eq_ignore_ascii_case(word)));
    row.map(|&(_, tip)| tip)
}

fn option_tip(command: &str, word: &str) -> Option<&'static str> {
    // `--socket=PATH` is told as `--socket`; `-osubformat=fixed` as `-o`.
    let matches = |row: &&Row| row.options.split(' ').any(|one| one == word);
    let here = |row: &&Row| row.command == command;
    let rows = || OPTIONS.iter().filter(matches);
    rows()
        .find(here)
        .or_else(|| rows().find(|row| row.command.is_empty()))
        .map(|row| row.tip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    #[test]
    fn no_row_is_about_a_word_that_the_grammar_knows() {
        let grammar = Cli::definition();
        let known: Vec<&str> = grammar.get_subcommands().map(clap::Command::get_name).collect();
        for (words, _) in COMMANDS {
            for word in words.split(' ') {
                assert!(!known.contains(&word), "{word}");
            }
        }
        for row in OPTIONS.iter().filter(|row| !row.command.is_empty()) {
            let command = grammar.find_subcommand(row.command);
            let command = command.unwrap_or_else(|| panic!("{} is no command", row.command));
            for word in row.options.split(' ') {
                let known = command.get_arguments().any(|argument| {
                    let long = argument.get_long_and_visible_aliases().unwrap_or_default();
                    let short = argument.get_short_and_visible_aliases().unwrap_or_default();
                    long.iter().any(|name| word == format!("--{name}"))
                        || short.iter().any(|&name| word == format!("-{name}"))
                });
                assert!(!known, "{} {word}", row.command);
            }
        }
    }

    #[test]
    fn each_command_that_a_tip_names_exists() {
        let grammar = Cli::definition();
        let tips = COMMANDS
            .iter()
            .map(|&(_, tip)| tip)
            .chain(OPTIONS.iter().map(|row| row.tip));
        for tip in tips {
            for named in tip.split("`vhd ").skip(1) {
                let mut words = named.split(['`', ' ']);
                let command = words.next().and_then(|word| grammar.find_subcommand(word));
                let command = command.unwrap_or_else(|| panic!("{tip}"));
                if command.has_subcommands() {
                    let below = words.next().and_then(|word| command.find_subcommand(word));
                    assert!(below.is_some(), "{tip}");
                }
            }
            for option in tip.split("`--").skip(1) {
                let name = option.split(['`', ' ', '=']).next().unwrap_or_default();
                let known = |command: &clap::Command| {
                    command
                        .get_arguments()
                        .any(|argument| argument.get_long() == Some(name))
                };
                let below = |command: &clap::Command| known(command) || command.get_subcommands().any(known);
                assert!(grammar.get_subcommands().any(below), "--{name}: {tip}");
            }
        }
    }
}
