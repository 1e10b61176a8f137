//! One manual page: what the grammar says, in the sections that readers of manual pages look for.

use std::fmt::Write as _;

use clap::Command;
use clap_mangen::Man;

use crate::exit::Exit;
use crate::{cli, human};

/// Pages of other programs that belong to these.
const OTHERS: &str = "qemu-img(1), nbdinfo(1), mount(8), fstab(5)";

/// The manual page of a command.
pub(super) fn page(command: &Command) -> Vec<u8> {
    let man = Man::new(command.clone())
        .source(concat!("vhd ", env!("CARGO_PKG_VERSION")))
        .manual("vhd");
    let mut page = Vec::new();
    let rendered = man
        .render_title(&mut page)
        .and_then(|()| man.render_name_section(&mut page))
        .and_then(|()| man.render_synopsis_section(&mut page))
        .and_then(|()| man.render_description_section(&mut page))
        .and_then(|()| man.render_options_section(&mut page));
    rendered.expect("a page is written to memory");
    let mut text = Roff(String::new());
    text.subcommands(command);
    text.help(command);
    text.exit_status();
    text.environment();
    text.see_also(command);
    page.extend(text.0.into_bytes());
    page
}

/// The name of a command's page.
pub(super) fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// The commands below a command that people see.
pub(super) fn below(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|below| !below.is_hide_set() && below.get_name() != "help")
}

/// Text for the formatter of manual pages.
struct Roff(String);

impl Roff {
    fn line(&mut self, line: &str) {
        writeln!(self.0, "{line}").expect("a string takes everything");
    }

    fn heading(&mut self, title: &str) {
        self.line(&format!(".SH \"{title}\""));
    }

    /// A line of text, whatever it begins with.
    fn text(&mut self, text: &str) {
        let escaped = human::visible(text).replace('\\', "\\e").replace('-', "\\-");
        match escaped.starts_with(['.', '\'']) {
            true => self.line(&format!("\\&{escaped}")),
            false => self.line(&escaped),
        }
    }

    /// Lines that are not filled: commands are pasted from here.
    fn verbatim(&mut self, lines: &[&str]) {
        self.line(".nf");
        lines.iter().for_each(|line| self.text(line));
        self.line(".fi");
    }

    fn subcommands(&mut self, command: &Command) {
        if below(command).next().is_none() {
            return;
        }
        self.heading("SUBCOMMANDS");
        for one in below(command) {
            self.line(".TP");
            self.text(&format!("{}(1)", name(one)));
            self.text(&one.get_about().map(ToString::to_string).unwrap_or_default());
        }
    }

    /// What the help says below the options: examples as they are, notes as paragraphs. What every page has in a section of its own
    /// is left out.
    fn help(&mut self, command: &Command) {
        let help = command.get_after_long_help().or_else(|| command.get_after_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let blocks: Vec<Vec<&str>> = help.split("\n\n").map(|block| block.lines().collect()).collect();
        let is_list = |block: &&Vec<&str>| block.len() > 1 && block[0].ends_with(':') && block[1].starts_with("  ");
        for block in blocks
            .iter()
            .filter(is_list)
            .filter(|block| block[0].starts_with("Example"))
        {
            self.heading("EXAMPLES");
            self.verbatim(&block[1..]);
        }
        let notes: Vec<&Vec<&str>> = blocks
            .iter()
            .filter(|block| !is_list(block) && !block.is_empty())
            .collect();
        if notes.is_empty() {
            return;
        }
        self.heading("NOTES");
        for block in notes {
            self.line(".PP");
            block.iter().for_each(|line| self.text(line));
        }
    }

    fn exit_status(&mut self) {
        self.heading("EXIT STATUS");
        for exit in Exit::ALL {
            self.line(".TP");
            self.text(&exit.number().to_string());
            self.text(exit.meaning());
        }
    }

    fn environment(&mut self) {
        self.heading("ENVIRONMENT");
        for (name, meaning) in cli::ENVIRONMENT {
            self.line(".TP");
            self.text(name);
            self.text(meaning);
        }
    }

    /// The command above, those beside it, and other programs.
    fn see_also(&mut self, command: &Command) {
        self.heading("SEE ALSO");
        let own = name(command);
        let mut pages: Vec<String> = below(command).map(|one| format!("{}(1)", name(one))).collect();
        if let Some((above, _)) = own.rsplit_once('-').filter(|_| own != "vhd") {
            // `vhd-export-delta` is a command of vhd.
            let above = match above {
                "vhd-export" | "vhd-import" | "vhd-new" => "vhd",
                above => above,
            };
            pages.insert(0, format!("{above}(1)"));
        }
        pages.push(OTHERS.to_owned());
        self.text(&pages.join(", "));
    }
}
